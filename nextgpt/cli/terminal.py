"""Conversation in a terminal: prints an answer as it comes, saves its media, and leads a chat."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from nextgpt.cli.status_line import StatusLine
from nextgpt.errors import ConversationTooLong, NextGPTError, UserInputError
from nextgpt.events import Event, MediaDone, MediaProgress, MediaStarted, Reply, TextDelta, not_made
from nextgpt.media import load_any_media, shortened
from nextgpt.media.text import listed, whole_characters
from nextgpt.modalities import MODALITIES
from nextgpt.pipeline import NextGPTPipeline

HELP = """\
Write a message and press Enter. Files go with the next message:
  /attach FILE   attach a picture, a sound or a clip (again for more)
  /detach        leave out what was attached
  /reset         forget the conversation and the attached files
  /help          show this
  /quit          leave (so does Ctrl-D)
Ctrl-C stops an answer (twice: at once); at the prompt, press it twice to leave."""


def check_folder(folder: Path, option: str = "--out") -> None:
    """Checks, before any model loads, that files can be saved in `folder`; it is made when it is needed.

    Raises:
        UserInputError: a file bears its name or that of a folder above it, or nothing may be written there.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not os.path.isdir(there):
        raise UserInputError(f"{there}: is a file, expected a folder; give another with {option}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserInputError(f"{folder}: nothing may be written in {there}; give another folder with {option}")


class AnswerPrinter:
    """Writes the events of an answer to standard output, and its media to a folder.

    Args:
        folder: for the media; made with the first of them. Files that are there already are never overwritten.
        quiet: save the media, but write nothing.

    Attributes:
        files: what was saved, in order.
    """

    def __init__(self, folder: Path, quiet: bool = False):
        self.folder, self.quiet = folder, quiet
        self.status = StatusLine(enabled=not quiet)
        self.files: list[Path] = []
        self.in_line = False

    def print(self, events: Iterable[Event]) -> Reply:
        """Writes everything and returns the finished reply."""
        try:
            for event in events:
                self._show(event)
        finally:
            self.status.clear()
            self._end_line()
        if event.reply.switched_off:  # the last one is `Finished`
            self._write(f"({not_made(event.reply.switched_off)})\n")
        return event.reply

    def _show(self, event: Event) -> None:
        match event:
            case TextDelta(text):
                self._write(text if self.in_line else text.lstrip())
            case MediaStarted(modality=modality):
                self._end_line()
                self.status.show(f"making the {modality} …")
            case MediaProgress(modality=modality, step=step, total=total):
                self.status.show(f"making the {modality}: step {step} of {total}")
            case MediaDone():
                self._save(event)

    def _save(self, done: MediaDone) -> None:
        path = self.folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = _new_file(self.folder, done.modality)
            with _removed_on_error(path):
                MODALITIES[done.modality].save(done.media, path)
        except OSError as error:
            raise UserInputError(f"{path}: could not be written ({error.strerror or error}); give another folder") from None
        self.files.append(path)
        self._write(f"{path} (seed {done.seed}, {done.seconds:.1f} s)\n")

    def _write(self, text: str) -> None:
        if text and not self.quiet:
            self.status.clear()
            sys.stdout.write(text)
            sys.stdout.flush()
            self.in_line = not text.endswith("\n")

    def _end_line(self) -> None:
        if self.in_line:
            self._write("\n")


class Chat:
    """A conversation, line by line, from a terminal or from any other standard input.

    Args:
        pipeline: what answers.
        folder: for the media.
        options: of every answer, as the pipeline takes them.
    """

    def __init__(self, pipeline: NextGPTPipeline, folder: Path, options: dict):
        self.pipeline, self.folder, self.options = pipeline, folder, options
        self.is_interactive = sys.stdin.isatty()
        if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are not UTF-8 are legal in names of files
            sys.stdin.reconfigure(errors="surrogateescape")
        self.commands = {"/attach": self.attach, "/detach": self.detach, "/help": self.help, "/reset": self.reset}
        self._start_afresh()

    def reset(self, argument: str = "") -> None:
        """Forgets the conversation and the attached files, and says so."""
        self._start_afresh()
        self._say("The conversation and what was attached are forgotten.")

    def _start_afresh(self) -> None:
        self.messages: list[dict] = []
        self.attached: list[dict] = []
        self.session = self.pipeline.new_session()

    def help(self, argument: str = "") -> None:
        """Says what can be typed."""
        self._say(HELP)

    def attach(self, argument: str) -> None:
        """Checks a file and keeps it for the next message."""
        try:
            paths = [argument] if os.path.isfile(os.path.expanduser(argument)) else shlex.split(argument)
        except ValueError:
            raise UserInputError(f"/attach {argument}: a quotation mark is not closed") from None
        if not paths:
            raise UserInputError("/attach takes one file: /attach PATH")
        path = paths[0] if len(paths) == 1 else argument
        modality, media = load_any_media(path)
        if modality not in self.pipeline.input_modalities:
            taken = listed([kind for kind in self.pipeline.input_modalities if kind != "text"], "or")
            raise UserInputError(f"{shortened(path)}: the model takes no {modality}; attach {taken or 'nothing'}")
        # What was read is kept, so that a file that goes away later does not break the conversation.
        self.attached.append({"type": modality, modality: media})
        self._say(f"attached {modality} {shortened(path)}; it goes with your next message")

    def detach(self, argument: str = "") -> None:
        """Forgets the attached files alone."""
        self.attached = []
        self._say("Nothing is attached.")

    def run(self) -> None:
        """Leads the conversation until its end.

        Raises:
            NextGPTError: something a user can fix, where standard input is not a terminal; in a terminal it is shown
                and the conversation goes on.
        """
        if self.is_interactive:
            with suppress(ImportError):  # absent on some systems
                import readline  # noqa: F401  `input` then edits lines and recalls earlier ones; any length, paste included
            self._say("Write a message, or /help.")
        for line in self._lines():
            if line in ("/quit", "/exit"):
                return
            try:
                self._take(line)
            except NextGPTError as error:
                if not self.is_interactive:
                    raise
                hint = ", or begin anew with /reset" if isinstance(error, ConversationTooLong) else ""
                self._say(f"error: {error}{hint}")

    def _take(self, line: str) -> None:
        word, _, argument = line.partition(" ")
        if not line.startswith("/"):
            self._answer(line)
        elif word in self.commands:
            try:
                self.commands[word](argument.strip())
            except KeyboardInterrupt:
                if not self.is_interactive:
                    raise
                self._say("\n(stopped)")
        else:
            raise UserInputError(f"there is no command {word}; /help lists them")

    def _answer(self, text: str) -> None:
        words = {"type": "text", "text": whole_characters(text)}  # a slip of the keyboard shall not end a chat
        question = {"role": "user", "content": [*self.attached, words]}
        cancel = threading.Event()
        events = self.pipeline.stream([*self.messages, question], session=self.session, cancel=cancel, **self.options)
        with _interrupt_sets(cancel):
            reply = AnswerPrinter(self.folder).print(events)
        if cancel.is_set():
            self._say("(stopped)")
        if reply.message["content"]:
            self.messages += [question, reply.message]
            self.attached = []

    def _lines(self) -> Iterator[str]:
        """Lines that are not empty, without the white space around them."""
        interrupted = False
        while True:
            try:
                line = input("> " if self.is_interactive else "").strip()
            except EOFError:
                if self.is_interactive:
                    self._say("")  # what comes next begins a line of its own
                return
            except KeyboardInterrupt:
                if interrupted or not self.is_interactive:
                    raise
                interrupted = True
                self._say("\n(Ctrl-C again, or /quit, to leave)")
                continue
            interrupted = False
            if line:
                yield line

    def _say(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


@contextmanager
def _interrupt_sets(cancel: threading.Event) -> Iterator[None]:
    """Ctrl-C sets `cancel`; a second one interrupts as usual."""

    def handle(number, frame):
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _new_file(folder: Path, modality: str) -> Path:
    """An empty file under the first name that nobody else has, not even one who asks at the same moment."""
    for number in count(1):
        path = folder / f"{modality}-{number:03d}{MODALITIES[modality].suffix}"
        with suppress(FileExistsError):
            path.touch(exist_ok=False)
            return path


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    """Nothing half-written stays."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
