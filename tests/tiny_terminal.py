"""A terminal for tests: runs a command on a pseudo-terminal, types into it, and shows the screen as a person sees it.

It understands what the command line and readline write: carriage return, line feed, backspace, bell, clearing the rest of a
line, moving the cursor within it; anything else is an error, so that nothing is overlooked.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from pathlib import Path

ESCAPE = re.compile(r"\x1b\[(?P<arguments>[?0-9;]*)(?P<command>[A-Za-z])")
PROMPT = r"(^|\n)(\x1b\[\?2004h)?> $"
IGNORED = {"h", "l", "m"}  # modes (bracketed paste) and colours change no character


class Screen:
    """Characters by row and column; `text` is what stands there, without the white space at the ends.

    Args:
        columns: how wide it is; what is longer goes on in the next row.
    """

    def __init__(self, columns: int = 80):
        self.columns, self.rows, self.row, self.column = columns, [[]], 0, 0

    @property
    def text(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self.rows).rstrip("\n")

    def write(self, written: str) -> None:
        """Puts characters and obeys control sequences."""
        position = 0
        while position < len(written):
            escape = ESCAPE.match(written, position)
            if escape:
                self._obey(escape["command"], escape["arguments"])
                position = escape.end()
            else:
                self._put(written[position])
                position += 1

    def _put(self, character: str) -> None:
        match character:
            case "\r":
                self.column = 0
            case "\n":
                self._down()
            case "\b":
                self.column = max(min(self.column, self.columns - 1) - 1, 0)
            case "\a":
                pass
            case _:
                assert character.isprintable() or character == "\t", f"the screen does not know {character!r}"
                if self.column == self.columns:  # it wraps when there is something to put into the next row
                    self.column = 0
                    self._down()
                row = self.rows[self.row]
                row += " " * (self.column + 1 - len(row))
                row[self.column] = character
                self.column += 1

    def _down(self) -> None:
        self.row += 1
        while len(self.rows) <= self.row:
            self.rows.append([])

    def _obey(self, command: str, arguments: str) -> None:
        match command, arguments:
            case "K", "" | "0":
                del self.rows[self.row][self.column :]
            case "J", "" | "0":
                del self.rows[self.row][self.column :]
                del self.rows[self.row + 1 :]
            case "A", _:
                self.row = max(self.row - int(arguments or 1), 0)
            case "C", _:
                self.column = min(self.column + int(arguments or 1), self.columns - 1)
            case "D", _:
                self.column = max(self.column - int(arguments or 1), 0)
            case command, _ if command not in IGNORED:
                raise AssertionError(f"the screen does not know the control sequence {arguments}{command}")


class Terminal:
    """A command that runs on a pseudo-terminal of its own.

    Args:
        command: to run.
        folder: to run it in.
        columns: of the screen.
        environment: beside the test's own.

    Attributes:
        raw: all that it has written.
    """

    def __init__(self, command: Sequence[str], folder: Path, columns: int = 80, **environment: str):
        self.raw, self.columns = "", columns
        self._bytes, self._seen = b"", 0
        self._end, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1", **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            preexec_fn=_own_terminal,
        )
        os.close(theirs)

    def close(self) -> None:
        """Ends the command, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._end)

    @property
    def shown(self) -> str:
        """What stands on the screen."""
        screen = Screen(self.columns)
        screen.write(self.raw)
        return screen.text

    def type(self, text: str) -> None:
        """Types `text` (`\\r` is Enter, `\\x03` Ctrl-C, `\\x04` Ctrl-D)."""
        typed = text.encode()
        while typed:
            readable, writable, _ = select.select([self._end], [self._end], [])
            if readable:  # the echo; unread, it would fill the line and stop both sides
                self._read(0)
            elif writable:
                typed = typed[os.write(self._end, typed[:256]) :]

    def interrupt_prompt(self) -> None:
        """Types Ctrl-C at a prompt. Python misses a signal in the instant between the prompt and its wait for input."""
        time.sleep(1)
        self.type("\x03")

    def prompt(self) -> None:
        """Waits until the chat asks for the next message."""
        self.wait_for(PROMPT)

    def wait_for(self, expected: str, seconds: float = 60) -> None:
        """Reads on until `expected` (a regular expression) matches what was written since the last call."""
        start = self._seen
        while not (found := re.search(expected, self.raw[start:])):
            if not self._read(seconds):
                raise AssertionError(
                    f"{expected!r} did not come; the screen:\n{self.shown}\n(written: {self.raw[start:]!r})"
                )
        self._seen = start + found.end()

    def finish(self, seconds: float = 60) -> int:
        """Reads to the end; the exit code."""
        while self._read(seconds):
            pass
        return self.process.wait(seconds)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._end], [], [], seconds)
        try:
            got = os.read(self._end, 65536) if ready else b""
        except OSError:  # the other end is closed
            got = b""
        self._bytes += got
        self.raw = self._bytes.decode(errors="ignore")
        return bool(got)


def _own_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background has it ignored, and hands that on
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
