"""From tokens to text deltas while an answer is being given, what stops it, and how a thread tells an event loop of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from transformers import TextStreamer

from nextgpt.events import TextDelta
from nextgpt.processing_nextgpt import NextGPTProcessor


class AnyOf:
    """Set when one of its events is: the caller's own event stays the caller's."""

    def __init__(self, *events: threading.Event | None):
        self.events = [event for event in events if event is not None]

    def is_set(self) -> bool:
        """As `threading.Event` has it."""
        return any(event.is_set() for event in self.events)


class Latch:
    """An event without waiting: once set, it stays so."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """As `threading.Event` has it."""
        self._is_set = True

    def is_set(self) -> bool:
        """As `threading.Event` has it."""
        return self._is_set


class Deadline:
    """Set from so many seconds after its making on; with None, never."""

    def __init__(self, seconds: float | None):
        self.at = None if seconds is None else time.monotonic() + seconds

    def is_set(self) -> bool:
        """As `threading.Event` has it."""
        return self.at is not None and time.monotonic() >= self.at


class FromThread:
    """What a thread tells an event loop, item by item; `async for` ends with the work, and raises what it raised.

    Args:
        work: is called in the thread, with the function that tells an item.
        threads: gives the thread.

    Attributes:
        running: is done when the work has ended.
    """

    END = object()

    def __init__(self, work: Callable[[Callable[[Any], None]], None], threads: ThreadPoolExecutor):
        self._told: asyncio.Queue[tuple[Any, BaseException | None]] = asyncio.Queue()
        tell = partial(asyncio.get_running_loop().call_soon_threadsafe, self._told.put_nowait)

        def run() -> None:
            try:
                work(lambda item: tell((item, None)))
            except BaseException as error:
                tell((None, error))
            else:
                tell((self.END, None))

        self.running = asyncio.wrap_future(threads.submit(run))

    async def get(self) -> Any:
        """The next item; `END` after the last."""
        item, error = await self._told.get()
        if error is not None:
            raise error
        return item

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (item := await self.get()) is not self.END:
            yield item


class AnswerStreamer(TextStreamer):
    """transformers' `TextStreamer`, but it emits whole characters, not whole words, and a piece of media ends a text.

    White space waits for what follows it. It notes when the first token came.

    Args:
        processor: of the model.
        emit: takes the deltas; None: the time of the first token is all that is wanted.
        kinds: of media that are made; by default all. Others leave no trace in the text.
    """

    def __init__(self, processor: NextGPTProcessor, emit: Callable[[TextDelta], None] | None, kinds: Sequence[str] | None):
        super().__init__(processor.tokenizer, skip_special_tokens=True)
        runs = processor.vocabulary.runs.items()
        self.signals = {token: kinds is None or kind in kinds for kind, run in runs for token in run}  # and if it is made
        self.emit = emit
        self.first_token: float | None = None
        self.at_start = True

    def put(self, value: torch.Tensor) -> None:
        """Takes the next tokens of a single answer."""
        self.first_token = self.first_token or time.perf_counter()
        for token in value.flatten().tolist():
            is_made = self.signals.get(token)
            if is_made is None:
                self.token_cache.append(token)
                self._send()
            elif is_made:
                self._send(last=True)
                self.token_cache, self.print_len, self.at_start = [], 0, False

    def _send(self, last: bool = False) -> None:
        if self.emit is None:
            return
        text = self.tokenizer.decode(self.token_cache, **self.decode_kwargs)
        text = text.lstrip() if self.at_start else text
        if not last:
            text = text.rstrip()
            if text.endswith("\ufffd"):  # half a character
                return
        if text.strip() and len(text) > self.print_len:
            self.on_finalized_text(text[self.print_len :])
            self.print_len = len(text)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hands on text that no later token changes."""
        self.emit(TextDelta(text))

    def end(self) -> None:
        """Sends what is left."""
        self._send(last=True)
