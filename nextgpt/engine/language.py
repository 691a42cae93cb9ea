"""The LLM's worker: rows join the batch between two tokens and leave it when they are done."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nextgpt.adapters import virtual_tokens
from nextgpt.engine.caches import join_caches, joining_kind, take_rows
from nextgpt.engine.limits import Limits
from nextgpt.engine.rows import Row
from nextgpt.engine.segments import Batch, run_segment
from nextgpt.engine.workers import Worker
from nextgpt.errors import EngineError, NextGPTError

TURN = 8  # tokens that a batch takes before another of another kind has its turn
LOCK_WAIT = 0.05  # seconds


@dataclass
class LanguageStats:
    """What the LLM's worker has done.

    Args:
        active, waiting: rows at the moment.
        begun, done, failed, stopped: rows so far; the last three are apart.
        segments: calls of transformers' `generate`.
        steps: number of rows → steps that were done with so many.
        restarts: after crashes.
    """

    active: int = 0
    waiting: int = 0
    begun: int = 0
    done: int = 0
    failed: int = 0
    stopped: int = 0
    segments: int = 0
    steps: Counter[int] = field(default_factory=Counter)
    restarts: int = 0


class LanguageWorker(Worker):
    """Answers rows with one LLM, in one thread.

    Rows whose caches can be joined are one batch; a row with a run of signal tokens to feed is fed alone and joins again.
    What cannot be joined is a batch of its own, and the batches take turns.

    Args:
        model: a `NextGPTForConditionalGeneration`.
        lock: held while the LLM computes.
        limits: of the rows at a time.
    """

    def __init__(self, model: Any, lock: threading.RLock, limits: Limits):
        super().__init__("the language model")
        self.model, self.lock, self.limits = model, lock, limits
        self.virtual_tokens = virtual_tokens(model.config.adapter)
        self.waiting: deque[Row] = deque()
        self.begun: list[Row] = []  # all rows that have begun and are not done
        self.apart: list[Row] = []  # those of them that are fed before they join a batch
        self.batches: deque[Batch] = deque()
        self.can_join: bool | None = None  # not known before the first cache
        self.stats = LanguageStats()

    # ------------------------------------------------------------------ what other threads call

    def submit(self, rows: Sequence[Row]) -> None:
        """Takes rows that are to be answered."""
        with self.condition:
            self.waiting.extend(rows)
        try:
            self.wake()
        except RuntimeError:  # no thread could be started
            self.withdraw(rows)
            raise

    def withdraw(self, rows: Sequence[Row]) -> None:
        """Lets go at once of those rows that have not begun."""
        with self.condition:
            gone = [row for row in self.waiting if row in rows]
            self.waiting = deque(row for row in self.waiting if row not in gone)
            self.stats.stopped += len(gone)
        for row in gone:
            row.leave()

    def snapshot(self) -> LanguageStats:
        """The counters as they are now."""
        with self.condition:
            now = {"active": len(self.begun), "waiting": len(self.waiting), "restarts": self.restarts}
            return replace(self.stats, steps=Counter(self.stats.steps), **now)

    # ------------------------------------------------------------------ the worker's own thread

    def has_work(self) -> bool:
        """Whether any row waits or is under way."""
        return bool(self.waiting or self.apart or self.batches)

    def parameters(self) -> int:
        """The whole model's."""
        return self.model.num_parameters()

    def work(self) -> None:
        """One segment, and what comes before and after it."""
        if not self.lock.acquire(timeout=LOCK_WAIT):
            return
        try:
            self._admit()
            if batch := self._next_batch():
                self._generate(batch)
        finally:
            self.lock.release()

    def fail_running(self, message: str) -> None:
        """The rows that have begun fail."""
        with self.condition:
            failing = list(self.begun)
            self.apart, self.batches = [], deque()
        for row in failing:
            row.error = EngineError(message)
            self._close(row)

    def fail_waiting(self, message: str) -> None:
        """The rows that have not begun fail."""
        with self.condition:
            failing, self.waiting = list(self.waiting), deque()
            self.stats.failed += len(failing)
        for row in failing:
            row.error = EngineError(message)
            row.leave()

    def _admit(self) -> None:
        """Lets rows in that wait, as far as there is room, and those go that were stopped before they were fed."""
        stopped = [row for row in self.apart if row.stop.is_set()]
        self.apart = [row for row in self.apart if row not in stopped]
        for row in stopped:
            self._close(row)
        while True:
            with self.condition:
                if not self.waiting or len(self.begun) >= self.limits.max_batch_rows:
                    return
                row = self.waiting.popleft()
                if never_begins := row.stop.is_set():
                    self.stats.stopped += 1
                else:
                    self.stats.begun += 1
                    self.begun.append(row)
                    self.apart.append(row)
            if never_begins:
                row.leave()
                continue
            try:
                row.begin()
            except Exception as error:  # a session that cannot be gone on with is its own affair
                row.error = error
                self.apart.remove(row)
                self._close(row)

    def _next_batch(self) -> Batch | None:
        """Rows apart come first: those without a cache together, the others one by one."""
        if not self.apart:
            return self.batches.popleft() if self.batches else None
        first, rows = self.apart[0], self.apart[:1]
        if self.can_join and first.is_fresh:
            rows = [row for row in self.apart if row.is_fresh]
        self.apart = [row for row in self.apart if row not in rows]
        return Batch(rows, first.cache)

    def _generate(self, batch: Batch) -> None:
        joins = batch.kind is None and self.can_join is not False  # it has been fed apart
        others = bool(self.apart or self.batches)
        turn = 1 if joins else TURN

        def may_go_on(steps: int) -> bool:
            if self.closing.is_set() or (others and steps >= turn):
                return False
            return not self.waiting or len(self.begun) >= self.limits.max_batch_rows

        try:
            steps = run_segment(self.model, batch, may_go_on)
        except Exception as error:
            self._start_over(batch.rows, error)
            return
        with self.condition:
            self.stats.segments += 1
            self.stats.steps[len(batch.rows)] += steps
        try:
            self._sort(batch)
        except Exception as error:  # there may be no memory for another copy of a cache
            self._start_over([row for row in batch.rows if row in self.begun and row not in self.apart], error)

    def _start_over(self, rows: list[Row], error: Exception) -> None:
        """A batch has failed: its rows are fed again one by one, and one that fails alone is done."""
        for row in rows:
            if row.is_over or len(rows) == 1:
                row.error = row.error or (None if row.is_over else error)
                self._close(row)
            else:
                row.start_over()
                self.apart.append(row)

    def _sort(self, batch: Batch) -> None:
        """After a segment: some rows are done, some have a run to feed, and the others are a batch again."""
        batch.kind = joining_kind(batch.cache, self.model.config.get_text_config(), self.virtual_tokens)
        self.can_join = batch.kind is not None
        if not self.can_join and len(batch.rows) > 1:
            self._start_over(batch.rows, NextGPTError("rows with this kind of cache cannot be answered together"))
            return
        going_on = []
        for i, row in enumerate(batch.rows):
            row.alone = False
            parts = not row.is_over and row.answer.open_run is not None
            if parts or (row.is_over and row.session is not None):
                row.cache = take_rows(batch.cache, [i], row.fed, self.virtual_tokens) if self.can_join else batch.cache
            if row.is_over:
                self._close(row)
            elif parts:
                self.apart.append(row)
            else:
                row.cache = None
                going_on.append(i)
        if going_on:
            self._join(self._narrowed(batch, going_on))

    def _narrowed(self, batch: Batch, kept: list[int]) -> Batch:
        """Some rows of a batch, without the columns that are padding in all of them."""
        rows = [batch.rows[i] for i in kept]
        length = max(row.fed for row in rows)
        whole = len(rows) == len(batch.rows) and length + self.virtual_tokens == batch.cache.get_seq_length()
        if not whole and self.can_join:
            batch.cache = take_rows(batch.cache, kept, length, self.virtual_tokens)
        return Batch(rows, batch.cache, batch.kind)

    def _join(self, batch: Batch) -> None:
        for other in self.batches:
            if other.kind is not None and other.kind == batch.kind:
                other.cache = join_caches([other.cache, batch.cache], self.virtual_tokens)
                other.rows = [*other.rows, *batch.rows]
                return
        self.batches.append(batch)

    def _close(self, row: Row) -> None:
        row.check()
        with self.condition:
            self.begun.remove(row)
            outcome = "failed" if row.error is not None else "stopped" if row.stop.is_set() else "done"
            setattr(self.stats, outcome, getattr(self.stats, outcome) + 1)
        row.close()
