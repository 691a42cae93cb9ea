"""The engine beneath a pipeline: requests from several threads, answered together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nextgpt.decoders import Decoder
from nextgpt.engine.language import LanguageStats, LanguageWorker
from nextgpt.engine.limits import Limits
from nextgpt.engine.media import MediaJob, MediaStats, MediaWorker
from nextgpt.engine.rows import Row
from nextgpt.errors import QueueFullError


@dataclass
class EngineStats:
    """Counters of an engine's workers; the decoders' by the modality that they make.

    Args:
        preparing: conversations that are being read, before the LLM is asked.
    """

    language: LanguageStats
    decoders: dict[str, MediaStats] = field(default_factory=dict)
    preparing: int = 0

    @property
    def restarts(self) -> int:
        """How often a worker has crashed and started again."""
        return self.language.restarts + sum(decoder.restarts for decoder in self.decoders.values())


class Engine:
    """One worker for the LLM, and one for each decoder that was asked for. They start with the first request.

    Args:
        model: a `NextGPTForConditionalGeneration`.
        limits: of what is taken on at a time.
        lock: held while the LLM computes; whoever else needs it for a while takes it.
    """

    def __init__(self, model: Any, limits: Limits | None = None, lock: threading.RLock | None = None):
        self.model, self._limits = model, limits or Limits()
        self._guard = threading.Lock()
        self._preparing = 0
        self._language = LanguageWorker(model, lock or threading.RLock(), self._limits)
        self._decoders: dict[int, MediaWorker] = {}  # by the decoder's id; it is held in the worker

    @property
    def limits(self) -> Limits:
        """Its fields may be changed at any time."""
        return self._limits

    def enter(self, rows: int) -> None:
        """A request for so many answers begins to be read.

        Raises:
            QueueFullError: too many wait already.
        """
        with self._guard:
            stats, limits = self._language.snapshot(), self.limits
            waiting = stats.waiting + self._preparing
            if waiting >= limits.max_waiting and stats.active + waiting >= limits.max_batch_rows:
                raise QueueFullError(f"{waiting} conversations are waiting for an answer already: ask again in a while")
            self._preparing += rows

    def leave(self, rows: int) -> None:
        """The request was read, or refused."""
        with self._guard:
            self._preparing -= rows

    def answer(self, rows: Sequence[Row]) -> None:
        """Has the LLM answer rows."""
        self._language.submit(rows)

    def make(self, decoder: Decoder, job: MediaJob) -> None:
        """Has a decoder make a medium."""
        with self._guard:
            worker = self._decoders.get(id(decoder))
            if worker is None:
                worker = MediaWorker(self.model, decoder, self.limits, self._rows_under_way)
                self._decoders[id(decoder)] = worker
        worker.submit(job)

    def withdraw(self, rows: Sequence[Row], inbox: queue.SimpleQueue) -> None:
        """Lets go at once of those of an answer's rows and media that have not begun."""
        self._language.withdraw(rows)
        for worker in self._workers():
            worker.withdraw(inbox)

    def stats(self) -> EngineStats:
        """The counters as they are now."""
        decoders = {worker.decoder.modality: worker.snapshot() for worker in self._workers()}
        return EngineStats(self._language.snapshot(), decoders, self._preparing)

    def close(self, wait: bool = True) -> None:
        """Ends the threads; what is under way or waits fails with an `EngineError`. A later request starts them again.

        Args:
            wait: until the threads have ended.
        """
        for worker in (self._language, *self._workers()):
            worker.close(wait)

    def _workers(self) -> list[MediaWorker]:
        with self._guard:
            return list(self._decoders.values())

    def _rows_under_way(self) -> set[tuple[int, int]]:
        return {(id(row.inbox), row.answer.index) for row in self._language.begun}
