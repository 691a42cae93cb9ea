"""What the workers tell an answer's own thread, in the order in which it happens. Times are of `time.perf_counter`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nextgpt.generation import SignalRun


@dataclass
class Begun:
    """The LLM begins with a row; so many of its tokens were still in the session's cache."""

    row: int
    cached_tokens: int
    time: float


@dataclass
class Tokens:
    """A row has emitted tokens: one, or a whole run."""

    row: int
    token_ids: list[int]
    time: float


@dataclass
class RunMade:
    """The states of a run are known, and its decoder has been asked; `index` counts the row's media from 0."""

    row: int
    index: int
    run: SignalRun


@dataclass
class RowDone:
    """The LLM is done with a row, or never began; `error` where it failed."""

    row: int
    time: float
    error: BaseException | None = None


@dataclass
class StepDone:
    """A decoder has done one step of a medium; `preview` as in `MediaProgress`."""

    row: int
    index: int
    step: int
    total: int
    preview: Callable | None


@dataclass
class MediumDone:
    """A decoder is done with a medium: made, failed with an `error`, or, with neither, stopped."""

    row: int
    index: int
    media: Any = None
    seconds: float = 0.0
    error: BaseException | None = None

    @property
    def is_made(self) -> bool:
        """Whether there is a medium."""
        return self.media is not None


Message = Begun | Tokens | RunMade | RowDone | StepDone | MediumDone
