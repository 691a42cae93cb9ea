"""Brings other projects' data to JSON lines of chat messages (see `nextgpt.train.data.dataset`). Media files are not opened.

A record becomes a conversation whole, or is left out with its reason. What is known, by its keys:

- `captions`: `caption` beside `image_name`, `audio_name` or `video_name` (CC3M, AudioCaps, WebVid as the original
  NExT-GPT ships them);
- `nextgpt`: `input_<kind>` and `output_<kind>` with `<kind>_captions` (a name or a list) beside `conversations`, where
  `<image>`, `<audio>` and `<video>` mark the places, in any number of turns (comprehension, generation, T2M, MosIT); and
  what its first code reads, `image_name` beside a `conversation` whose turns have `input_modality`, `output_modality` and
  `caption`, or `<Image>caption</Image>` in an answer;
- `llava`: `image` (or `images`, `audio`, `video` …) beside `conversations`;
- `alpaca`: `instruction`, `input`, `output`, or `query` and `response`; with `history`;
- `sharegpt`: `conversations` alone (LLaMA-Factory, Vicuna), or ms-swift's `conversation` of pairs;
- `messages`: `messages` of `role` and `content` (OpenAI, trl, ms-swift, LLaMA-Factory), or trl's `prompt` and
  `completion`.

A turn is `from` and `value` or `role` and `content`; `system` may stand beside the turns, and media beside each of the last
four. Tools, and answers that are rated or compared, have no place in a conversation to learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils.logging import tqdm

from nextgpt.errors import UserInputError
from nextgpt.media.text import broken_character, listed
from nextgpt.modalities import MODALITIES
from nextgpt.train.data.files import json_line, whole_file
from nextgpt.train.data.json_records import Record, describe, read_records
from nextgpt.train.data.markers import (
    Marker,
    RecordMedia,
    Turn,
    Unusable,
    as_list,
    inline_caption,
    inline_captions,
    message_of,
    split_markers,
    texts_of,
)
from nextgpt.train.data.turns import turn_problems

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",  # OpenAI's later word
}
SHOWN_PLACES = 10  # of a reason, for a person; the plain data has all
SHOWN_NOTES = 3
TURNS = ("conversations", "conversation", "messages")
SYSTEM = ("system", "system_prompt")
ALPACA_PAIRS = (("instruction", "output"), ("query", "response"))
PAIR = (("user", "human"), ("assistant", "assistant"))  # ms-swift's
PROMPTED = (("user", "prompt"), ("assistant", "completion"))  # trl's
# Keys that change what an answer means or what it may be, when they hold anything.
REFUSED = {
    **dict.fromkeys(("tools", "functions"), "offers tools"),
    **dict.fromkeys(("chosen", "rejected", "rejected_response", "rejected_messages"), "compares answers"),
    **dict.fromkeys(("kto_tag", "label"), "rates its answer"),
    "objects": "marks boxes in pictures",
}
FIRST_CODE = ("input_modality", "output_modality", "caption")  # keys of a turn
NOTHING = (None, "", "[]", [], {})
REFUSED_OF_TURN = {
    **dict.fromkeys(("tool_calls", "function_call", "tool_call_id"), "uses tools"),
    **dict.fromkeys(("reasoning_content", "thinking"), "holds thoughts beside its words"),
    **dict.fromkeys(("refusal", "audio"), "holds more than content"),
}
UNREAD_OF_TURN = {"weight", "loss"}  # 0 and false are refused


@dataclass
class ConversionReport:
    """The result of a conversion, record by record.

    Args:
        conversations: that were written.
        left_out: reason → the places of the records, `file:line` or `file: record n`.
        notes: what was not read, or placed by guess, in records that were written → their places.
    """

    conversations: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {"conversations": self.conversations, "left_out": self.left_out, "notes": self.notes}

    def summary(self) -> list[str]:
        """Lines for a person: each reason with its count and the first places."""
        left_out = [_counted("left out", *item, SHOWN_PLACES) for item in self.left_out.items()]
        return left_out + [_counted("note on", *item, SHOWN_NOTES) for item in self.notes.items()]


def _counted(what: str, reason: str, places: list[str], shown: int) -> str:
    named, before = [], None
    for place in places[:shown]:
        file, _, spot = place.rpartition(":")
        named.append(place if file != before else spot.strip())  # a file is named once
        before = file
    more = f" and {len(places) - shown:,} more; --json names all" if len(places) > shown else ""
    return f"{what} {len(places):,}: {reason} ({', '.join(named)}{more})"


def convert_files(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    format: str = "auto",
    media_folder: str | Path | None = None,
    task: str = "encoders",
    clean: Callable[[list[dict]], list[list[dict]]] | None = None,
) -> ConversionReport:
    """Writes the conversations of `files` to one JSON-lines file, with paths relative to it. It appears when all is done.

    Args:
        files: JSON (a list of records) or JSON lines.
        format: one of `FORMATS`, or `auto` to tell it by the keys of each record.
        media_folder: where the media lie, or in `images`, `audios` and `videos` below it; by default beside each file.
        task: what `captions` become: `encoders`, a question about the media; `decoders`, a wish for them.
        clean: what becomes of a conversation then, such as `nextgpt.train.data.cleaning.Cleaning`.

    Raises:
        UserInputError: a file cannot be read or written, or no record of them can be converted.
    """
    out, report = Path(out), ConversionReport()
    if format != "auto" and format not in FORMATS:
        raise UserInputError(f"format {format!r} is unknown: expected auto, {', '.join(FORMATS)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as beside:
            with beside.open("wb") as lines:
                for file in map(Path, files):
                    records = read_records(file, is_record=_is_record)
                    for record in tqdm(records, desc=file.name, unit=" records"):
                        media = RecordMedia(Path(media_folder or file.parent), out.parent)
                        for messages in _converted(record, format, media, task, clean, report):
                            lines.write(json_line({"messages": messages}))
            if not report.conversations:
                reasons = "; ".join(report.summary())
                raise UserInputError(f"{', '.join(map(str, files))}: no conversation could be made of it ({reasons})")
    except OSError as error:
        raise UserInputError(f"{out}: cannot be written ({error.strerror or error}); name another file") from None
    return report


def _converted(
    record: Record, format: str, media: RecordMedia, task: str, clean: Callable | None, report: ConversionReport
) -> list[list[dict]]:
    """The conversations of a record: one, several where a long one is split, none where it is left out; all are noted."""
    try:
        if record.value is None:
            raise Unusable(record.problem)
        kind = _format_of(record.value) if format == "auto" else format
        if kind != "captions":
            _refuse(record.value)
        if kind is None:
            raise Unusable(f"no known format has the keys {_keys(record.value)}; name it with --format")
        try:
            messages = FORMATS[kind](record.value, media, task)
            _check(messages)
            conversations = clean(messages) if clean is not None else [messages]
            for messages in conversations if clean is not None else ():
                _check(messages)
        except KeyError as error:
            raise Unusable(f"not of the {kind} format: it has no {error}") from None
        except (Unusable, MemoryError):
            raise
        except Exception as error:  # no record, whatever it holds, takes the others with it
            raise Unusable(f"not of the {kind} format ({type(error).__name__}: {error})") from None
    except Unusable as reason:
        report.left_out.setdefault(str(reason), []).append(record.where)
        return []
    report.conversations += len(conversations)
    media.note_unread(set(record.value) - _read_keys(kind) - _unread_keys())
    for note in dict.fromkeys(media.notes):
        report.notes.setdefault(note, []).append(record.where)
    return conversations


def _check(messages: list[dict]) -> None:
    for _, problem in turn_problems(messages):
        raise Unusable(problem)
    for text in texts_of(messages):
        if problem := broken_character(text):
            raise Unusable(f"a text {problem}")


def _refuse(record: dict) -> None:
    for key, what in REFUSED.items():
        value = record.get(key)
        if value not in NOTHING and (key != "label" or isinstance(value, bool)):  # other labels only sort the records
            raise Unusable(f"{what} ({key}), which a conversation has no place for")


def _is_record(value: dict) -> bool:
    return _format_of(value) is not None or bool(REFUSED.keys() & value.keys())


def _format_of(record: dict) -> str | None:
    keys = set(record)
    is_first_code = "conversation" in keys and bool(keys & {"image_name", "output_modality"})
    if is_first_code or any(f"{side}_{modality}" in keys for side in ("input", "output") for modality in MODALITIES):
        return "nextgpt"
    if "caption" in keys and any(f"{modality}_name" in keys for modality in MODALITIES):
        return "captions"
    if "messages" in keys or {"prompt", "completion"} <= keys:
        return "messages"
    if keys & {"conversations", "conversation"}:
        return "llava" if keys & _media_keys().keys() else "sharegpt"
    if any({question, answer} <= keys for question, answer in ALPACA_PAIRS):
        return "alpaca"
    return None


def _keys(record: dict) -> str:
    names = ", ".join(sorted(record)) or "of an empty object"
    return names if len(names) <= 80 else f"{names[:77]}..."


# ---------------------------------------------------------------------- one record → messages


def _captions(record: dict, media: RecordMedia, task: str) -> list[dict]:
    modality = next((modality for modality in MODALITIES if f"{modality}_name" in record), None)
    if modality is None:
        raise Unusable(f"a caption beside no {listed([f'{modality}_name' for modality in MODALITIES], 'or')}")
    name, caption = record[f"{modality}_name"], _text(record["caption"], "the caption").strip()
    if task == "decoders":
        wish = Turn("user", [f"Show me {MODALITIES[modality].article}: {caption}"])
        return [message_of(wish), message_of(Turn("assistant", [media.made(modality, name, caption)]))]
    shown = {"type": modality, "path": media.locate(modality, name)[0]}
    return [message_of(Turn("user", [shown, f"Describe the {modality}."])), message_of(Turn("assistant", [caption]))]


def _nextgpt(record: dict, media: RecordMedia, task: str) -> list[dict]:
    if "conversation" in record:
        return _conversation(record, _first_code(record, media), media)
    for modality in MODALITIES:
        media.add_inputs(modality, record.get(f"input_{modality}"))
        media.add_outputs(modality, record.get(f"output_{modality}"), record.get(f"{modality}_captions"))
    return _conversation(record, _turns(record, media), media)


def _first_code(record: dict, media: RecordMedia) -> list[Turn]:
    """The turns of the original's first instruction data: one file a record, and captions of what is made in the turns."""
    turns = []
    for given in _turn_list(record["conversation"]):
        turn = _turn({key: given[key] for key in given if key not in FIRST_CODE}, media)
        turns.append(turn)
        kind = given.get("output_modality" if turn.role == "assistant" else "input_modality")
        if kind not in (None, "text", *MODALITIES):
            raise Unusable(f"the modality of a turn is {_quoted(kind)}")
        if turn.role == "assistant":
            turn.pieces = [piece for text in turn.pieces for piece in inline_captions(text, media)]
            if kind in MODALITIES:
                turn.pieces.append(media.made(kind, record.get("image_name"), given.get("caption")))
        elif kind in MODALITIES:
            media.add_inputs(kind, record.get("image_name"))
            if not any(isinstance(piece, Marker) for piece in turn.pieces):
                turn.pieces.insert(0, Marker(kind))
        if turn.role == "user" and any(inline_caption().search(piece) for piece in turn.pieces if isinstance(piece, str)):
            raise Unusable("a question holds media by their caption alone")
    makes, is_made = record.get("output_modality"), any(isinstance(piece, dict) for turn in turns for piece in turn.pieces)
    if makes in MODALITIES and not is_made:
        raise Unusable(f"its output_modality is {makes}, but no turn makes any")
    is_told = is_made or any(key in given for given in record["conversation"] for key in FIRST_CODE)
    if record.get("image_name") and not is_told:
        raise Unusable("no turn says whether image_name is looked at (input_modality) or made (output_modality)")
    return turns


