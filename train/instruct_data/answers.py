"""What a teacher wrote → texts and content of chat messages; what cannot be one is dropped.

A teacher writes a medium as `[image: what it shows]`, of any kind in the table of modalities.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import suppress
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from nextgpt.media.addresses import is_public
from nextgpt.media.text import broken_character
from nextgpt.modalities import MODALITIES
from nextgpt.train.data.cleaning import CODE, has_html, html_to_markdown
from nextgpt.train.data.markers import Turn, Unusable, message_of
from nextgpt.train.data.turns import is_empty
from nextgpt.train.instruct_data.jobs import Dropped, Job, marker

_REASONING = re.compile(r"</?think(?:ing)?>")
_CONTROL = (
    r"<\|[^|<>\n]{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
    r"|^#{2,3} (?:Human|User|Assistant|System|Instruction|Response):"
)
_LOADS = re.compile(
    r"<(?:script|style|iframe|object|embed|form|link|meta)\b[^<>]*>|"
    r"(?:\]\(|[\"'=<])\s*(?:(?:java|vb)script:|data:text/html)",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"\b(?:https?|wss?|ftp|file|smb|ssh)://[^\s<>\"'`)\]}]*|\blocalhost:\d+", re.IGNORECASE)
_PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)|\bdata:(?:image|audio|video)/", re.IGNORECASE)
_SECRET = re.compile(r"[?&](?:[\w-]*(?:token|key|signature)|sig|password)=", re.IGNORECASE)
MOST_BRACES = 20  # that are tried as the beginning of an object
_INNER = (".local", ".localhost", ".localdomain", ".internal", ".intranet", ".lan", ".corp", ".home", ".home.arpa", ".test")


def parse_json(answer: str) -> dict[str, Any]:
    """The first object in an answer that holds anything; words and code fences around it are passed over."""
    decode, starts = json.JSONDecoder(strict=False).raw_decode, re.finditer("{", answer)
    for start in islice(starts, MOST_BRACES):  # words before it may hold braces, too
        with suppress(ValueError, RecursionError):
            if found := decode(answer, start.start())[0]:
                return found
    raise Dropped("malformed JSON")


def text_in(found: dict[str, Any], name: str, or_empty: bool = False) -> str:
    """A text of an object that a teacher wrote."""
    value = found.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value is None and or_empty:
        value = ""
    if not isinstance(value, str) or not (value.strip() or or_empty):
        raise Dropped(f"JSON without {name!r}")
    return value.strip()


def clean_text(text: str, cleaned: Counter[str]) -> str:
    """A teacher's text as it may be learned.

    HTML becomes Markdown, and control tokens at either end are taken away. Control tokens inside (another turn follows),
    HTML or a link that loads or runs something, HTML nested too deep, addresses that are not public, pictures by address
    and half characters drop it.

    Args:
        cleaned: counts what was taken away.
    """
    if broken_character(text):
        raise Dropped("half a character")
    if _LOADS.search(CODE.sub(" ", text)):
        raise Dropped("HTML that loads or runs something")
    if has_html(text):  # before all else, for entities become characters
        try:
            text = html_to_markdown(text)
        except Unusable as problem:
            raise Dropped(str(problem)) from None
        cleaned["HTML"] += 1
    control = _control()
    at_an_end = re.compile(rf"\A(?:{control})|(?:{control})\Z")
    before = text = text.strip()
    while (shorter := at_an_end.sub("", text).strip()) != text:
        text = shorter
    cleaned["control tokens"] += text != before
    if _REASONING.search(text):
        raise Dropped("reasoning that does not end")
    if re.search(control, text, re.MULTILINE):
        raise Dropped("control tokens inside a text")
    if _LOADS.search(CODE.sub(" ", text)):
        raise Dropped("HTML that loads or runs something")
    if _PICTURE.search(text):
        raise Dropped("a medium by address")
    for address in _ADDRESS.findall(text):
        if not is_public_url(address):
            raise Dropped("a private address")
    return text


def _control() -> str:
    """Tokens of chat templates, and our own signal tokens, as an expression."""
    signals = "|".join(row.signal for row in MODALITIES.values())
    return rf"{_CONTROL}|\[(?:{signals})\d+\]"


def is_public_url(address: str) -> bool:
    """Whether an address in a text is one that everybody may know: a public place, without a name or a key in it."""
    try:
        parts = urlsplit(address)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return False
    if parts.scheme not in ("http", "https", "ftp") or parts.username or parts.password or _SECRET.search(address):
        return False
    try:
        return is_public(host)
    except ValueError:
        is_number = re.fullmatch(r"\d+|0x[0-9a-f]*", host.rpartition(".")[2])  # browsers read http://127.1 as an address
        return "." in host and not is_number and not host.endswith(_INNER)


# ---------------------------------------------------------------------- media in texts


def to_message(role: str, text: str, job: Job) -> dict:
    """A teacher's text as a chat message.

    Media of the assistant keep their caption, from which the decoders' targets are made; media of the user are looked up in
    the captioned set.

    Raises:
        Dropped: the text cannot be learned, or what the user shows is not in the set.
    """
    first, *rest = marker().split(clean_text(text, job.cleaned))
    turn = Turn(role, [first])
    for kind, caption, after in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        turn.pieces += [_medium(role, kind.lower(), caption, job), after]
    message = message_of(turn)
    if is_empty(message["content"]):
        raise Dropped("an empty turn")
    return message


def _medium(role: str, kind: str, caption: str, job: Job) -> dict:
    job.check_kind(kind, role)
    if not caption:
        raise Dropped("a medium without a caption")
    found = job.media.find(kind, caption, exactly=role == "assistant")
    if role == "assistant":
        return {"type": kind, "caption": caption} | ({"path": found.path} if found else {})
    if found is None:
        raise Dropped("a medium of the user that is not in the captioned set")
    return {"type": kind, "path": found.path}
