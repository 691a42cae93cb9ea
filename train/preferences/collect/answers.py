"""Several answers to each prompt: what `nextgpt preferences sample` writes and `rank` reads. One prompt a line:

    {"prompt": [messages, the last is the user's], "answers": [{"role": "assistant", "content": [parts]}, …],
     "seeds": [of each answer], "accepted": ["cat"]}

Every further key is a column: it comes from the line of the question, and reward functions get it by its name. The column
`output_modalities` has the kinds that the answers could hold, where they were not all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextgpt.errors import UserInputError
from nextgpt.train.data.files import json_line, whole_file
from nextgpt.train.data.lines import Line, check_files, read_lines, with_paths
from nextgpt.train.data.turns import is_empty, with_parts
from nextgpt.train.judge.answers import question_of
from nextgpt.train.preferences.pairs import KINDS, answer_key, check_media, paths_from, read_kinds

IS_WHAT = "a prompt with several answers, as `nextgpt preferences sample` writes them"
OWN_KEYS = ("messages", "prompt", "answers", "seeds", "prompts", "completions")  # the last two are arguments of rewards


@dataclass
class SampledAnswers:
    """A prompt, and what was answered to it.

    Args:
        prompt: chat messages, content as parts; the last is the user's.
        answers: messages of the assistant.
        seeds: of the answers, where they are known.
        columns: what else the data say of the prompt.
        where: file and line.
    """

    prompt: list[dict]
    answers: list[dict] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def output_modalities(self) -> list[str] | None:
        """The kinds that its answers may hold; None: all."""
        return self.columns.get(KINDS)

    @property
    def different(self) -> list[dict]:
        """The answers that say something, each once."""
        kept = {answer_key(answer): answer for answer in reversed(self.answers) if not is_empty(answer["content"])}
        return list(reversed(kept.values()))

    def record(self, folder: Path) -> dict[str, Any]:
        """As a line of a file in `folder`, from which its paths start."""
        return {
            "prompt": [paths_from(message, folder) for message in self.prompt],
            "answers": [paths_from(message, folder) for message in self.answers],
            "seeds": self.seeds,
            **{name: _parts(value, paths_from, folder) for name, value in self.columns.items()},
        }


def read_prompts(file: Path) -> list[SampledAnswers]:
    """The questions of a JSON-lines file of chat messages, each up to its last one, with the columns beside them.

    Raises:
        UserInputError: a line is no conversation, or has no question.
    """
    check_files([file])
    prompts = []
    for line in read_lines([file]):
        prompt = question_of(line)
        try:
            check_media(prompt)
            read_kinds(line.record())
        except UserInputError as error:
            raise UserInputError(f"{line.where}: {error}") from None
        prompts.append(SampledAnswers(prompt, columns=_columns(line), where=line.where))
    if not prompts:
        raise UserInputError(f"{file}: holds no questions")
    return prompts


def write_answers(file: Path, rows: Iterable[SampledAnswers]) -> None:
    """Writes a file of answers, whole or not at all; OSError where it cannot be."""
    with whole_file(file) as beside:
        beside.write_bytes(b"".join(json_line(row.record(file.parent)) for row in rows))


def read_answers(file: Path) -> list[SampledAnswers]:
    """The prompts of a file with their answers, paths resolved.

    Raises:
        UserInputError: a line is something else, or holds a medium whose file is gone.
    """
    check_files([file])
    rows = []
    for line in read_lines([file]):
        try:
            rows.append(_row(line))
        except UserInputError as error:
            raise UserInputError(f"{line.where}: {error}") from None
    if not rows:
        raise UserInputError(f"{file}: holds no answers; expected {IS_WHAT}")
    return rows


def _row(line: Line) -> SampledAnswers:
    record = line.record(IS_WHAT)
    if not isinstance(record, dict) or not {"prompt", "answers"} <= record.keys():
        shown = line.content.decode(errors="replace").strip()[:60]
        raise UserInputError(f"expected {IS_WHAT}; found {shown}")
    prompt, answers = (
        [with_paths(message, line.folder) for message in with_parts(record[name])] for name in ("prompt", "answers")
    )
    if not prompt or prompt[-1]["role"] != "user":
        raise UserInputError("the prompt ends without a turn of the user")
    if any(answer["role"] != "assistant" for answer in answers):
        raise UserInputError("an answer that is not the assistant's")
    check_media([*prompt, *answers])
    read_kinds(record)
    return SampledAnswers(prompt, answers, record.get("seeds") or [], _columns(line), line.where)


def _columns(line: Line) -> dict[str, Any]:
    """What stands beside the messages, with the paths of media in it resolved."""
    return {name: _parts(value, with_paths, line.folder) for name, value in line.record().items() if name not in OWN_KEYS}


def _parts(value: Any, change: Any, folder: str | Path) -> Any:
    """A column as it is, but for the paths of a list of parts."""
    is_parts = isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value)
    return change({"content": value}, folder)["content"] if is_parts else value
