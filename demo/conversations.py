"""Conversations as the server keeps them: their turns and files, their ids, how long they stay, export and import."""

from __future__ import annotations

import json
import lzma
import math
import os
import secrets
import shutil
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.events import Media, Timings
from nextgpt.media import guess_modality, has_usual_suffix, load_media
from nextgpt.modalities import MODALITIES
from nextgpt.session import Session

KEEP_HOURS = 24  # after the last use
MAX_SESSIONS = 8  # conversations whose KV cache stays in memory
UNSHOWABLE = {".tif", ".tiff", ".mov", ".mkv", ".avi"}  # by a browser
MESSAGES_FILE = "messages.json"
MAX_IMPORT_BYTES = 500_000_000  # unpacked
MAX_IMPORT_FILES = 1000
# What zip files and JSON that are broken, encrypted, or packed in ways unknown here make Python raise.
NOT_AN_EXPORT = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(KeyError, ValueError, TypeError, RuntimeError, OverflowError),
)


@dataclass
class Pending:
    """A piece of media under way; `preview` is a picture as a data address, where the decoder gives one."""

    modality: str
    step: int = 0
    total: int = 0
    preview: str = ""


@dataclass
class Turn:
    """A question and its answer.

    Args:
        question, answer: parts in the chat format, media by path; those of the answer with `seed` and `seconds`.
        pending: what the answer is making at the moment.
        note: what else a person should know: an error, or why the answer ends here.
        failed: whether `note` tells of an error.
        ended: whether no more of it will come.
        timings: of an answer that was begun.
        signals: the runs of signal tokens in it: what each calls for, and its tokens.
        switched_off: kinds that it called for and that were not to be made.
        options: of its answer, as the pipeline takes them.
    """

    question: list[dict]
    answer: list[dict] = field(default_factory=list)
    pending: Pending | None = None
    note: str = ""
    failed: bool = False
    ended: bool = False
    timings: Timings | None = None
    signals: list[tuple[str, list[str]]] = field(default_factory=list)
    switched_off: list[str] = field(default_factory=list)
    options: dict = field(default_factory=dict)

    def forget_answer(self) -> None:
        """The answer goes with its files."""
        for part in media_of(self.answer):
            Path(part["path"]).unlink(missing_ok=True)
        self.answer, self.note, self.timings, self.signals, self.switched_off = [], "", None, [], []


