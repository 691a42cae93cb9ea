"""OpenAI's chat completions on the wire: what stands in a response, what a request may cost, how it is kept."""

from __future__ import annotations

import email.utils
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from nextgpt.errors import first_line

MEDIUM_TOKENS = 2000
SHOWN = 200  # characters of what a server says of an error
_FILE = re.compile(r"(data:[\w.+/-]+;base64,)([\w+/=]+)")


class Outcome(NamedTuple):
    """What came of a request.

    Args:
        entry: for the record: `answer`, `problem` or `failed`, with what belongs to it.
        wait: seconds that the server asks to wait.
        stop: why the run cannot go on.
        is_busy: whether the server only has too much to do.
        is_changed: whether the request is sent with other parameters from now on.
    """

    entry: dict[str, Any]
    wait: float | None = None
    stop: str = ""
    is_busy: bool = False
    is_changed: bool = False


def read_response(text: str, request: dict[str, Any], hide: Callable[[str], str]) -> Outcome:
    """The answer in a response's body, or why it holds none; `hide` takes secrets out of what is quoted."""
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        content = choice["message"].get("content")
        usage = body.get("usage") or {}
        used = usage.get("total_tokens")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return Outcome({"problem": "not a chat completion", "said": short(hide(text))})
    if isinstance(content, list):  # parts, as some servers have it
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    content = content if isinstance(content, str) else ""
    if not isinstance(used, int) or used < 0:
        used = most_tokens(request) // 2 + len(content) // 4  # as long as English tokens are
    if not content.strip():
        return Outcome({"problem": "an answer without words", "tokens": used})
    reason = choice.get("finish_reason")
    return Outcome({"answer": content, "finish_reason": reason if isinstance(reason, str) else None, "tokens": used})


def most_tokens(request: dict[str, Any]) -> int:
    """A high guess at a request's tokens: one for two bytes (in English it is one for nearly five), and a file as a large
    picture."""
    content = request["messages"][0]["content"]
    parts = [{"text": content}] if isinstance(content, str) else content
    return sum(len(part["text"].encode("utf-8", "replace")) // 2 if "text" in part else MEDIUM_TOKENS for part in parts)


def without_files(request: dict[str, Any]) -> dict[str, Any]:
    """A request as it is kept: files in its parts by their hash."""
    if isinstance(request["messages"][0]["content"], str):
        return request

    def by_hash(found: re.Match) -> str:
        return f"{found[1]}(blake2b {hashlib.blake2b(found[2].encode(), digest_size=16).hexdigest()})"

    return json.loads(_FILE.sub(by_hash, json.dumps(request)))


def error_message(error: Any) -> str:
    """What a server says of an error."""
    body = error.body
    message = body.get("message") if isinstance(body, Mapping) else None
    return str(message or body or first_line(error))


def short(text: str) -> str:
    """A text on one short line."""
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}…"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: a number of them, or a date (RFC 9110, section 10.2.3)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        with suppress(ValueError):
            if math.isfinite(seconds := float(value)):
                return max(0.0, seconds * unit)
        with suppress(TypeError, ValueError):
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
