"""What a run begins with: the prompts, the seed tasks, and the user's media with their captions."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from nextgpt.errors import UserInputError, did_you_mean
from nextgpt.media.text import whole_characters
from nextgpt.modalities import MODALITIES
from nextgpt.train.data.json_records import Record, read_records
from nextgpt.train.data.markers import RecordMedia, Unusable, parts_of
from nextgpt.train.instruct_data.jobs import Task, mark
from nextgpt.train.instruct_data.rules import words

FOLDER = Path(__file__).parent
PROMPTS, SEEDS = FOLDER / "prompts", FOLDER / "seeds.jsonl"
TOPICS = "topics"  # a list, a line each; the other files of the folder are prompts
FITS = 0.5  # similarity from which a caption of the set stands for what a teacher asks to show


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserInputError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


class Prompts:
    """The texts that a teacher is asked with. `${name}` is a place that is filled; `$$` is a dollar sign.

    Args:
        folder: a user's own, in place of those of the same name here; None: none.

    Raises:
        UserInputError: a file there has another name or other places than ours.
    """

    def __init__(self, folder: Path | None = None):
        self._texts = {file.stem: _read(file) for file in sorted(PROMPTS.glob("*.txt"))}
        if folder is not None and not folder.is_dir():
            raise UserInputError(f"--prompts {folder}: no such folder; copy {PROMPTS} there and change what you like")
        for file in sorted(folder.glob("*.txt")) if folder is not None else ():
            if file.stem not in self._texts:
                raise UserInputError(f"{file}: no prompt has this name; {did_you_mean(file.stem, self._texts)}")
            text, ours = Template(_read(file)), Template(self._texts[file.stem])
            if file.stem == TOPICS:
                if not text.template.strip():
                    raise UserInputError(f"{file}: holds no topics; expected one a line")
            elif not text.is_valid() or set(text.get_identifiers()) != set(ours.get_identifiers()):
                places = ", ".join(f"${{{name}}}" for name in ours.get_identifiers())
                raise UserInputError(f"{file}: expected the places {places}, each at least once, and $$ for a dollar sign")
            self._texts[file.stem] = text.template

    @property
    def topics(self) -> list[str]:
        """What dialogues are about."""
        return [line.strip() for line in self._texts[TOPICS].splitlines() if line.strip()]

    def text(self, name: str) -> str:
        """A prompt with its places open."""
        return self._texts[name]

    def fill(self, name: str, **values: object) -> str:
        """A prompt with its places filled. Half characters, which cannot be sent, become U+FFFD."""
        return whole_characters(Template(self._texts[name]).substitute(values).strip())

    def fingerprint(self) -> str:
        """Changes with any of the texts."""
        return fingerprint(self._texts)


def fingerprint(content: Any) -> str:
    """A short name of plain data."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=6).hexdigest()


# ---------------------------------------------------------------------- the user's media


@dataclass(frozen=True)
class Medium:
    """One of the user's files: its kind, its caption, and its path from the result's folder."""

    kind: str
    caption: str
    path: str


class CaptionedMedia:
    """The media that a user has, found by what they show.

    Args:
        media: of any kinds.
    """

    def __init__(self, media: Sequence[Medium] = ()):
        self.media = list(dict.fromkeys(media))
        listed = [words(medium.caption) for medium in self.media]
        pairs = zip(self.media, listed, strict=True)
        self._exact = {(medium.kind, *sorted(own)): medium for medium, own in reversed(list(pairs))}
        self._words = [frozenset(own) for own in listed]
        self._counts = Counter(word for own in self._words for word in own)

    def find(self, kind: str, caption: str, exactly: bool = False) -> Medium | None:
        """The medium of this kind whose caption is most like this one; None where none is like it.

        Args:
            exactly: take only one of the same words.
        """
        wanted = words(caption)
        same = self._exact.get((kind, *sorted(wanted)))
        if exactly or same is not None:
            return same
        asked, best, highest = frozenset(wanted), None, 0.0
        for medium, own in zip(self.media, self._words, strict=True):
            if medium.kind == kind and (common := asked & own):
                # cosine of the words' weights
                score = self._weight(common) / math.sqrt(self._weight(asked) * self._weight(own))
                best, highest = (medium, score) if score > highest else (best, highest)
        return best if highest >= FITS else None

    def _weight(self, some: Iterable[str]) -> float:
        """How much words say: rare ones say more (squared inverse document frequency)."""
        return sum(math.log((len(self.media) + 2) / (self._counts[word] + 1)) ** 2 for word in some)

    def fingerprint(self) -> str:
        """Changes with any of them."""
        return fingerprint([[medium.kind, medium.caption, medium.path] for medium in self.media])