def _llava(record: dict, media: RecordMedia, task: str) -> list[dict]:
    _add_media(record, media)
    return _conversation(record, _turns(record, media), media)


def _alpaca(record: dict, media: RecordMedia, task: str) -> list[dict]:
    _add_media(record, media)
    pair, *others = sorted(ALPACA_PAIRS, key=lambda keys: keys[0] not in record)
    media.note_unread(key for keys in others for key in keys if key in record)
    asked = (_text(record[pair[0]], pair[0]), _text(record.get("input"), "input", or_none=True))
    said = [("user", "\n\n".join(filter(None, map(str.strip, asked)))), ("assistant", _text(record[pair[1]], pair[1]))]
    for past in reversed(as_list(record.get("history"))):
        if not isinstance(past, list) or len(past) != 2:
            raise Unusable("the history holds more than pairs of question and answer")
        said[:0] = [
            (role, _text(text, "a turn of the history")) for role, text in zip(("user", "assistant"), past, strict=True)
        ]
    return _conversation(record, [split_markers(role, text) for role, text in said], media)


def _add_media(record: dict, media: RecordMedia) -> None:
    for key, modality in _media_keys().items():
        if key in record:
            media.add_inputs(modality, record[key])


def _turns(record: dict, media: RecordMedia) -> list[Turn]:
    """The turns of a record, under whatever name."""
    names = [key for key in TURNS if record.get(key) is not None]
    if len(names) > 1:
        raise Unusable(f"two conversations in one record ({', '.join(names)})")
    if names:
        given = record[names[0]]
        media.note_unread({"prompt", "completion"} & set(record))
    elif "prompt" in record:
        given = [turn for role, key in PROMPTED for turn in _side(role, record[key])]
    else:
        raise Unusable(f"it has none of {', '.join(TURNS)}")
    turns = []
    for turn in _turn_list(given):
        if "human" in turn and "assistant" in turn:  # ms-swift's pairs
            turns += [split_markers(role, _text(turn[key], f"a turn of the {role}")) for role, key in PAIR]
            media.note_unread(set(turn) - {"human", "assistant"})
        else:
            turns.append(_turn(turn, media))
    return turns


