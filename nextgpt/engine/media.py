"""The decoders' workers: media of the same kind and options are made together, while the LLM goes on."""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nextgpt.decoders import Decoder, GenerationCancelled
from nextgpt.engine.limits import Limits
from nextgpt.engine.messages import MediumDone, StepDone
from nextgpt.engine.rows import Stop
from nextgpt.engine.workers import CLOSED, Worker
from nextgpt.errors import EngineError
from nextgpt.generation import SignalRun
from nextgpt.multimodal.generation_modes import make_media
from nextgpt.streaming import AnyOf


@dataclass
class MediaStats:
    """What a decoder's worker has done.

    Args:
        active, waiting: media at the moment.
        made, failed, stopped: media so far.
        batches: number of media → batches of so many.
        steps: diffusion steps.
        row_steps: the same, times the media that each was computed for: a batch may shrink.
        restarts: after crashes.
    """

    active: int = 0
    waiting: int = 0
    made: int = 0
    failed: int = 0
    stopped: int = 0
    batches: Counter[int] = field(default_factory=Counter)
    steps: int = 0
    row_steps: int = 0
    restarts: int = 0


@dataclass(eq=False)
class MediaJob:
    """One medium that is to be made.

    Args:
        run: with its states.
        row, index: of the call's conversation, and of its media.
        seed: of the noise.
        options: of the decoder.
        stop: when set, it is not wanted any more.
        inbox: takes `StepDone` and one `MediumDone`.
    """

    run: SignalRun
    row: int
    index: int
    seed: int
    options: dict
    stop: Stop
    inbox: queue.SimpleQueue
    came: float = field(default_factory=time.monotonic)
    is_over: bool = False
    steps_told: int = 0

    @property
    def answer(self) -> tuple[int, int]:
        """Names the conversation that it belongs to."""
        return id(self.inbox), self.row

    def tell_step(self, step: int, total: int, preview: Callable | None) -> None:
        """One step is done; a step that is done again, after a batch has failed, is told once."""
        if step > self.steps_told:
            self.steps_told = step
            self.inbox.put(StepDone(self.row, self.index, step, total, preview))

    def end(self, media: Any = None, seconds: float = 0.0, error: BaseException | None = None) -> None:
        """It is made, or has failed, or was stopped."""
        self.is_over = True
        self.inbox.put(MediumDone(self.row, self.index, media, seconds, error))


