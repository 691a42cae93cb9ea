"""From the workers' messages to an answer's events, in the order of the answer.

The LLM goes on while a medium is made: what comes after the medium waits until it is done.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator

import torch

from nextgpt.engine.messages import Begun, MediumDone, Message, RowDone, RunMade, StepDone, Tokens
from nextgpt.engine.rows import Stop
from nextgpt.events import Event, MediaDone, MediaProgress, MediaStarted, Timings
from nextgpt.generation import SignalRun
from nextgpt.streaming import AnswerStreamer


class RowProgress:
    """One conversation of a call: what is known of its answer so far.

    Args:
        prompt_tokens: of its prompt.
        prepare: seconds that reading it took.
        started: when the call began, as `time.perf_counter` has it.
        seed: of the answer's first medium.
    """

    def __init__(self, prompt_tokens: int, prepare: float, started: float, seed: int):
        self.timings = Timings(prompt_tokens=prompt_tokens, prepare=prepare)
        self.started, self.seed = started, seed
        self.began: float | None = None
        self.is_done = False
        self.error: BaseException | None = None
        self.runs: list[SignalRun] = []
        self.made: dict[int, MediumDone] = {}  # by index
        self.unmade = 0  # media that a decoder still has to do with

    @property
    def is_settled(self) -> bool:
        """Whether no worker has to do with it any more."""
        return self.is_done and not self.unmade

    def take(self, message: Message) -> None:
        """Takes what a worker tells."""
        match message:
            case Begun(cached_tokens=cached, time=time):
                self.began, self.timings.cached_tokens = time, cached
            case Tokens(time=time):
                self.timings.first_token = self.timings.first_token or time - self.started
            case RunMade(run=run):
                self.runs.append(run)
                self.unmade += 1
            case MediumDone():
                self.unmade -= 1
                self.made[message.index] = message
                self.error = self.error or message.error
            case RowDone(time=time, error=error):
                self.is_done, self.error = True, self.error or error
                self.timings.generate = time - self.began if self.began is not None else 0.0

    def media(self) -> dict[int, tuple[MediumDone, int]]:
        """Position of a run → what was made of it, and its seed."""
        return {
            run.position: (self.made[index], self.seed + index)
            for index, run in enumerate(self.runs)
            if index in self.made and self.made[index].is_made
        }


class EventSequence:
    """The events of one streamed answer.

    Args:
        progress: of its row.
        streamer: makes text of tokens; its `emit` is set.
        stop: once it is set, nothing is told any more that had to wait for a medium.

    Attributes:
        told: how many tokens of the answer were told.
        was_stopped: whether the answer ends there, though the LLM went further.
    """

    def __init__(self, progress: RowProgress, streamer: AnswerStreamer, stop: Stop):
        self.progress, self.streamer, self.stop = progress, streamer, stop
        self.told, self.was_stopped = 0, False
        self._events: deque[Event] = deque()
        streamer.emit = self._events.append
        self._backlog: deque[Message] = deque()  # of the LLM
        self._of_media: dict[int, deque[Message]] = defaultdict(deque)
        self._open: int | None = None  # the medium that is told of at present
        self.error: BaseException | None = None

    def take(self, message: Message) -> Iterator[Event]:
        """What can be told now."""
        if isinstance(message, StepDone | MediumDone):
            self._of_media[message.index].append(message)
        else:
            self._backlog.append(message)
        while not self.was_stopped and self.error is None:
            queue = self._backlog if self._open is None else self._of_media[self._open]
            if not queue:
                return
            if queue is self._backlog and queue[0] is not message and self.stop.is_set():
                self._stop_here()
            else:
                self._tell(queue.popleft())
            while self._events:  # whoever gets them may stop the answer
                yield self._events.popleft()

    def _stop_here(self) -> None:
        self.was_stopped = True
        self.streamer.end()

    def _tell(self, message: Message) -> None:
        index, seed = self._open, self.progress.seed
        match message:
            case Tokens(token_ids=token_ids):
                self.told += len(token_ids)
                self.streamer.put(torch.tensor(token_ids))
            case RunMade(index=index, run=run):
                self._open = index
                self._events.append(MediaStarted(index, run.modality, seed + index))
            case StepDone(step=step, total=total, preview=preview):
                self._events.append(MediaProgress(index, self._run.modality, step, total, preview))
            case MediumDone(error=error) if error is not None:
                self.error = error
            case MediumDone(media=media, seconds=seconds) if message.is_made:
                self._events.append(MediaDone(index, self._run.modality, media, seed + index, seconds))
                self._open = None
            case MediumDone():
                self._stop_here()
            case RowDone(error=error):
                self.error = error
                if error is None:
                    self.streamer.end()

    @property
    def _run(self) -> SignalRun:
        return self.progress.runs[self._open]
