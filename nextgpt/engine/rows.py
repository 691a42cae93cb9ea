"""One conversation that is being answered, as the LLM's worker has it: its tokens, its cache, its options, its reader."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from transformers import Cache

from nextgpt.engine.messages import Begun, RowDone, Tokens
from nextgpt.engine.sampling import Sampler
from nextgpt.errors import ContractError
from nextgpt.generation import AnswerRow, SignalRun
from nextgpt.session import Session


class Stop(Protocol):
    """Something that may be set: an event, or several of them."""

    def is_set(self) -> bool:
        """As `threading.Event` has it."""


@dataclass(eq=False)
class Row:
    """One conversation on its way through the LLM. Only the worker touches it once it has begun.

    Args:
        answer: what is emitted, and what may still be.
        prompt: token ids.
        features: of the prompt's media, `[media, embed_dim]`; None without any.
        stop: when set, the row leaves after the next token.
        inbox: takes the messages of `nextgpt.engine.messages`.
        on_run: called with each run as soon as its states are known.
        sampler: None: greedy.
        session, media_keys: whose cache is used and kept; what stands at the placeholders.
        cache: of the row alone, while it is in no batch.
        fed: how many of its tokens a cache holds.
        alone: it is fed by itself, because a batch with it has failed.
    """

    answer: AnswerRow
    prompt: list[int]
    features: Tensor | None
    stop: Stop
    inbox: queue.SimpleQueue
    on_run: Callable[[SignalRun], None]
    sampler: Sampler | None = None
    session: Session | None = None
    media_keys: dict[int, str] = field(default_factory=dict)
    cache: Cache | None = None
    fed: int = 0
    alone: bool = False
    error: BaseException | None = None
    is_over: bool = False  # it emits nothing more

    @property
    def token_ids(self) -> list[int]:
        """The prompt and the answer so far."""
        return self.prompt + self.answer.tokens

    @property
    def pending(self) -> int:
        """How many of its tokens are still to be fed."""
        return len(self.prompt) + len(self.answer.tokens) - self.fed

    @property
    def is_fresh(self) -> bool:
        """Whether it can be fed together with others that have no cache yet."""
        return self.cache is None and self.fed == 0 and not self.alone

    def begin(self) -> None:
        """Takes the session's cache, as far as the prompt has it in common."""
        if self.session is not None:
            self.fed = self.session.reuse(self.prompt, self.media_keys)
            self.cache = self.session.cache
        self.inbox.put(Begun(self.answer.index, self.fed, time.perf_counter()))

    def start_over(self) -> None:
        """Forgets the cache, so that all tokens are fed again, by themselves."""
        self.cache, self.fed, self.alone = None, 0, True

    def take(self, token: int, model: Any) -> bool:
        """Takes the next token, and says whether the row has to leave the batch."""
        before, stopped = len(self.answer.tokens), self.stop.is_set()
        ends = True
        if self.error is None and self.answer.budget > 0:  # a spent budget: the pass only fed the last run
            ends = self.answer.take(token, model.vocabulary, model.eos_ids(), stopped)
            if new := self.answer.tokens[before:]:
                self.inbox.put(Tokens(self.answer.index, new, time.perf_counter()))
        if stopped or self.error is not None or self.answer.finished:
            self.is_over = True
        elif self.answer.budget <= 0 and self.answer.open_run is None:
            self.is_over = True
        return ends or self.is_over

    def check(self) -> None:
        """Notes the error of an answer that has ended without what it had to hold."""
        if self.error is None and not self.stop.is_set():
            try:
                self.answer.check_contract()
            except ContractError as error:
                self.error = error

    def close(self) -> None:
        """Hands the cache to the session and says that the row is done."""
        if self.session is not None:
            if self.error is not None or self.cache is None:
                self.session.forget()
            else:
                self.session.remember(self.token_ids, self.cache)
        self.leave()

    def leave(self) -> None:
        """Says that the row is done, or that it never began; the session is free for the next turn."""
        self.is_over, self.cache = True, None
        if self.session is not None:
            self.session.turn.release()
            self.session = None
        self.inbox.put(RowDone(self.answer.index, time.perf_counter(), self.error))