class MediaWorker(Worker):
    """Makes media with one decoder, in one thread.

    Args:
        model: has the output projections.
        decoder: loads on first use.
        limits: of a batch.
        rows_under_way: the answers that may soon ask for media, as `MediaJob.answer` names them.
    """

    def __init__(self, model: Any, decoder: Decoder, limits: Limits, rows_under_way: Callable[[], set]):
        super().__init__(f"the {decoder.modality} decoder")
        self.model, self.decoder, self.limits, self.rows_under_way = model, decoder, limits, rows_under_way
        self.jobs: deque[MediaJob] = deque()
        self.active: list[MediaJob] = []
        self.stats = MediaStats()

    # ------------------------------------------------------------------ what other threads call

    def submit(self, job: MediaJob) -> None:
        """Takes a medium that is to be made."""
        with self.condition:
            self.jobs.append(job)
        try:
            self.wake()
        except RuntimeError:  # no thread could be started
            self.fail_waiting("no thread could be started")

    def withdraw(self, inbox: queue.SimpleQueue) -> None:
        """Lets go at once of those media of an answer that have not begun."""
        with self.condition:
            gone = [job for job in self.jobs if job.inbox is inbox]
            self.jobs = deque(job for job in self.jobs if job.inbox is not inbox)
            self.stats.stopped += len(gone)
        for job in gone:
            job.end()

    def snapshot(self) -> MediaStats:
        """The counters as they are now."""
        with self.condition:
            now = {"active": len(self.active), "waiting": len(self.jobs), "restarts": self.restarts}
            return replace(self.stats, batches=Counter(self.stats.batches), **now)

    # ------------------------------------------------------------------ the worker's own thread

    def has_work(self) -> bool:
        """Whether any medium waits."""
        return bool(self.jobs)

    def parameters(self) -> int | None:
        """The decoder's; it is loaded by the first batch."""
        return self.decoder.parameter_count

    def work(self) -> None:
        """One batch: the oldest medium, and others with the same options."""
        with self.condition:
            self._wait_for_batch()
            self.active = self._take_batch()
        if self.active:
            self._make(self.active)
        with self.condition:
            self.active = []

    def fail_running(self, message: str) -> None:
        """The media of the batch under way fail."""
        with self.condition:
            failing, self.active = [job for job in self.active if not job.is_over], []
        self._fail(failing, message)

    def fail_waiting(self, message: str) -> None:
        """The media that have not begun fail."""
        with self.condition:
            failing, self.jobs = list(self.jobs), deque()
        self._fail(failing, message)

    def _fail(self, jobs: Sequence[MediaJob], message: str) -> None:
        for job in jobs:
            self._count("failed")
            job.end(error=EngineError(message))

    def _wait_for_batch(self) -> None:
        """Called with the condition held; it is let go of while waiting."""
        while self.jobs and not self.closing.is_set():
            alike = [job for job in self.jobs if job.options == self.jobs[0].options]
            left = self.jobs[0].came + self.limits.max_wait_seconds - time.monotonic()
            others_may_come = self.rows_under_way() - {job.answer for job in alike}
            if left <= 0 or len(alike) >= self.limits.max_media_rows or not others_may_come:
                return
            self.condition.wait(left)

    def _take_batch(self) -> list[MediaJob]:
        batch: list[MediaJob] = []
        for job in self.jobs:
            if not batch or (job.options == batch[0].options and len(batch) < self.limits.max_media_rows):
                batch.append(job)
        self.jobs = deque(job for job in self.jobs if job not in batch)
        return batch

    def _make(self, batch: Sequence[MediaJob]) -> None:
        batch = [job for job in batch if not self._drop_if_stopped(job)]
        if not batch:
            return
        with self.condition:
            self.stats.batches[len(batch)] += 1
        began = time.perf_counter()
        try:
            media = self._run_decoder(batch)
        except GenerationCancelled:
            if self.closing.is_set():
                self._fail([job for job in batch if not job.is_over], CLOSED)
            media = [None] * len(batch)
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    self._make([job])
            elif not batch[0].is_over:
                self._count("failed")
                batch[0].end(error=error)
            return
        seconds = (time.perf_counter() - began) / len(batch)
        for job, item in zip(batch, media, strict=True):
            if not job.is_over:
                self._count("stopped" if item is None else "made")
                job.end(item, seconds)

    def _run_decoder(self, batch: Sequence[MediaJob]) -> list:
        def on_step(step: int, total: int, preview: Callable | None) -> None:
            with self.condition:
                self.stats.steps += 1
                self.stats.row_steps += sum(not job.is_over for job in batch) if self.decoder.shrinks else len(batch)
            for i, job in enumerate(batch):
                if not self._drop_if_stopped(job):
                    job.tell_step(step, total, _of_one(preview, i) if preview else None)

        stops = [AnyOf(job.stop, self.closing) for job in batch]
        runs, seeds = [job.run for job in batch], [job.seed for job in batch]
        return make_media(self.model, self.decoder, runs, seeds, batch[0].options, on_step, stops)

    def _drop_if_stopped(self, job: MediaJob) -> bool:
        """Whether a medium is not wanted any more; it is over then."""
        if not job.is_over and job.stop.is_set():
            self._count("stopped")
            job.end()
        return job.is_over

    def _count(self, outcome: str) -> None:
        with self.condition:
            setattr(self.stats, outcome, getattr(self.stats, outcome) + 1)


def _of_one(preview: Callable, index: int) -> Callable:
    """One item's part of a batch's preview."""
    return lambda: preview()[index]