def _turn_list(given: Any) -> list[dict]:
    if not isinstance(given, list):
        raise Unusable(f"the conversation is {describe(given)}, expected a list of turns")
    for turn in given:
        if not isinstance(turn, dict):
            raise Unusable(f"a turn is {describe(turn)}, expected an object")
    return given


def _side(role: str, side: Any) -> list:
    """A prompt or a completion of trl: messages, or a text."""
    return side if isinstance(side, list) else [{"role": role, "content": side}]


def _turn(turn: dict, media: RecordMedia) -> Turn:
    speaker = turn.get("from", turn.get("role"))
    role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise Unusable(f"a turn is from {_quoted(speaker)}")
    for key, what in REFUSED_OF_TURN.items():
        if turn.get(key):
            raise Unusable(f"a turn {what} ({key})")
    for key in UNREAD_OF_TURN & set(turn):
        if role == "assistant" and turn[key] is not None and not turn[key]:
            raise Unusable(f"an answer is not to be learned ({key})")
    for key in sorted(set(turn) - {"from", "value", "role", "content"} - UNREAD_OF_TURN - set(REFUSED_OF_TURN)):
        if turn[key] not in NOTHING:
            media.notes.append(f"the key {key!r} of a turn was not read")
    content = turn["value"] if "value" in turn else turn.get("content")
    if isinstance(content, list):
        return Turn(role, [_piece(part, role, media) for part in content])
    return split_markers(role, _text(content, f"a turn of the {role}", or_none=True))


