"""The order of turns that a training conversation must have; one rule for converting and checking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nextgpt.errors import UserInputError
from nextgpt.modalities import MODALITIES
from nextgpt.multimodal.chat_template import ROLES
from nextgpt.train.data.markers import parts_of


def turn_problems(messages: list[dict]) -> Iterator[tuple[int, str]]:
    """What is wrong with the order of messages: the number of each such message, from 0, and the reason.

    A conversation is, after a system message or none, the user's and the assistant's turns by turns, and ends with the
    assistant's. None of them is empty.
    """
    before = None
    for number, message in enumerate(messages):
        role = message.get("role")
        if is_empty(message.get("content")):
            yield number, f"an empty {role} turn"
        if role == "system" and number:
            yield number, "a system turn that is not the first"
        elif role == "assistant" and before in (None, "system"):
            yield number, "the assistant speaks first"
        elif role == before:
            yield number, f"two {role} turns in a row"
        before = role
    if before == "user":
        yield len(messages) - 1, "the last turn is the user's, so nothing answers it"
    elif before != "assistant":
        yield max(len(messages) - 1, 0), "no question with an answer"


def with_parts(messages: Any) -> list[dict]:
    """Messages whose content is a list of parts; a text becomes a part.

    Raises:
        UserInputError: they are no chat messages.
    """
    expected = "expected chat messages: a role, and text or a list of parts as content"
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserInputError(expected)
    found = [message | {"content": parts_of(message.get("content"))} for message in messages]
    for message in found:
        parts = message["content"]
        is_whole = isinstance(parts, list) and all(isinstance(part, dict) and _is_whole(part) for part in parts)
        if message.get("role") not in ROLES or not is_whole:
            raise UserInputError(expected)
    return found


def _is_whole(part: dict) -> bool:
    return isinstance(part.get("text"), str) if part.get("type") == "text" else part.get("type") in MODALITIES


def is_empty(content: Any) -> bool:
    """Whether a message says nothing: no content, white space, or no part that is more."""
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" and is_empty(part.get("text")) for part in content)
    return content is None or isinstance(content, str) and not content.strip()