class Conversation:
    """The turns of one tab, with the folder of their files.

    Args:
        id: the secret that opens it.
        folder: for its files only. Its name tells nothing of the id, since the addresses of media hold it.
        uploads: where the server puts what is sent in. Copies that were taken from there go with its own files.
        visitor: the secret of the browser that it belongs to, if any.

    Attributes:
        busy: whether it is being answered, changed or read; whoever does that (see `AnswerQueue`) has it alone.
    """

    def __init__(self, id: str, folder: Path, uploads: Path | None = None, visitor: str = ""):
        self.id, self.folder, self.uploads, self.visitor = id, folder, uploads, visitor
        self.turns: list[Turn] = []
        self.session: Session | None = None
        self.cancel = threading.Event()
        self.busy = False
        self.used = time.monotonic()
        self._files = 0
        self._taken: set[Path] = set()

    def messages(self) -> list[dict]:
        """In the chat format: every turn that has an answer, and the last question."""
        return as_messages(self.turns)

    def keep_file(self, path: str | Path, modality: str | None = None) -> dict:
        """Copies a file into the folder, where it is not there yet, and returns it as a part.

        What no browser shows is kept as PNG or MP4.

        Args:
            path: of the file.
            modality: what it is, where that is known.
        """
        path, modality = Path(path), modality or guess_modality(path)
        self._take(path)
        if path.parent == self.folder:
            return {"type": modality, "path": str(path)}
        if path.suffix.lower() in UNSHOWABLE or not has_usual_suffix(path, modality):  # what it holds is another kind
            kept = self._new_path(path.stem + MODALITIES[modality].suffix)
            MODALITIES[modality].save(load_media(modality, path), kept)
        else:
            kept = self._new_path(path.name)
            shutil.copyfile(path, kept)
        return {"type": modality, "path": str(kept)}

    def keep_media(self, modality: str, media: Media, seed: int, seconds: float) -> dict:
        """Saves a generated piece of media and returns it as a part."""
        path = self._new_path(f"{modality}-seed-{seed}{MODALITIES[modality].suffix}")
        MODALITIES[modality].save(media, path)
        return {"type": modality, "path": str(path), "seed": seed, "seconds": seconds}

    def truncate(self, turn: int) -> None:
        """Takes back everything from this turn on. The files of its questions stay, for they may be asked again."""
        for dropped in self.turns[turn:]:
            dropped.forget_answer()
        del self.turns[turn:]

    def clear(self) -> None:
        """Empties it, files included."""
        self.replace([])

    def replace(self, turns: list[Turn]) -> None:
        """Puts these turns, whose files are in the folder, in the place of all that was; the files of that go."""
        kept = {part["path"] for turn in turns for part in media_of([*turn.question, *turn.answer])}
        self.turns, self.session = turns, None
        for path in self.folder.iterdir():
            if str(path) not in kept:
                path.unlink()
        self._forget_uploads()

    def delete_files(self) -> None:
        """Deletes its folder with all its files; what cannot be deleted goes when the server ends."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._forget_uploads()

    def export(self) -> Path:
        """Packs `messages.json` and the media, named as in it, into a zip file in the folder; an earlier one goes."""
        for earlier in self.folder.glob("conversation-*.zip"):
            earlier.unlink()
        path = self.folder / f"conversation-{secrets.token_hex(8)}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            messages = self.messages()
            for part in _all_media(messages):
                archive.write(part["path"], Path(part["path"]).name)
            named = [message | {"content": [_named(part) for part in message["content"]]} for message in messages]
            archive.writestr(MESSAGES_FILE, json.dumps({"messages": named}, indent=2, ensure_ascii=False) + "\n")
        return path

    def unpack(self, path: str | Path) -> list[Turn]:
        """Reads the turns of an exported zip file and unpacks its media, which are checked like any upload.

        Raises:
            UserInputError: the file is not such an export, holds something else, or is too large.
        """
        name = Path(path).name
        self._take(Path(path))
        try:
            with refusing_for_visitors(self.folder), zipfile.ZipFile(path) as archive:
                _check_size(archive.infolist(), name)
                messages = _checked_messages(json.loads(archive.read(MESSAGES_FILE)))
                media = _all_media(messages)
                _check_size([archive.getinfo(part["path"]) for part in media], name)  # several may name one member
                for part in media:
                    part["path"] = self._unpack_file(archive, part)
        except UserInputError:
            raise
        except NOT_AN_EXPORT as error:
            reason = str(error) or type(error).__name__
            raise UserInputError(
                f"{name}: not an exported conversation ({reason}): expected a zip file with {MESSAGES_FILE} and its media"
            ) from None
        contents = [message["content"] for message in messages]
        return [Turn(*pair) for pair in zip_longest(contents[::2], contents[1::2], fillvalue=[])]

    def _take(self, path: Path) -> None:
        if self.uploads is not None and path.resolve().is_relative_to(self.uploads.resolve()):
            self._taken.add(path)

    def _forget_uploads(self) -> None:
        for path in self._taken:
            with suppress(OSError):  # what cannot be deleted goes with the server, like the folder
                path.unlink()
        self._taken.clear()

    def _unpack_file(self, archive: zipfile.ZipFile, part: dict) -> str:
        """Writes one member under a name of our own choice, so that no name in the archive leads anywhere."""
        path = self._new_path(part["type"] + Path(part["path"]).suffix)
        with archive.open(part["path"]) as packed, path.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        load_media(part["type"], path)
        return str(path)

    def _new_path(self, name: str) -> Path:
        self._files += 1
        return self.folder / f"{self._files}-{name}"


class Store:
    """All conversations of a server, in one temporary folder that goes when the server does.

    Args:
        new_session: makes a pipeline session.
        keep_hours: how long a conversation stays after its last use.
        uploads: where the server puts what is sent in; see `Conversation`.
    """

    def __init__(self, new_session: Callable[[], Session], keep_hours: float = KEEP_HOURS, uploads: Path | None = None):
        self.keep_hours, self.uploads = keep_hours, uploads
        self._new_session = new_session
        self._folder = tempfile.TemporaryDirectory(prefix="nextgpt-")
        self._conversations: dict[str, Conversation] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._sweep_until_closed, name="nextgpt-sweep", daemon=True).start()

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    def create(self, visitor: str = "") -> Conversation:
        """A new conversation, under an id that nobody can guess."""
        folder = self.folder / secrets.token_urlsafe(16)
        conversation = Conversation(secrets.token_urlsafe(32), folder, self.uploads, visitor)
        conversation.folder.mkdir()
        with self._lock:
            self._conversations[conversation.id] = conversation
        return conversation

    def get(self, id: str) -> Conversation:
        """The conversation of that id; asking for it counts as use.

        Raises:
            UserInputError: there is none, or no longer.
        """
        with self._lock:
            conversation = self._conversations.get(id)
            if conversation is None:
                raise UserInputError(
                    f"this conversation is not kept here (they go {self.keep_hours:g} hours after their last use): "
                    "reload the page to begin another"
                )
            conversation.used = time.monotonic()
        return conversation

    def of(self, visitor: str) -> list[Conversation]:
        """All conversations of a browser, the newest first; listing them does not count as use."""
        with self._lock:
            return [each for each in reversed(self._conversations.values()) if visitor and each.visitor == visitor]

    def delete(self, conversation: Conversation) -> None:
        """Forgets a conversation and deletes its files."""
        with self._lock:
            self._conversations.pop(conversation.id, None)
        conversation.delete_files()

    def session(self, conversation: Conversation) -> Session:
        """The conversation's session. Only the last few keep theirs: a KV cache is large."""
        if conversation.session is None:
            conversation.session = self._new_session()
        with self._lock:
            others = [each for each in self._conversations.values() if each.session and not each.busy]
        for old in sorted(others, key=lambda each: each.used)[:-MAX_SESSIONS]:
            old.session = None
        return conversation.session

    def sweep(self) -> None:
        """Deletes the conversations whose time is over, as `delete` does."""
        oldest = time.monotonic() - self.keep_hours * 3600
        with self._lock:
            over = [each for each in self._conversations.values() if each.used < oldest and not each.busy]
            for conversation in over:
                del self._conversations[conversation.id]
        for conversation in over:
            conversation.delete_files()

    def close(self) -> None:
        """Deletes everything."""
        self._closed.set()
        self._folder.cleanup()

    def _sweep_until_closed(self) -> None:
        while not self._closed.wait(60):
            self.sweep()


