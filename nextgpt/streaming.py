"""From tokens to text deltas while an answer is being given, and what stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import torch
from transformers.generation.streamers import BaseStreamer

from nextgpt.events import TextDelta
from nextgpt.processing_nextgpt import NextGPTProcessor


class AnyOf:
    """Set when one of its events is: the caller's own event stays the caller's."""

    def __init__(self, *events: threading.Event | None):
        self.events = [event for event in events if event is not None]

    def is_set(self) -> bool:
        """As `threading.Event` has it."""
        return any(event.is_set() for event in self.events)


class TextStream:
    """Turns token ids into text deltas as soon as they make whole characters; white space waits for what follows it."""

    def __init__(self, processor: NextGPTProcessor, emit: Callable[[TextDelta], None], kinds: Sequence[str] | None):
        self.processor, self.emit = processor, emit
        runs = processor.vocabulary.runs.items()
        self.signals = {token: kinds is None or kind in kinds for kind, run in runs for token in run}  # and if it is made
        self.ids: list[int] = []
        self.sent = ""
        self.at_start = True

    def put(self, token: int) -> None:
        """Takes the next token."""
        is_made = self.signals.get(token)
        if is_made is None:
            self.ids.append(token)
            self._send()
        elif is_made:
            self._send(last=True)
            self.ids, self.sent, self.at_start = [], "", False

    def _send(self, last: bool = False) -> None:
        text = self.processor.tokenizer.decode(self.ids, skip_special_tokens=True)
        text = text.lstrip() if self.at_start else text
        if not last:
            text = text.rstrip()
            if text.endswith("\ufffd"):  # half a character
                return
        if text.strip() and len(text) > len(self.sent):
            self.emit(TextDelta(text[len(self.sent) :]))
            self.sent = text

    def finish(self) -> None:
        """Sends what is left."""
        self._send(last=True)


class FirstTokenClock(BaseStreamer):
    """Notes when the first token came, and hands tokens on one by one."""

    def __init__(self, stream: TextStream | None):
        self.stream, self.first_token = stream, None

    def put(self, value: torch.Tensor) -> None:
        self.first_token = self.first_token or time.perf_counter()
        if self.stream is not None:
            for token in value.flatten().tolist():
                self.stream.put(token)

    def end(self) -> None:
        if self.stream is not None:
            self.stream.finish()
