"""What was asked of a teacher and what it answered, a line each, beside the result. Nothing counts before it stands there.

The first line says what the run was begun with. Every other line is one request that was sent:

    {"key": …, "job": 3, "step": "evol_gain", "request": {…}, "answer": "…", "finish_reason": "stop", "tokens": 210}

with `problem` in place of `answer` where the teacher refuses this request for good, and with `failed` where the request was
sent and has to be sent again.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

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
    """The record of a run, opened to go on.

    A last line that was cut off in the middle is cut off whole: its answer never counted.

    Args:
        file: is made where it is not there.
        settings: what decides on the requests; a run goes on with what it was begun with.

    Attributes:
        answers: key → what was answered.
        requests, tokens: that all runs together have used.

    Raises:
        UserInputError: the file holds something else, or was begun with other settings.
    """

    def __init__(self, file: Path, settings: dict[str, Any]):
        self.file = file
        self.answers: dict[str, dict[str, Any]] = {}
        self.requests = self.tokens = 0
        try:
            begun, end = self._read()
            file.parent.mkdir(parents=True, exist_ok=True)
            self._lines = file.open("ab", buffering=0)  # a line that is written is with the system, whatever happens to us
            if os.path.isfile(file) and file.stat().st_size > end:
                os.truncate(file, end)
        except OSError as error:
            reason = error.strerror or error
            raise UserInputError(f"{file}: cannot be opened ({reason}); name another file with -o") from None
        self._end = end
        if begun != settings and not self.answers:  # nothing is lost by beginning anew
            if end:
                os.truncate(file, 0)
            self.requests = self._end = 0
            self._write({"run": settings})
            return
        for name in sorted(begun.keys() | settings.keys()):
            if begun.get(name) != settings.get(name):
                self.close()
                raise UserInputError(
                    f"{file}: was begun with {name.replace('_', ' ')} {begun.get(name)}, now it is {settings.get(name)}; "
                    "give the same, or name another file with -o"
                )

    def _read(self) -> tuple[dict[str, Any] | None, int]:
        """The settings that the run was begun with, and where its last whole line ends."""
        begun, end = None, 0
        if not self.file.exists():
            return begun, end
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
                        else f"{self.file}: holds something else than a record of requests; name another file with -o"
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

    def close(self) -> None:
        """Ends writing."""
        self._lines.close()