def _piece(part: Any, role: str, media: RecordMedia) -> str | Marker | dict:
    """A part of a message's content, as OpenAI and Hugging Face have them."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return _text(part.get("text"), "a text part")
    modality = str(kind).removesuffix("_url")
    if modality not in MODALITIES:
        raise Unusable(f"a part is of the type {_quoted(kind)}, which is not read")
    names = [part[key] for key in ("path", "url", "image_url", modality) if part.get(key) is not None]
    if len(names) > 1:
        raise Unusable(f"a part names {len(names)} files, expected one")
    name = names[0] if names else None
    if isinstance(name, dict) and "url" in name:
        name = name["url"]
    if role == "assistant":
        return media.made(modality, name, part.get("caption"))
    if role == "system":
        raise Unusable(f"the system message holds {MODALITIES[modality].article}")
    if name is None:
        return Marker(modality)  # the record names it beside the messages
    return {"type": modality, "path": media.locate(modality, name)[0]}


def _conversation(record: dict, turns: list[Turn], media: RecordMedia) -> list[dict]:
    """Turns and what stands beside them → messages."""
    media.place(turns)
    messages = [message_of(turn) for turn in turns]
    for key in SYSTEM:
        system = _text(record.get(key), key, or_none=True).strip()
        first = messages[0]["content"] if messages[0]["role"] == "system" else None
        if system and first is None:
            messages.insert(0, {"role": "system", "content": system})
        elif system and system != first:
            raise Unusable(f"two system texts, one of them in {key}")
    return messages


def _quoted(value: Any) -> str:
    return repr(value if len(value) <= 40 else f"{value[:37]}...") if isinstance(value, str) else describe(value)


def _text(value: Any, name: str, or_none: bool = False) -> str:
    if value is None and or_none:
        return ""
    if not isinstance(value, str):
        raise Unusable(f"{name} is {describe(value)}, expected a text")
    return value


FORMATS: dict[str, Callable[[dict, RecordMedia, str], list[dict]]] = {
    "captions": _captions,
    "nextgpt": _nextgpt,
    "llava": _llava,
    "alpaca": _alpaca,
    "sharegpt": _llava,
    "messages": _llava,
}


def _read_keys(kind: str) -> set[str]:
    """What a record of a format may say without a note that it was not read."""
    sides = {f"{side}_{modality}" for side in ("input", "output") for modality in MODALITIES}
    beside = {*SYSTEM, *_media_keys(), *REFUSED} - {"label"}
    if kind == "captions":
        return {"caption", *(f"{modality}_name" for modality in MODALITIES)}
    if kind == "nextgpt":
        captions = {f"{modality}_captions" for modality in MODALITIES}
        return sides | captions | {"image_name", "output_modality", *TURNS, *SYSTEM, *REFUSED} - {"label"}
    if kind == "alpaca":
        return {"instruction", "input", "output", "query", "response", "history", *beside}
    return {*TURNS, "prompt", "completion", *beside}


def _unread_keys() -> set[str]:
    """What is known and says nothing to a conversation."""
    return {"id", *(f"{modality}{end}" for modality in MODALITIES for end in ("_id", "_caption_embeddings"))}


def _media_keys() -> dict[str, str]:
    """Key of a record, a modality or its plural → the modality."""
    return {key: modality for modality, row in MODALITIES.items() for key in (modality, row.plural)}