def as_messages(turns: Sequence[Turn]) -> list[dict]:
    """Turns in the chat format: every one that has an answer, and the last question."""
    messages = []
    for turn in turns:
        if turn.answer or turn is turns[-1]:
            messages.append({"role": "user", "content": turn.question})
        if turn.answer:
            messages.append({"role": "assistant", "content": turn.answer})
    return messages


def for_visitors(error: NextGPTError, *folders: str | Path) -> str:
    """The words of an error without the server's folders, which do not concern a visitor."""
    words = str(error)
    for folder in folders:
        words = words.replace(f"{folder}{os.sep}", "")
    return words


@contextmanager
def refusing_for_visitors(*folders: str | Path) -> Iterator[None]:
    """Refusals that pass through it lose the names of these folders."""
    try:
        yield
    except UserInputError as error:
        raise UserInputError(for_visitors(error, *folders)) from None


def media_of(parts: Iterable[dict]) -> list[dict]:
    """The parts that are not words."""
    return [part for part in parts if part["type"] != "text"]


def _all_media(messages: Iterable[dict]) -> list[dict]:
    return [part for message in messages for part in media_of(message["content"])]


def _named(part: dict) -> dict:
    return part if part["type"] == "text" else part | {"path": Path(part["path"]).name}


def _check_size(members: Sequence[zipfile.ZipInfo], name: str) -> None:
    """Checks numbers and sizes before anything is unpacked; `zipfile` reads no more of a member than it announces."""
    if len(members) > MAX_IMPORT_FILES:
        raise UserInputError(f"{name}: holds {len(members)} files, at most {MAX_IMPORT_FILES} are taken")
    if sum(member.file_size for member in members) > MAX_IMPORT_BYTES:
        raise UserInputError(f"{name}: unpacked, it is larger than {MAX_IMPORT_BYTES // 10**6} MB")


def _checked_messages(record: dict) -> list[dict]:
    """The messages of an export: user and assistant in turn, parts of text or of media by path and nothing else."""
    messages = []
    for i, message in enumerate(record["messages"]):
        expected, content = ("user", "assistant")[i % 2], message["content"]
        if message["role"] != expected:
            raise UserInputError(f"message {i} has role {message['role']!r}: expected {expected}")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not parts:
            raise UserInputError(f"message {i} is empty: expected words or media")
        messages.append({"role": expected, "content": [_checked_part(part) for part in parts]})
    return messages


def _checked_part(part: dict) -> dict:
    if part["type"] == "text":
        return {"type": "text", "text": str(part["text"])}
    if not has_usual_suffix(part["path"], part["type"]):
        raise UserInputError(f"{part['path']}: its suffix does not say {part['type']!r}")
    details = {name: kind(part[name]) for name, kind in (("seed", int), ("seconds", float)) if name in part}
    if not math.isfinite(details.get("seconds", 0)):
        raise ValueError(f"{details['seconds']} seconds")
    return {"type": part["type"], "path": part["path"], **details}
