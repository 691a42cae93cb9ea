"""The lines of JSON-lines files of chat messages, and the messages in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers.utils.logging import tqdm

from nextgpt.errors import NextGPTError, UserInputError, first_line
from nextgpt.hardware import is_out_of_memory

T = TypeVar("T")
CONVERSATION = "one conversation, and `nextgpt data convert` makes such lines"


def as_problem(error: Exception) -> NextGPTError:
    """Whatever an item raised, as something wrong with that item; a lack of memory is not, and is raised again."""
    if is_out_of_memory(error):
        raise error
    known = isinstance(error, NextGPTError)
    return error if known else UserInputError(f"cannot be read ({type(error).__name__}: {first_line(error)})")


class Line(NamedTuple):
    """One line of a data file, as it stands there."""

    source: int
    where: str
    folder: str
    content: bytes

    def record(self, is_what: str = CONVERSATION) -> Any:
        """The line's JSON.

        Args:
            is_what: what each line is, for errors.

        Raises:
            UserInputError: it is none.
        """
        try:
            return json.loads(self.content)
        except ValueError as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not valid JSON"
            raise UserInputError(f"{reason} ({error}); each line is {is_what}") from None
        except RecursionError:
            raise UserInputError(f"not valid JSON (nested too deeply); each line is {is_what}") from None

    def messages(self) -> list[dict]:
        """The conversation, with media paths resolved.

        Raises:
            UserInputError: the line is not what it should be.
        """
        record = self.record()
        messages = record.get("messages") if isinstance(record, dict) else None
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            shown = self.content.decode(errors="replace").strip()[:60]
            raise UserInputError(f'expected {{"messages": [...]}}, found {shown}; `nextgpt data convert` makes such lines')
        return [with_paths(message, self.folder) for message in messages]


def read_lines(files: Iterable[str | Path]) -> Iterator[Line]:
    """The lines of JSON-lines files that are not empty, in order."""
    for source, file in enumerate(files):
        path = Path(file)
        with path.open("rb") as lines:
            for number, content in enumerate(lines, start=1):
                if content.strip():
                    yield Line(source, f"{path}:{number}", str(path.parent), content)


def count_lines(files: Iterable[str | Path]) -> int:
    """How many lines `read_lines` gives."""
    return sum(1 for _ in read_lines(files))


def with_progress(results: Iterable[T], description: str, *, total: int) -> Iterator[T]:
    """Hands on the results of conversations under a bar of how many there are.

    Its clock begins with the first one: the processes that make them take seconds to start, and an estimate made of that
    is of days.
    """
    with tqdm(desc=description, total=total, unit=" conversations") as bar:
        for number, result in enumerate(results):
            if number == 0:
                bar.unpause()
            yield result
            bar.update()


def check_files(files: Iterable[str | Path]) -> None:
    """Raises UserInputError for a data file that is not there or cannot be read."""
    for file in files:
        if os.path.isdir(file):
            raise UserInputError(f"{file}: a folder; expected a JSON-lines file, name the one in it")
        if not os.path.isfile(file):  # unlike `Path.is_file`, False for names that no file can have
            raise UserInputError(f"{file}: no such file; expected a JSON-lines file")
        try:
            with open(file, "rb") as opened:
                opened.read(1)
        except OSError as error:
            reason = error.strerror or error
            raise UserInputError(f"{file}: cannot be read ({reason}); expected a JSON-lines file") from None


def has_path(part: Any) -> bool:
    """Whether a part of a message has the path of a file, and no address."""
    return isinstance(part, dict) and isinstance(part.get("path"), str) and "://" not in part["path"]


def with_paths(message: dict, folder: str | Path) -> dict:
    """A message whose media paths start from a folder, with paths that do not."""
    content = message.get("content")
    if not isinstance(content, list):
        return message  # text, or something that the processor will refuse

    def resolved(part: Any) -> Any:
        if has_path(part):
            return part | {"path": os.path.normpath(Path(folder) / part["path"])}
        return part

    return message | {"content": [resolved(part) for part in content]}
