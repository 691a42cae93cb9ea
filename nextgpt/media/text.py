"""Text for people, and text that is none: strings with lone surrogates, which no tokenizer, file or terminal takes.

Those come from half an emoji in JSON (`"\\ud83d"`), and from bytes that are not UTF-8 in an argument or a file name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nextgpt.errors import UserInputError

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTE = range(0xDC80, 0xDD00)  # how Python keeps a byte that is not UTF-8


def broken_character(text: str) -> str | None:
    """What is wrong with the first character that is none; None for text that is fine."""
    found = _SURROGATE.search(text)
    if found is None:
        return None
    code = ord(found[0])
    if code in _ESCAPED_BYTE:
        return f"holds the byte 0x{code - 0xDC00:02X}, which is not UTF-8"
    return f"holds half a character (the lone surrogate U+{code:04X})"


def check_characters(text: str, name: str) -> None:
    """Refuses text with lone surrogates.

    Args:
        name: of the text, for the error.

    Raises:
        UserInputError: names the first of them.
    """
    if problem := broken_character(text):
        raise UserInputError(f"{name} {problem}; write the whole character, or leave it out")


def whole_characters(text: str) -> str:
    """The text with two halves of a character joined, and each lone half replaced by U+FFFD, `�`."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def listed(words: Sequence[str], last: str = "and") -> str:
    """Words in a row: "a, b and c". There is at least one."""
    return f" {last} ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
