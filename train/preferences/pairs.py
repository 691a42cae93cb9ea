"""Preference pairs: JSON-lines files, whoever made them, in TRL's conversational format with our parts. One pair a line:

    {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Draw a cat."}]}],
     "chosen": [{"role": "assistant", "content": [{"type": "image", "caption": "a cat", "path": "1/a.png", "seed": 7}]}],
     "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "No."}]}],
     "ranked_by": "person", "scores": [1.0, 0.0], "output_modalities": ["text", "image"]}

The prompt ends with the user's turn; `chosen` and `rejected` are one message of the assistant each; one with
`"finished": false` was cut off, and its end is not learned. Relative paths start from the file's folder; a medium that was
made keeps its caption and its seed, as far as there are any. `ranked_by` says who ranked (`person`, `rule:NAME`,
`judge:NAME`, `reward:FOLDER`), `scores` what chosen and rejected got; both may be left out. `output_modalities` are the
kinds that the answers could hold, where they were not all: the system prompt says so, in learning as it did in answering.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.logging import tqdm

from nextgpt.errors import UserInputError
from nextgpt.modalities import MODALITIES
from nextgpt.signals import SignalVocabulary
from nextgpt.train.data.files import json_line, whole_file
from nextgpt.train.data.hashes import remembered_hash
from nextgpt.train.data.lines import Line, check_files, count_lines, has_path, read_lines, with_paths
from nextgpt.train.data.turns import is_empty, turn_problems, with_parts

IS_WHAT = "one pair: a prompt, chosen and rejected, as `nextgpt preferences rank` writes them"
SIDES = ("chosen", "rejected")
KINDS = "output_modalities"  # of a line, and of the pipeline


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to a prompt, of which one is better.

    Args:
        prompt: chat messages, content as parts; the last is the user's.
        chosen, rejected: a list of one message of the assistant.
        ranked_by: who says so; empty: not known.
        scores: of chosen and rejected, where there are any.
        output_modalities: kinds that the answers could hold; None: all.
        where: file and line.
    """

    prompt: list[dict]
    chosen: list[dict]
    rejected: list[dict]
    ranked_by: str = ""
    scores: tuple[float, float] | None = None
    output_modalities: list[str] | None = None
    where: str = ""

    def record(self, folder: str | Path) -> dict[str, Any]:
        """As a line of a file in `folder`, from which its paths start."""
        record = {name: [paths_from(message, folder) for message in getattr(self, name)] for name in ("prompt", *SIDES)}
        record |= {"ranked_by": self.ranked_by} if self.ranked_by else {}
        record |= {"scores": list(self.scores)} if self.scores else {}
        return record | ({KINDS: self.output_modalities} if self.output_modalities else {})


def write_pairs(file: str | Path, pairs: Iterable[PreferencePair]) -> None:
    """Writes a file of pairs, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(file) as beside:
        beside.write_bytes(b"".join(json_line(pair.record(Path(file).parent)) for pair in pairs))


def read_pairs(files: Iterable[str | Path], *, heldout: Sequence[PreferencePair] = ()) -> list[PreferencePair]:
    """The pairs of JSON-lines files, with the paths of media resolved.

    Args:
        heldout: pairs that are measured on; their prompts must not come.

    Raises:
        UserInputError: a line is no pair that can be learned from; it names the file and the line.
    """
    files = list(files)
    check_files(files)
    measured = {prompt_key(pair.prompt): pair.where for pair in heldout}
    pairs = []
    for line in tqdm(read_lines(files), desc="Reading pairs", total=count_lines(files), unit=" pairs"):
        try:
            pair = _pair(line)
            if measured and (where := measured.get(prompt_key(pair.prompt))) is not None:
                raise UserInputError(f"the prompt is held out ({where}); take all its pairs out of one of the files")
        except UserInputError as error:
            raise UserInputError(f"{line.where}: {error}") from None
        pairs.append(pair)
    if not pairs:
        raise UserInputError(f"no pairs in {', '.join(map(str, files)) or 'an empty list of files'}")
    return pairs


def split_by_prompt(
    pairs: Sequence[PreferencePair], share: float, seed: int = 0
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Pairs to learn from, and a share of the prompts, with all their pairs, to measure on.

    Raises:
        UserInputError: one of the two would be empty.
    """
    keys = [prompt_key(pair.prompt) for pair in pairs]
    prompts = sorted(set(keys))
    random.Random(seed).shuffle(prompts)
    count = round(share * len(prompts)) or 1
    if not 0 < share < 1 or count >= len(prompts):
        raise UserInputError(
            f"a share of {share:g} of {len(prompts)} prompts cannot be held out; name a file of held-out pairs"
        )
    out = set(prompts[:count])
    parts = [[pair for pair, key in zip(pairs, keys, strict=True) if (key in out) is is_out] for is_out in (False, True)]
    return parts[0], parts[1]


def prompt_key(messages: Sequence[dict], exactly: bool = False) -> str:
    """A short name of what is said and shown, wherever its files lie; if not `exactly`, whatever its cases and spaces."""
    return _key([[message["role"], _said(message, exactly)] for message in messages])


def answer_key(message: dict) -> str:
    """A short name of an answer: the words, and media by their files, or their captions where there are none."""
    return _key(_said(message, exactly=True))


