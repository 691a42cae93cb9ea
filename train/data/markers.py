"""Puts a record's media in the places of the `<image>`, `<audio>` and `<video>` in its turns.

A marker is a place only where the record names something to stand there; `<video>` in a text about HTML is text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextgpt.modalities import MODALITIES
from nextgpt.train.data.json_records import describe

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:")
MAX_NAME = 1024  # characters; longer texts are media in base64


class Unusable(Exception):
    """A record that no conversation can be made of; the message says why."""


@dataclass(eq=False)
class Marker:
    """A place for one piece of media; `text` is how it is written, `parts` what stands there in the end."""

    modality: str
    text: str = ""
    alone: bool = False  # on the first or the last line of its turn
    parts: list[dict] = field(default_factory=list)


@dataclass
class Turn:
    """A role, and texts, markers and ready parts in order."""

    role: str
    pieces: list[str | Marker | dict]


def split_markers(role: str, text: str) -> Turn:
    """A turn of text and markers. With `</image>` after it, `<image>` is a tag of HTML."""
    if role == "system":
        return Turn(role, [text])
    pieces: list[str | Marker | dict] = []
    marker = rf"<({'|'.join(MODALITIES)})>"
    for i, piece in enumerate(re.split(marker, text)):  # text, kind, text, kind, …, text
        if i % 2 and f"</{piece}>" not in text:
            pieces.append(Marker(piece, f"<{piece}>", _is_alone(f"<{piece}>", text)))
        else:
            pieces.append(f"<{piece}>" if i % 2 else piece)
    return Turn(role, pieces)


def _is_alone(marker: str, text: str) -> bool:
    lines = text.strip().split("\n")
    return any(not line.replace(marker, "").strip() for line in (lines[0], lines[-1]))


class RecordMedia:
    """The media of one record, by side and kind.

    Args:
        folder: where they lie, or in `images`, `audios` and `videos` below it.
        start: the folder that their paths shall start from.

    Attributes:
        notes: what a person should know of how they were placed.
    """

    def __init__(self, folder: Path, start: Path):
        self.folder, self.start = folder, start
        self.inputs: dict[str, list[dict]] = {}
        self.outputs: dict[str, list[dict]] = {}
        self.notes: list[str] = []

    def add_inputs(self, modality: str, names: Any) -> None:
        """Media that the user shows: a name, or a list of them."""
        known = self.inputs.setdefault(modality, [])
        known += [{"type": modality, "path": self.locate(modality, name)[0]} for name in as_list(names)]

    def add_outputs(self, modality: str, names: Any, captions: Any) -> None:
        """Media that the assistant makes, each with what it shows."""
        names, captions = as_list(names), as_list(captions)
        if len(names) != len(captions):
            raise Unusable(f"{len(names)} output_{modality} but {len(captions)} {modality}_captions")
        known = self.outputs.setdefault(modality, [])
        known += [self.made(modality, name, caption) for name, caption in zip(names, captions, strict=True)]

    def made(self, modality: str, name: Any, caption: Any) -> dict:
        """A part of the assistant's message: its caption, and its file where it is there."""
        if not isinstance(caption, str) or not caption.strip():
            raise Unusable(f"the {modality} of the assistant has no caption, which says what it shows")
        part = {"type": modality, "caption": caption.strip()}
        path, exists = self.locate(modality, name) if name is not None else ("", False)
        if name is not None and not exists:
            self.notes.append(f"the file of the assistant's {modality} is not there; its caption is kept")
        return part | ({"path": path} if exists else {})

    def note_unread(self, keys: Iterable[str]) -> None:
        """Says of keys of the record that nothing was made of them."""
        self.notes += [f"the key {key!r} was not read" for key in sorted(keys)]

    def locate(self, modality: str, name: Any) -> tuple[str, bool]:
        """The path of a file, and whether it is there."""
        if isinstance(name, dict) and isinstance(name.get("path"), str) and not name.get("bytes"):
            name = name["path"]  # as `datasets` writes it
        if not isinstance(name, str):
            raise Unusable(f"the {modality} is {describe(name)}, expected the name of a file")
        if not name.strip():
            raise Unusable(f"the {modality} has an empty name")
        if _ADDRESS.match(name):
            raise Unusable(f"the {modality} is an address; training reads files: download it and name the file")
        if "\0" in name or len(name) > MAX_NAME:
            raise Unusable(f"the {modality} is a text that cannot be the name of a file; write it to one and name that")
        places = [self.folder / name, self.folder / MODALITIES[modality].plural / name, self.folder / modality / name]
        found = next((place for place in places if os.path.isfile(place)), None)
        return Path(os.path.relpath(found or places[0], self.start)).as_posix(), found is not None

    def place(self, turns: list[Turn]) -> None:
        """Gives every marker its media, in order.

        What more there is stands after the last marker of its kind; where there is none, the user's media come before the
        first question and the assistant's after the last answer.

        Raises:
            Unusable: markers and media do not fit together.
        """
        questions = [turn for turn in turns if turn.role == "user"]
        answers = [turn for turn in turns if turn.role == "assistant"]
        if not questions or not answers:
            raise Unusable("no question with an answer")
        if self.inputs.get("video") and not self.inputs.get("image") and not _markers(questions, "video"):
            for marker in _markers(questions, "image"):  # LLaVA's data sets of clips write <image> for them
                marker.modality = "video"
        front: list[str | Marker | dict] = []
        for modality in MODALITIES:
            asked, made = _markers(questions, modality), _markers(answers, modality)
            if made and modality not in self.outputs and len(asked) < len(self.inputs.get(modality, [])):
                raise Unusable(f"the {modality} of the assistant has no caption, which says what it shows")
            front += self._assign("user", modality, asked, self.inputs)
            answers[-1].pieces += self._assign("assistant", modality, made, self.outputs)
        questions[0].pieces[:0] = front

    def _assign(self, role: str, modality: str, markers: list[Marker], side: dict[str, list[dict]]) -> list[dict]:
        """Gives the markers their media; returns those that no marker stands for."""
        parts = side.get(modality, [])
        if not markers:
            if parts:
                self.notes.append(f"no <{modality}> of the {role} says where the {modality} belongs")
            return parts
        if not parts:
            if modality in side or any(not marker.text or role == "user" and marker.alone for marker in markers):
                raise Unusable(f"a <{modality}> of the {role} names no file")
            self.notes.append(f"a <{modality}> of the {role} names no file and was kept as text")
            return []
        if len(markers) > len(parts):
            raise Unusable(f"{len(markers)} <{modality}> of the {role} but {len(parts)} named")
        for marker, part in zip(markers, parts, strict=False):
            marker.parts = [part]
        markers[-1].parts += parts[len(markers) :]
        return []


