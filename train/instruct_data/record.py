"""What was asked of a teacher and what it answered, a line each, beside the result. Nothing counts before it stands there.

The first line says what the run was begun with. Every other line is one request that was sent:

    {"key": …, "job": 3, "step": "evol_gain", "request": {…}, "answer": "…", "finish_reason": "stop", "tokens": 210}

with `problem` in place of `answer` where the teacher refuses this request for good, and with `failed` where the request was
sent and has to be sent again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.train.data.files import json_line

KEPT = "answer", "problem", "finish_reason"


class Stopped(NextGPTError):
    """The run cannot go on; what was answered is kept, and the same command goes on from there."""


def key_of(job: int, request: dict[str, Any]) -> str:
    """The name of a request of a job in the record."""
    content = json.dumps([job, request], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Record:
    """The record of a run, opened to go on. One process has it at a time.

    A last line that was cut off in the middle is cut off whole: its answer never counted.

    Args:
        file: is made where it is not there.
        other: what to name in place of it where it cannot be had, for errors.

    Attributes:
        answers: key → what was answered.
        requests, tokens: that all runs together have used.

    Raises:
        UserInputError: the file holds something else, cannot be opened, or another run has it.
    """

    def __init__(self, file: Path, other: str = "another file with -o"):
        self.file, self.other = file, other
        self.answers: dict[str, dict[str, Any]] = {}
        self.requests = self.tokens = 0
        with ExitStack() as opened:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                # Without a buffer: a line that is written is with the system, whatever happens to us.
                self._lines = opened.enter_context(file.open("ab", buffering=0))
                _lock(self._lines)
                self._begun, self._end = self._read()
                if os.path.isfile(file) and file.stat().st_size > self._end:
                    os.truncate(file, self._end)
            except BlockingIOError:
                raise UserInputError(f"{file}: another run is at work on it; wait for its end, or name {other}") from None
            except OSError as error:
                raise UserInputError(f"{file}: cannot be opened ({error.strerror or error}); name {other}") from None
            opened.pop_all()

    def begin(self, settings: dict[str, Any]) -> None:
        """Goes on with the settings that the run was begun with, or begins anew where nothing would be lost by it.

        Args:
            settings: what decides on the requests.

        Raises:
            UserInputError: the answers in the record are those to other settings.
        """
        if self._begun != settings and not self.answers:
            if self._end:
                os.truncate(self.file, 0)
            self.requests = self._end = 0
            self._write({"run": settings})
            return
        for name in sorted(self._begun.keys() | settings.keys()):
            if self._begun.get(name) != settings.get(name):
                raise UserInputError(
                    f"{self.file}: was begun with {name.replace('_', ' ')} {self._begun.get(name)}, "
                    f"now it is {settings.get(name)}; give the same, or name {self.other}"
                )

    def _read(self) -> tuple[dict[str, Any] | None, int]:
        """The settings that the run was begun with, and where its last whole line ends."""
        begun, end = None, 0
        with self.file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                try:
                    entry = json.loads(line)
                    if number == 1:
                        begun = dict(entry["run"])
                    else:
                        self._count(entry)
                except (ValueError, TypeError, KeyError):
                    raise UserInputError(
                        f"{self.file}:{number}: not a line of a record of requests; delete the line, and it is asked again"
                        if begun is not None
                        else f"{self.file}: holds something else than a record of requests; name {self.other}"
                    ) from None
        return begun, end

    def add(self, entry: dict[str, Any]) -> None:
        """Writes a request that was sent; it counts from then on.

        Raises:
            Stopped: it cannot be written.
        """
        self._write(entry)
        self._count(entry)

    def _count(self, entry: dict[str, Any]) -> None:
        self.requests += 1
        self.tokens += entry.get("tokens", 0)
        if "failed" not in entry:
            self.answers[entry["key"]] = {name: entry.get(name) for name in KEPT}

    def _write(self, entry: dict[str, Any]) -> None:
        line = memoryview(json_line(entry))
        length = len(line)
        try:
            while line:
                line = line[self._lines.write(line) :]
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.file, self._end)
            raise Stopped(
                f"{self.file}: cannot be written ({error.strerror or error}); make room and give the same command again: "
                "what was answered before is kept"
            ) from None
        self._end += length

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()


def _lock(file: BinaryIO) -> None:
    """Takes a file for this process until it is closed, or raises BlockingIOError. Not on Windows."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # file systems over a network may have no locks
            raise