def read_kinds(record: dict, key: str = KINDS) -> list[str] | None:
    """The kinds that answers could hold, as `output_modalities` of a line says; None: all.

    Args:
        key: where it stands.

    Raises:
        UserInputError: it is no list of kinds with text among them.
    """
    kinds, known = record.get(key), ("text", *MODALITIES)
    if kinds is None or (isinstance(kinds, list) and "text" in kinds and all(kind in known for kind in kinds)):
        return kinds
    raise UserInputError(f"{key} is {kinds!r}, expected a list of kinds, text among them, of {', '.join(known)}")


def places_by_kinds(kinds: Iterable[list[str] | None]) -> list[list[int]]:
    """The places of answers, those together that could hold the same kinds."""
    found = defaultdict(list)
    for place, own in enumerate(kinds):
        found[frozenset(own or ())].append(place)
    return list(found.values())


def template_variables(kinds: Sequence[str] | None, vocabulary: SignalVocabulary) -> dict[str, str] | None:
    """What the chat template gets where answers could hold these kinds: the same as in answering.

    Raises:
        UserInputError: the model makes no such kind.
    """
    if unknown := [kind for kind in kinds or () if kind != "text" and kind not in vocabulary.runs]:
        raise UserInputError(f"{KINDS} names {', '.join(unknown)}, which this model's answers do not hold")
    return vocabulary.template_variables(kinds)


def paths_from(message: dict, folder: str | Path) -> dict:
    """A message whose media paths are told as they are seen from a folder; the way back is `with_paths`."""
    parts = [
        part | {"path": Path(os.path.relpath(part["path"], folder)).as_posix()} if has_path(part) else part
        for part in message["content"]
    ]
    return message | {"content": parts}


def _pair(line: Line) -> PreferencePair:
    record = line.record(IS_WHAT)
    if not isinstance(record, dict) or not {"prompt", *SIDES} <= record.keys():
        shown = line.content.decode(errors="replace").strip()[:60]
        raise UserInputError(f"expected {IS_WHAT}; found {shown}")
    messages = {name: _messages(record[name], name, line.folder) for name in ("prompt", *SIDES)}
    if not messages["prompt"] or messages["prompt"][-1]["role"] != "user":
        raise UserInputError("the prompt ends without a turn of the user; expected a question that both answers answer")
    for name in SIDES:
        answer = messages[name]
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            raise UserInputError(f"{name}: {len(answer)} messages; expected one, the assistant's")
        if is_empty(answer[0]["content"]):
            raise UserInputError(f"{name}: an empty answer; leave the pair out")
        for _, problem in turn_problems([*messages["prompt"], *answer]):
            raise UserInputError(f"prompt: {problem}; fix it, or leave the pair out")
    kinds = read_kinds(record)
    for name in SIDES:
        others = [part["type"] for part in messages[name][0]["content"] if kinds and part["type"] not in kinds]
        if others:
            raise UserInputError(f"{name}: holds {MODALITIES[others[0]].article}, which {KINDS} {kinds} leaves out")
    if len({answer_key(messages[name][0]) for name in SIDES}) == 1:
        raise UserInputError("chosen and rejected are equal, so there is nothing to prefer; leave the pair out")
    return PreferencePair(**messages, **_ranking(record), output_modalities=kinds, where=line.where)


def _messages(value: Any, name: str, folder: str) -> list[dict]:
    """Checked messages with the paths of their media, which are there."""
    try:
        messages = [with_paths(message, folder) for message in with_parts(value)]
        check_media(messages)
    except UserInputError as error:
        raise UserInputError(f"{name}: {error}") from None
    return messages


def check_media(messages: Sequence[dict]) -> None:
    """Raises UserInputError for a medium without a file, unless it is the assistant's and a caption says what it shows."""
    for message in messages:
        for part in message["content"]:
            path, is_made = part.get("path"), message["role"] == "assistant"
            if part["type"] == "text" or (path is None and is_made and part.get("caption")):
                continue
            if not isinstance(path, str):
                also = " or a caption" if is_made else ""
                raise UserInputError(f"the {part['type']} has no path{also}; training reads files")
            if not os.path.isfile(path):  # unlike `Path.is_file`, False for names that no file can have
                raise UserInputError(f"{path}: no such file; paths start from the data file's folder")
            if type(part.get("seed", 0)) is not int:
                raise UserInputError(f"the {part['type']} has the seed {part['seed']!r}, expected a whole number")


def _ranking(record: dict) -> dict[str, Any]:
    """Who ranked, and the scores."""
    ranked_by, scores = record.get("ranked_by") or "", record.get("scores")
    if not isinstance(ranked_by, str):
        raise UserInputError(f"ranked_by is {ranked_by!r}, expected a text, as person or judge:NAME")
    if scores is not None:
        is_two = isinstance(scores, list) and len(scores) == 2
        if not is_two or not all(type(score) in (int, float) and math.isfinite(score) for score in scores):
            raise UserInputError(f"scores is {scores!r}, expected two numbers, of chosen and rejected")
        if scores[0] < scores[1]:
            raise UserInputError(f"chosen has the score {scores[0]:g}, rejected {scores[1]:g}: swap chosen and rejected")
    return {"ranked_by": ranked_by, "scores": scores and (scores[0], scores[1])}


def _said(message: dict, exactly: bool = False) -> list:
    """What a message says and shows, without where its files lie."""
    said = []
    for part in message["content"]:
        if part["type"] == "text":
            text = part["text"] if exactly else " ".join(part["text"].casefold().split())
            said += [["text", text]] if text else []
        elif part.get("path"):
            said.append([part["type"], remembered_hash(part["path"])])
        else:
            said.append([part["type"], part.get("caption"), part.get("seed")])
    return said


def _key(content: list) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=12).hexdigest()