def _markers(turns: list[Turn], modality: str) -> list[Marker]:
    return [piece for turn in turns for piece in turn.pieces if isinstance(piece, Marker) and piece.modality == modality]


def message_of(turn: Turn) -> dict:
    """A chat message; text alone stands as a string, as in a chat."""
    parts: list[dict] = []
    text = ""
    for piece in turn.pieces:
        media = [] if isinstance(piece, str) else piece.parts if isinstance(piece, Marker) else [piece]
        if not media:
            text += piece if isinstance(piece, str) else piece.text
            continue
        parts += [*_text_part(text), *media]
        text = ""
    if not parts:
        return {"role": turn.role, "content": text.strip()}
    return {"role": turn.role, "content": [*parts, *_text_part(text)]}


def _text_part(text: str) -> list[dict]:
    return [{"type": "text", "text": text.strip()}] if text.strip() else []


def as_list(value: Any) -> list:
    """A value that may stand for a list of one; None and an empty text are none."""
    return [] if value in (None, "") else value if isinstance(value, list) else [value]


def texts_of(messages: Iterable[dict]) -> list[str]:
    """Everything in messages that is tokenized: texts, and the captions of the assistant's media."""
    found = []
    for message in messages:
        found += [part[key] for part in parts_of(message["content"]) for key in ("text", "caption") if key in part]
    return found


def parts_of(content: Any) -> Any:
    """The content of a message as parts; what is neither text nor nothing is given back as it is."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []


def words_of(message: dict) -> str:
    """The texts of a message, without its media."""
    return " ".join(part["text"] for part in parts_of(message["content"]) if part["type"] == "text")


def inline_captions(piece: str | Marker | dict, media: RecordMedia) -> list[str | Marker | dict]:
    """The pieces of a text in which `<Image>caption</Image>` stands for what the assistant makes."""
    if not isinstance(piece, str):
        return [piece]
    text, *rest = inline_caption().split(piece)  # text, kind, caption, text, …
    triples = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    return [text, *(made for kind, caption, after in triples for made in (media.made(kind.lower(), None, caption), after))]


def inline_caption() -> re.Pattern:
    """`<Image>caption</Image>`, and so on: its kind and its caption."""
    return re.compile(rf"<({'|'.join(map(str.capitalize, MODALITIES))})>(.*?)</\1>", re.DOTALL)