def read_captions(file: Path, start: Path) -> list[Medium]:
    """Media of a file of captions: records of `caption` beside `image_name`, `audio_name` or `video_name`, as those of the
    original NExT-GPT. The files lie beside it, or in `images`, `audios` and `videos` there.

    Args:
        start: the folder that paths shall start from.

    Raises:
        UserInputError: a record is of another form, or its file is not there.
    """
    return [_medium(record, file, start) for record in read_records(file, is_record=lambda value: "caption" in value)]


def _medium(record: Record, file: Path, start: Path) -> Medium:
    value = record.value or {}
    kinds = [kind for kind in MODALITIES if f"{kind}_name" in value]
    caption = value.get("caption")
    if record.problem or len(kinds) != 1 or not isinstance(caption, str) or not caption.strip():
        names = ", ".join(f"{kind}_name" for kind in MODALITIES)
        raise UserInputError(f"{record.where}: {record.problem or f'expected a caption and one of {names}'}")
    try:
        path, is_there = RecordMedia(file.parent, start).locate(kinds[0], value[f"{kinds[0]}_name"])
    except Unusable as problem:
        raise UserInputError(f"{record.where}: {problem}") from None
    if not is_there:
        name = value[f"{kinds[0]}_name"]
        raise UserInputError(f"{record.where}: no file {name} beside it or in {file.parent / MODALITIES[kinds[0]].plural}")
    return Medium(kinds[0], " ".join(caption.split()), path)


# ---------------------------------------------------------------------- seeds


def read_seeds(file: Path, known: Sequence[Medium], start: Path) -> tuple[list[Task], list[Medium]]:
    """Tasks to begin with: records of an `instruction` and its `input` (and `is_classification`), as Alpaca's, or of
    `messages`, of which the first question is taken.

    Args:
        known: media whose captions are known; others in questions have a `caption` of their own.
        start: the folder that paths shall start from.

    Returns:
        The tasks, with media by caption, and the media in them.

    Raises:
        UserInputError: a record is of another form, or a medium has no caption or no file.
    """
    captions = {os.path.normpath(start / medium.path): medium.caption for medium in known}
    tasks, media = [], []
    for record in read_records(file, is_record=lambda value: bool({"instruction", "messages"} & set(value))):
        value = record.value or {}
        if not isinstance(value.get("messages"), list):
            tasks.append(Task(_instruction(record), is_classification=bool(value.get("is_classification"))))
            continue
        asked = (each.get("content") for each in value["messages"] if isinstance(each, dict) and each.get("role") == "user")
        parts = parts_of(next(asked, None))
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise UserInputError(f"{record.where}: expected a text, or a list of parts, as a question")
        texts = []
        for part in parts:
            if part.get("type") in MODALITIES:
                media.append(_shown(part, record.where, file.parent, start, captions))
                texts.append(mark(part["type"], media[-1].caption))
            else:
                texts.append(str(part.get("text") or "").strip())
        if not any(texts):
            raise UserInputError(f"{record.where}: no question; expected a user's turn with words")
        tasks.append(Task("\n".join(filter(None, texts))))
    return tasks, media


def _shown(part: dict, where: str, folder: Path, start: Path, captions: Mapping[str, str]) -> Medium:
    """A medium of a question: its file lies beside the seeds, its caption stands in it or is known."""
    name = part.get("path")
    path = os.path.normpath(folder / str(name))
    if not os.path.isfile(path):
        raise UserInputError(f"{where}: no file {name}, expected {MODALITIES[part['type']].article} at its `path`")
    caption = part.get("caption") or captions.get(path)
    if not isinstance(caption, str) or not caption.strip():
        raise UserInputError(f"{where}: {name} has no caption, by which a teacher would know it; see --media")
    return Medium(part["type"], " ".join(caption.split()), Path(os.path.relpath(path, start)).as_posix())


def _instruction(record: Record) -> str:
    value = record.value or {}
    texts = [value.get("instruction"), value.get("input") or ""]
    if record.problem or not all(isinstance(text, str) for text in texts) or not texts[0].strip():
        raise UserInputError(f"{record.where}: {record.problem or 'expected an instruction (and its input), or messages'}")
    return "\n\n".join(filter(None, map(str.strip, texts)))
