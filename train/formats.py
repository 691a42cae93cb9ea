"""Brings other projects' data to JSON lines of chat messages (see `nextgpt.train.data`). Reads no media.

What is known, by its keys:

- `captions`: `caption` beside `image_name`, `audio_name` or `video_name` (CC3M, AudioCaps, WebVid as the original
  NExT-GPT ships them);
- `nextgpt`: `input_<kind>` and `output_<kind>` with `<kind>_captions` (a name or a list) beside `conversations`, where
  `<image>`, `<audio>` and `<video>` mark the places, in any number of turns (comprehension, generation, T2M, MosIT);
- `llava`: `image` (or `audio`, `video`) beside `conversations`;
- `alpaca`: `instruction`, `input`, `output`;
- `sharegpt`: `conversations` alone.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils.logging import tqdm

from nextgpt.errors import UserInputError
from nextgpt.signals import MODALITIES

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
MARKER = re.compile(rf"<({'|'.join(MODALITIES)})>")
NAMES = {"image": "an image", "audio": "a sound", "video": "a video"}


@dataclass
class ConversionReport:
    """What became of the records.

    Args:
        conversations: that were written.
        left_out: reason → records.
    """

    conversations: int = 0
    left_out: Counter = field(default_factory=Counter)


class _Unusable(Exception):
    """A record that no conversation can be made of; the message says why."""


class _Media:
    """The media of one record: each is taken once, in order, where a marker stands."""

    def __init__(self, locate: Callable[[str, str], tuple[str, bool]]):
        self.locate = locate
        self.inputs: dict[str, list[dict]] = {modality: [] for modality in MODALITIES}
        self.outputs: dict[str, list[dict]] = {modality: [] for modality in MODALITIES}

    def add_inputs(self, modality: str, names: Any) -> None:
        for name in _as_list(names):
            self.inputs[modality].append({"type": modality, "path": self.locate(modality, name)[0]})

    def add_outputs(self, modality: str, names: Any, captions: Any) -> None:
        names, captions = _as_list(names), _as_list(captions)
        if len(names) != len(captions):
            raise _Unusable(f"{len(names)} output_{modality} but {len(captions)} {modality}_captions")
        for name, caption in zip(names, captions, strict=True):
            path, exists = self.locate(modality, name)
            part = {"type": modality, "caption": caption.strip()}
            self.outputs[modality].append(part | ({"path": path} if exists else {}))

    def take(self, role: str, modality: str) -> dict:
        waiting = (self.outputs if role == "assistant" else self.inputs)[modality]
        if not waiting:
            raise _Unusable(f"a <{modality}> of the {role} names no file")
        return waiting.pop(0)

    def rest(self, side: str) -> list[dict]:
        """What no marker stood for."""
        return [part for parts in getattr(self, side).values() for part in parts]


def convert_files(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    format: str = "auto",
    media_folder: str | Path | None = None,
    task: str = "encoders",
) -> ConversionReport:
    """Writes the conversations of `files` to one JSON-lines file, with paths relative to it.

    Args:
        files: JSON (a list of records) or JSON lines.
        format: one of `FORMATS`, or `auto` to tell it by the first record of each file.
        media_folder: where the media lie, or in `images`, `audios` and `videos` below it; by default beside the file.
        task: what `captions` become: `encoders`, a question about the media; `decoders`, a wish for them.

    Raises:
        UserInputError: a file cannot be read, or its format is none of these.
    """
    out, report = Path(out), ConversionReport()
    if format != "auto" and format not in FORMATS:
        raise UserInputError(f"format {format!r} is unknown: expected auto, {', '.join(FORMATS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(out.name + ".tmp")
    with beside.open("w", encoding="utf-8") as lines:
        for file in map(Path, files):
            records = list(_records(file))
            kind = _format_of(records[0], file) if format == "auto" else format
            locate = _locator(Path(media_folder or file.parent), out.parent)
            for record in tqdm(records, desc=file.name, unit=" records"):
                try:
                    messages = FORMATS[kind](record, _Media(locate), task)
                except _Unusable as reason:
                    report.left_out[str(reason)] += 1
                    continue
                except (KeyError, TypeError, AttributeError) as error:
                    report.left_out[f"not of the {kind} format ({type(error).__name__}: {error})"] += 1
                    continue
                lines.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
                report.conversations += 1
    if not report.conversations:
        beside.unlink()
        reasons = "; ".join(f"{count}: {reason}" for reason, count in report.left_out.items())
        raise UserInputError(f"{', '.join(map(str, files))}: no conversation could be made of it ({reasons})")
    os.replace(beside, out)
    return report


def _records(file: Path) -> Iterator[dict]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserInputError(f"{file}: cannot be read ({error}); give a JSON or JSON-lines file") from None
    try:
        if text.lstrip().startswith("["):
            records = json.loads(text)
        else:
            records = [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise UserInputError(f"{file}: not valid JSON ({error}); expected a list of records or one record a line") from None
    if not records or not isinstance(records[0], dict):
        raise UserInputError(f"{file}: holds no records; expected a list of JSON objects")
    yield from records


def _format_of(record: dict, file: Path) -> str:
    keys = set(record)
    if any(f"{side}_{modality}" in keys for side in ("input", "output") for modality in MODALITIES):
        return "nextgpt"
    if "caption" in keys and any(f"{modality}_name" in keys for modality in MODALITIES):
        return "captions"
    if {"instruction", "output"} <= keys:
        return "alpaca"
    if "conversations" in keys:
        return "llava" if keys & set(MODALITIES) else "sharegpt"
    raise UserInputError(f"{file}: no known format has the keys {', '.join(sorted(keys))}; name it with --format")


def _locator(folder: Path, start: Path) -> Callable[[str, str], tuple[str, bool]]:
    """(kind, name) → the path from `start`, and whether a file is there."""

    def locate(modality: str, name: str) -> tuple[str, bool]:
        places = [folder / name, folder / f"{modality}s" / name, folder / modality / name]
        found = next((place for place in places if place.is_file()), None)
        return Path(os.path.relpath(found or places[0], start)).as_posix(), found is not None

    return locate


# ---------------------------------------------------------------------- one record → messages


def _captions(record: dict, media: _Media, task: str) -> list[dict]:
    modality = next(modality for modality in MODALITIES if f"{modality}_name" in record)
    name, caption = record[f"{modality}_name"], record["caption"].strip()
    if task == "decoders":
        media.add_outputs(modality, name, caption)
        wish = {"type": "text", "text": f"Show me {NAMES[modality]}: {caption}"}
        return [_message("user", [wish]), _message("assistant", [media.take("assistant", modality)])]
    media.add_inputs(modality, name)
    question = {"type": "text", "text": f"Describe the {modality}."}
    answer = {"type": "text", "text": caption}
    return [_message("user", [media.take("user", modality), question]), _message("assistant", [answer])]


def _original(record: dict, media: _Media, task: str) -> list[dict]:
    for modality in MODALITIES:
        media.add_inputs(modality, record.get(f"input_{modality}"))
        media.add_outputs(modality, record.get(f"output_{modality}"), record.get(f"{modality}_captions"))
    return _conversation(record, media)


def _llava(record: dict, media: _Media, task: str) -> list[dict]:
    for modality in MODALITIES:
        media.add_inputs(modality, record.get(modality))
    return _conversation(record, media)


def _alpaca(record: dict, media: _Media, task: str) -> list[dict]:
    question = "\n\n".join(filter(None, (record["instruction"].strip(), record.get("input", "").strip())))
    if not record["output"].strip():
        raise _Unusable("the answer is empty")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": record["output"].strip()}]


def _conversation(record: dict, media: _Media) -> list[dict]:
    messages = []
    for turn in record["conversations"]:
        role = ROLES.get(str(turn["from"]).lower())
        if role is None:
            raise _Unusable(f"a turn is from {turn['from']!r}")
        parts, text = [], turn["value"]
        for i, piece in enumerate(MARKER.split(text)):  # text, kind, text, kind, …, text
            if i % 2:
                parts.append(media.take(role, piece))
            elif piece.strip():
                parts.append({"type": "text", "text": piece.strip()})
        if parts:
            messages.append(_message(role, parts))
    answers = [message for message in messages if message["role"] == "assistant"]
    questions = [message for message in messages if message["role"] == "user"]
    if not answers or not questions:
        raise _Unusable("no question with an answer")
    _put(questions[0], media.rest("inputs"), first=True)
    _put(answers[-1], media.rest("outputs"), first=False)
    return messages


def _put(message: dict, parts: list[dict], *, first: bool) -> None:
    if parts:
        content = message["content"]
        own = [{"type": "text", "text": content}] if isinstance(content, str) else content
        message["content"] = [*parts, *own] if first else [*own, *parts]


def _message(role: str, parts: list[dict]) -> dict:
    """Text alone stands as a string, as in a chat."""
    if [part["type"] for part in parts] == ["text"]:
        return {"role": role, "content": parts[0]["text"]}
    return {"role": role, "content": parts}


def _as_list(value: Any) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


FORMATS: dict[str, Callable[[dict, _Media, str], list[dict]]] = {
    "captions": _captions,
    "nextgpt": _original,
    "llava": _llava,
    "alpaca": _alpaca,
    "sharegpt": _llava,
}
