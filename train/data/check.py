"""Reads a whole data set, media included, as training would, and reports what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import NextGPTError
from nextgpt.hub.parts import fetch_model
from nextgpt.media import load_media
from nextgpt.modalities import MODALITIES
from nextgpt.train.data.dataset import Reader, mapper
from nextgpt.train.data.hashes import remembered_hash
from nextgpt.train.data.lines import Line, as_problem, count_lines, read_lines, with_progress
from nextgpt.train.data.lines import check_files as check_existence
from nextgpt.train.data.store import Example
from nextgpt.train.data.turns import turn_problems
from nextgpt.train.start import load_processor

KINDS = ("missing", "broken", "bad turns", "too short", "too long", "duplicate")
BAR_WIDTH = 40
HISTOGRAM_ENDS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
CHUNK = 16  # lines that a process takes at once


class Problem(NamedTuple):
    """Something wrong with an item.

    Args:
        kind: one of `KINDS`.
        where: file and line of the conversation.
        reason: for a person.
    """

    kind: str
    where: str
    reason: str


@dataclass
class DataReport:
    """What a check found.

    Args:
        conversations, media: how many were read.
        problems: in the order of the lines.
        lengths: upper end → conversations of at most so many tokens (and more than the end before); None: longer.
    """

    conversations: int = 0
    media: int = 0
    problems: list[Problem] = field(default_factory=list)
    lengths: Counter = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {
            "conversations": self.conversations,
            "media": self.media,
            "problems": [problem._asdict() for problem in self.problems],
            "lengths": {str(end or "longer"): self.lengths[end] for end in (*HISTOGRAM_ENDS, None)},
        }

    def summary(self) -> list[str]:
        """Lines for a person: the counts, and the histogram of lengths."""
        counts = Counter(problem.kind for problem in self.problems)
        found = ", ".join(f"{counts[kind]:,} {kind}" for kind in KINDS if counts[kind]) or "nothing wrong"
        lines = [f"{self.conversations:,} conversations, {self.media:,} pieces of media: {found}", "tokens:"]
        highest = max(self.lengths.values(), default=1)
        for end in (*HISTOGRAM_ENDS, None):
            if self.lengths[end]:
                label = f"≤ {end}" if end else f"> {HISTOGRAM_ENDS[-1]}"
                bar = "█" * max(1, round(self.lengths[end] / highest * BAR_WIDTH))
                lines.append(f"{label:>7}  {self.lengths[end]:>9,}  {bar}")
        return lines


class _Finding(NamedTuple):
    """The findings of one line."""

    where: str
    problems: list[Problem]
    length: int | None
    media: int
    content: bytes | None  # hash of the conversation, media by content


@dataclass
class _Checker:
    """Reads one line and its media. Travels to other processes."""

    reader: Reader
    max_length: int
    min_length: int

    def __call__(self, line: Line) -> _Finding:
        problems: list[Problem] = []

        def note(kind: str, reason: str) -> None:
            problems.append(Problem(kind, line.where, reason))

        try:
            return self._read(line, problems, note)
        except Exception as error:  # whatever a line holds, the others are checked too
            note("broken", str(as_problem(error)))
            return _Finding(line.where, problems, None, 0, None)

    def _read(self, line: Line, problems: list[Problem], note: Callable[[str, str], None]) -> _Finding:
        messages = line.messages()
        parts = [p for m in messages if isinstance(m.get("content"), list) for p in m["content"] if isinstance(p, dict)]
        named = [part for part in parts if isinstance(part.get("path"), str)]
        files = [(part["type"], part["path"]) for part in named if part.get("type") in MODALITIES]
        for modality, path in dict.fromkeys(files):
            problem = _media_problem(modality, path)
            if problem:
                note(*problem)
        length = None
        if not any(problem.kind == "missing" for problem in problems):
            length = self._check_tokens(line, note)
        if not any(problem.kind == "broken" for problem in problems):
            is_mute = any(problem.kind == "too short" for problem in problems)
            for number, problem in turn_problems(messages):
                if not (is_mute and problem == "an empty assistant turn"):  # said already
                    note("bad turns", f"message {number}: {problem}; fix it, or leave the line out")
        content = _content_hash(messages) if length is not None else None
        return _Finding(line.where, problems, length, len(files), content)

    def _check_tokens(self, line: Line, note: Callable[[str, str], None]) -> int | None:
        example = self.reader(line)
        if not isinstance(example, Example):
            note("broken", example.reason)
            return None
        length, answered = len(example.ids), sum(map(self._says_something, example.ids[example.loss_mask].tolist()))
        if length > self.max_length:
            note("too long", f"{length} tokens, at most {self.max_length} are taken; shorten or split it")
        if answered < self.min_length:
            note("too short", f"the answers have {answered} tokens, fewer than {self.min_length}; lengthen or leave it out")
        return length

    def _says_something(self, token: int) -> bool:
        processor = self.reader.processor
        is_signal = token >= processor.vocabulary.offset
        return is_signal or bool(processor.tokenizer.decode([token], skip_special_tokens=True).strip())


def check_files(
    files: Sequence[str | Path],
    model: str,
    *,
    max_length: int | None = None,
    min_length: int = 1,
    workers: int | None = None,
) -> DataReport:
    """Reads every conversation and every piece of media, in parallel.

    Args:
        files: JSON-lines files of chat messages.
        model: whose tokenizer, kinds of media and length count.
        max_length: of conversations, in tokens.
        min_length: of answers, in tokens that are more than space or the end.
        workers: processes; by default one a core, 0: this one alone.

    Raises:
        NextGPTError: a data file or the model is not there.
    """
    check_existence(files)
    location = fetch_model(model)
    config = NextGPTConfig.from_pretrained(location)
    limit = max_length or config.max_positions
    checker = _Checker(Reader(load_processor(location, config), on_bad_item="skip"), limit, min_length)
    report, first_seen = DataReport(), {}
    workers = os.cpu_count() if workers is None else workers
    with mapper(workers, CHUNK) as each:
        for finding in with_progress(each(checker, read_lines(files)), "Checking", total=count_lines(files)):
            report.conversations += 1
            report.media += finding.media
            report.problems += finding.problems
            if finding.length is not None:
                report.lengths[next((end for end in HISTOGRAM_ENDS if finding.length <= end), None)] += 1
            if finding.content is not None:
                earlier = first_seen.setdefault(finding.content, finding.where)
                if earlier != finding.where:
                    report.problems.append(Problem("duplicate", finding.where, f"the same as {earlier}; leave one out"))
    return report


@lru_cache(maxsize=4096)  # data sets show the same picture in several conversations
def _media_problem(modality: str, path: str) -> tuple[str, str] | None:
    if not os.path.isfile(path):  # unlike `Path.is_file`, False for names that no file can have
        return "missing", f"{path}: no such file; paths start from the data file's folder"
    try:
        loaded = load_media(modality, path)
    except NextGPTError as error:
        return ("too long" if "long, at most" in str(error) else "broken"), str(error)
    too_small = MODALITIES[modality].too_small
    reason = too_small(loaded) if too_small is not None else None
    return ("too short", f"{path}: {reason}") if reason else None


def _content_hash(messages: Iterable[dict]) -> bytes:
    """Of what a conversation says and shows: two files of equal content count as one."""

    def plain(part: Any) -> Any:
        if isinstance(part, dict) and isinstance(part.get("path"), str) and os.path.isfile(part["path"]):
            return part | {"path": remembered_hash(part["path"])}
        return part

    def parts(content: Any) -> Any:
        return [plain(part) for part in content] if isinstance(content, list) else content

    content = [[message["role"], parts(message["content"])] for message in messages]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).digest()
