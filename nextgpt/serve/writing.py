"""The text of an answer as clients get it: stop sequences cut it, and links stand where media are."""

from __future__ import annotations

from collections.abc import Sequence

from nextgpt.serve.media_store import KeptMedium

PARAGRAPH = "\n\n"


class AnswerWriter:
    """Makes one string of an answer's text and links, piece by piece.

    Args:
        stop: sequences that end the answer; they are left out.

    Attributes:
        content: what has been written.
        parts: the assistant's message in the pipeline's format, media by their kind alone.
        stopped: whether a stop sequence came.
    """

    def __init__(self, stop: Sequence[str] = ()):
        self.stop = stop
        self.content = ""
        self.parts: list[dict[str, str]] = []
        self.stopped = False
        self._held = ""  # may be the beginning of a stop sequence

    def text(self, delta: str) -> str:
        """Takes more text; returns what can be sent of it."""
        if self.stopped:
            return ""
        text = self._held + delta
        found = [(text.find(each), each) for each in self.stop if each in text]
        if found:
            self.stopped, self._held = True, ""
            return self._write(text[: min(found)[0]])
        held = max((_overlap(text, each) for each in self.stop), default=0)
        self._held = text[len(text) - held :]
        return self._write(text[: len(text) - held])

    def flush(self) -> str:
        """No more text comes before a medium or the end: what was held back can be sent."""
        held, self._held = self._held, ""
        return self._write(held)

    def medium(self, kept: KeptMedium, address: str) -> str:
        """Takes a medium; returns its link, for a picture one that is shown."""
        link = f"{'!' if kept.mime_type.startswith('image/') else ''}[{kept.kind}]({address})"
        self.parts.append({"type": kept.kind})
        written = (PARAGRAPH if self.content else "") + link
        self.content += written
        return written

    def _write(self, text: str) -> str:
        if not text:
            return ""
        after_medium = bool(self.parts) and self.parts[-1]["type"] != "text"
        if after_medium and not text.strip():
            return ""
        if not self.parts or after_medium:
            self.parts.append({"type": "text", "text": ""})
        self.parts[-1]["text"] += text
        written = PARAGRAPH + text.lstrip() if after_medium else text
        self.content += written
        return written


def _overlap(text: str, stop: str) -> int:
    """How long the longest end of the text is that begins the stop sequence."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
