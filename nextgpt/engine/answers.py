"""One call under way: it is read, handed to the engine, told as events, and put together as replies.

All of it runs in the caller's own thread; the workers send messages.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from nextgpt.decoders import Decoder
from nextgpt.engine.engine import Engine
from nextgpt.engine.media import MediaJob
from nextgpt.engine.messages import Message, RunMade
from nextgpt.engine.rows import Row, Stop
from nextgpt.engine.sampling import Sampler
from nextgpt.engine.sequence import EventSequence, RowProgress
from nextgpt.errors import DeadlineExceeded
from nextgpt.events import Event, GenerationOptions, Reply, Timings
from nextgpt.generation import AnswerRow, SignalRun
from nextgpt.modalities import take_values
from nextgpt.multimodal.generation_modes import check_media_options
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.session import Session, fingerprint_media
from nextgpt.streaming import AnswerStreamer, AnyOf, Deadline, Latch

# Its first use sets a fast tokenizer up, and that must not happen while another thread tokenizes.
_first_use, _in_use = threading.Lock(), weakref.WeakSet()
POLL = 0.05  # seconds between looks at whether a request that waits was cancelled


def read_conversations(
    model: Any, processor: NextGPTProcessor, conversations: list, kinds: Collection[str] | None = None
) -> BatchFeature:
    """Messages → the processor's tensors, refused where they are longer than the LLM's positions.

    Args:
        kinds: that the answers may hold; the LLM is told of them where they are not all that it knows.
    """
    limit, longest_run = model.config.max_positions, _longest_run(model)
    read = partial(
        processor,
        conversations,
        template_kwargs=model.vocabulary.template_variables(kinds),
        max_length=limit - longest_run if limit else None,  # an answer may begin with a run
    )
    if processor in _in_use:
        return read()
    with _first_use:
        inputs = read()
        _in_use.add(processor)
        return inputs


def _longest_run(model: Any) -> int:
    """Of a medium, in tokens; 1 where it makes none."""
    return max((len(run) for run in model.vocabulary.runs.values()), default=1)


class Answer:
    """The answer of one call, which may be of several conversations.

    Args:
        engine: with the model.
        processor, decoders: of the pipeline.
        options: of the call.
        cancel: the caller's.
        streams: whether events are told; of one conversation.

    Raises:
        UserInputError: an option of a decoder is not known to it.
    """

    def __init__(
        self,
        engine: Engine,
        processor: NextGPTProcessor,
        decoders: Mapping[str, Decoder],
        options: GenerationOptions,
        cancel: Stop | None,
        streams: bool = False,
    ):
        self.engine, self.model, self.processor, self.decoders = engine, engine.model, processor, decoders
        self.options, self.cancel, self.streams = options, cancel, streams
        self.started = time.perf_counter()
        check_media_options(decoders, options)
        self.abandoned, self.deadline = Latch(), Deadline(options.deadline)
        self.stop = AnyOf(self.abandoned, cancel, self.deadline)
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.rows: list[Row] = []
        self.progress: list[RowProgress] = []
        self.sequence: EventSequence | None = None

    def run(self, conversations: list[list[dict]], session: Session | None) -> Iterator[Event]:
        """Answers; yields the events of a stream, and none of a call. Closing it stops the answer.

        Raises:
            UserInputError, ContractError, QueueFullError, DeadlineExceeded, EngineError.
        """
        try:
            self._begin(conversations, session)
            for message in self._messages():
                progress = self.progress[message.row]
                progress.take(message)
                if self.sequence is None:
                    error = progress.error
                else:
                    yield from self.sequence.take(message)
                    error = self.sequence.error
                if error is not None:
                    raise error
            if self.deadline.is_set() and not (self.cancel is not None and self.cancel.is_set()) and self._was_cut():
                seconds = f"{self.options.deadline:g} seconds"
                raise DeadlineExceeded(f"the answer was not finished within {seconds}, its deadline: give it more time")
        finally:
            self.abandoned.set()
            for message in self._messages():
                self.progress[message.row].take(message)

    def reply(self, index: int) -> Reply:
        """The finished answer of one conversation."""
        row, progress, vocabulary = self.rows[index], self.progress[index], self.model.vocabulary
        tokens = row.answer.tokens
        if self.sequence is not None and self.sequence.was_stopped:
            tokens = tokens[: self.sequence.told]
        kinds = {i: vocabulary.starts[token] for i, token in enumerate(tokens) if token in vocabulary.starts}
        switched_off = {i: kind for i, kind in kinds.items() if kind not in row.answer.allowed}
        left_out = {i + offset for i, kind in switched_off.items() for offset in range(len(vocabulary.runs[kind]))}
        media = {position: made for position, made in progress.media().items() if position in kinds}
        positions = iter([i for i in kinds if i not in switched_off])
        content: list[dict] = []
        for part in self.processor.decode_parts([token for i, token in enumerate(tokens) if i not in left_out]):
            if part["type"] == "text":
                content.append(part)
            elif (made := media.get(next(positions))) is not None:  # absent when cancelled
                medium, seed = made
                content.append({"type": part["type"], part["type"]: medium.media, "seed": seed})
        timings = progress.timings if progress.began is not None else Timings()
        timings.new_tokens, timings.total = len(tokens), time.perf_counter() - self.started
        timings.media = [(kinds[position], medium.seconds) for position, (medium, _) in sorted(media.items())]
        finished = row.answer.finished and not (self.cancel is not None and self.cancel.is_set())
        message = {"role": "assistant", "content": content}
        return Reply(message, finished, timings, tokens, switched_off=list(dict.fromkeys(switched_off.values())))

    # ------------------------------------------------------------------ before the first token

    def _begin(self, conversations: list[list[dict]], session: Session | None) -> None:
        count = len(conversations)
        self.engine.enter(count)
        try:
            if session is not None and not self._has_turn(session):
                self._give_up()
                return
            try:
                rows, progress = self._read(conversations, session)
            except BaseException:
                if session is not None:
                    session.turn.release()
                raise
            if self.streams:
                streamer = AnswerStreamer(self.processor, None, self.options.output_modalities)
                self.sequence = EventSequence(progress[0], streamer, self.stop)
            self.rows, self.progress = rows, progress
            self.engine.answer(rows)
        finally:
            self.engine.leave(count)

    def _has_turn(self, session: Session) -> bool:
        """Waits until no other answer uses the session; False when stopped before that."""
        while not session.turn.acquire(timeout=POLL):
            if self.stop.is_set():
                return False
        return True

    @torch.no_grad()
    def _read(self, conversations: list[list[dict]], session: Session | None) -> tuple[list[Row], list[RowProgress]]:
        read = read_conversations(self.model, self.processor, conversations, self.options.output_modalities)
        device = self._device
        inputs = {name: tensor.to(device) for name, tensor in read.items()}
        features = self.model.encode_media(inputs["input_ids"], **take_values(inputs))
        prompts = [
            ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        answers = self.model.start_rows(
            len(prompts), self._token_budgets(prompts), self.options.output_modalities, self.options.require
        )
        keys = {}
        if session is not None:
            keys = fingerprint_media(self.model, {"input_ids": inputs["input_ids"], "media_features": features})
        prepare = time.perf_counter() - self.started
        progress = [RowProgress(len(prompt), prepare, self.started, self.options.seed) for prompt in prompts]
        rows = [
            Row(answer, prompt, own, self.stop, self.inbox, self._asking(answer), self._sampler(), session, keys)
            for answer, prompt, own in zip(answers, prompts, self._split(inputs["input_ids"], features), strict=True)
        ]
        return rows, progress

    def _give_up(self) -> None:
        """It was stopped before it was read."""
        [answer] = self.model.start_rows(1, self.options.max_new_tokens)
        self.rows = [Row(answer, [], None, self.stop, self.inbox, self._asking(answer))]
        self.progress = [RowProgress(0, 0.0, self.started, self.options.seed)]
        self.progress[0].is_done = True

    @property
    def _device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def _split(self, input_ids: Tensor, features: Tensor | None) -> list[Tensor | None]:
        """Features of all media → of each row's."""
        if features is None:
            return [None] * len(input_ids)
        return list(features.split(self.model.get_placeholder_mask(input_ids).sum(1).tolist()))

    def _token_budgets(self, prompts: list[list[int]]) -> list[int]:
        """What each row may generate: never beyond the LLM's positions, a last run included."""
        asked, limit = self.options.max_new_tokens, self.model.config.max_positions
        if limit is None:
            return [asked] * len(prompts)
        return [min(asked, limit - len(prompt) - _longest_run(self.model) + 1) for prompt in prompts]

    def _sampler(self) -> Sampler | None:
        options = self.options
        if not options.samples:
            return None
        return Sampler.create(self.model, options.seed, options.temperature, options.top_p)

    def _asking(self, answer: AnswerRow) -> Callable[[SignalRun], None]:
        """What the LLM's worker calls with each run of a row: its decoder is asked at once."""
        count = iter(range(answer.budget + 1))

        def ask(run: SignalRun) -> None:
            index = next(count)
            self.inbox.put(RunMade(answer.index, index, run))
            seed, options = self.options.seed + index, self.options.of_decoder(run.modality)
            job = MediaJob(run, answer.index, index, seed, options, self.stop, self.inbox)
            self.engine.make(self.decoders[run.modality], job)

        return ask

    # ------------------------------------------------------------------ meanwhile, and after it

    def _messages(self) -> Iterator[Message]:
        """What the workers tell, until none has to do with the answer any more."""
        while not all(progress.is_settled for progress in self.progress):
            try:
                yield self.inbox.get(timeout=POLL)
            except queue.Empty:
                if self.stop.is_set():
                    self.engine.withdraw(self.rows, self.inbox)

    def _was_cut(self) -> bool:
        """Whether something is missing that more time would have given."""
        rows = zip(self.rows, self.progress, strict=True)
        return (self.sequence is not None and self.sequence.was_stopped) or any(
            progress.began is None
            or len(progress.media()) < len(progress.runs)
            or not (row.answer.finished or row.answer.budget <= 0)
            for row, progress in rows
        )
