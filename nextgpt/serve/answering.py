"""Answers one request: the pipeline runs in a thread, its events become the steps that a client gets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from nextgpt.events import Event, Finished, MediaDone, MediaProgress, MediaStarted, Reply, ServedBy, TextDelta, Timings
from nextgpt.media.images import png_data_url
from nextgpt.pipeline import NextGPTPipeline
from nextgpt.serve.errors import SERVER, ApiError, too_late
from nextgpt.serve.gate import FairSemaphore
from nextgpt.serve.media_store import KeptAnswer, KeptMedium, MediaStore
from nextgpt.serve.metrics import Metrics
from nextgpt.serve.responses import AudioOfAnswer, Delta, MediaEvent, Medium
from nextgpt.serve.sessions import SessionStore
from nextgpt.serve.settings import ServerSettings
from nextgpt.serve.writing import AnswerWriter
from nextgpt.streaming import AnyOf, FromThread

PREVIEW_EVERY = 0.2  # seconds
STOPPING_SECONDS = 10.0  # that a client waits for a stopped answer to end; it ends later all the same


@dataclass
class AnswerRequest:
    """What one answer is asked for.

    Args:
        messages: in the pipeline's format.
        options: of the pipeline's call.
        owner: whose request it is.
        stop: sequences that end the answer.
        address_of: a kept medium → its address for this client.
        embed: media as base64 in place of addresses.
        previews: rough pictures of diffusion steps.
        is_streamed: the client gets each step as it comes, and so has what came before an answer broke off.
        tells_parts: `modalities` was given: parts, pictures and sounds come beside the text.
    """

    messages: list[dict[str, Any]]
    options: dict[str, Any]
    owner: str
    stop: tuple[str, ...] = ()
    address_of: Callable[[KeptMedium], str] = lambda kept: ""
    embed: bool = False
    previews: bool = False
    is_streamed: bool = False
    tells_parts: bool = False


@dataclass
class AnswerResult:
    """A finished answer.

    Args:
        content: its text with links.
        parts: what it is made of, in order.
        media: the kept files, in order.
        embedded: by id, the files in base64 that are told with it.
        reply: as the pipeline gave it; None where it was cancelled before.
        finish_reason: `stop` or `length`.
        node: the machine that answered, where there are several.
        media_events: how many a stream has told of.
    """

    content: str = ""
    parts: list[Medium] = field(default_factory=list)
    media: list[KeptMedium] = field(default_factory=list)
    embedded: dict[str, str] = field(default_factory=dict)
    reply: Reply | None = None
    finish_reason: str = "stop"
    node: str | None = None
    media_events: int = 0

    @property
    def timings(self) -> Timings:
        """The reply's; of no tokens where there is no reply."""
        return self.reply.timings if self.reply is not None else Timings()

    @property
    def completion_tokens(self) -> int:
        """How many tokens the LLM emitted."""
        return len(self.reply.token_ids) if self.reply is not None else 0

    def tell(self, **told: Any) -> Delta:
        """The next event of a medium, for a stream."""
        self.media_events += 1
        return Delta(media=[MediaEvent(index=self.media_events - 1, **told)])


class Answering:
    """Runs answers of a pipeline.

    Args:
        pipeline: answers.
        store: keeps the media.
        metrics: counts.
        settings: how many answers may run at once, how long one may take, how many caches are kept.
    """

    def __init__(self, pipeline: NextGPTPipeline, store: MediaStore, metrics: Metrics, settings: ServerSettings):
        self.pipeline, self.store, self.metrics, self.deadline = pipeline, store, metrics, settings.deadline
        self.sessions = SessionStore(pipeline.new_session, settings.max_sessions)
        self._threads = ThreadPoolExecutor(settings.max_running, "nextgpt-serve")
        self._turns = FairSemaphore(settings.max_running)
        self._closing = False
        self._cancels: set[threading.Event] = set()

    async def answer(self, asked: AnswerRequest, cancel: threading.Event) -> AsyncIterator[Delta | ServedBy | AnswerResult]:
        """The steps of an answer; the last is the whole of it. Where there are several machines, which of them comes first.

        Leaving the iteration, or setting `cancel`, stops the answer within one token or one diffusion step.

        Raises:
            ApiError: it took longer than the deadline.
            NextGPTError: as the pipeline's call.
        """
        began = time.perf_counter()
        writer, record = AnswerWriter(asked.stop), KeptAnswer()
        answered = AnswerResult()
        record.parts = writer.parts  # even if it breaks off
        enough = threading.Event()
        events = self._events(asked, enough, AnyOf(enough, cancel), record)
        started = ended = False
        told: set[str] = set()  # the media of whose address the client knows
        try:
            async for event, extra in events:
                if isinstance(event, ServedBy):
                    answered.node = event.node
                    yield event
                    continue
                if not started:
                    yield Delta(role="assistant", content="")
                    started = True
                    self.metrics.first_token.observe(time.perf_counter() - began)
                if isinstance(event, Finished):  # no `break`: it would cancel what the pipeline still puts away
                    answered.reply = event.reply
                    continue
                if writer.stopped:
                    if isinstance(event, MediaDone):  # behind a stop sequence: part of no answer
                        self.store.drop([extra[0]])
                    continue
                for delta in self._deltas(event, extra, asked, writer, answered):
                    yield delta
                if isinstance(event, MediaDone) and asked.is_streamed:
                    told.add(extra[0].id)
                if writer.stopped:
                    enough.set()  # the pipeline ends within a token and gives its reply
            if self._closing and not writer.stopped and not (answered.reply and answered.reply.finished):
                raise _closing()
            if held := writer.flush():
                yield Delta(content=held)
            ended = True
        finally:
            enough.set()
            await events.aclose()
            if not ended:
                self.store.drop([kept for kept in answered.media if kept.id not in told])
        self._finish(asked, answered, writer, record)
        yield answered

    def _deltas(
        self, event: Event, extra: Any, asked: AnswerRequest, writer: AnswerWriter, answered: AnswerResult
    ) -> Iterator[Delta]:
        match event:
            case TextDelta(text):
                if written := writer.text(text):
                    yield Delta(content=written)
            case MediaStarted(index, modality, seed):
                if held := writer.flush():
                    yield Delta(content=held)
                yield answered.tell(event="started", medium=index, type=modality, seed=seed)
            case MediaProgress(index, modality, step, total):
                yield answered.tell(event="progress", medium=index, type=modality, step=step, total=total, preview=extra)
            case MediaDone(index, modality, _, seed, seconds):
                kept, data = extra
                self.metrics.media_seconds.labels(modality).observe(seconds)
                answered.media.append(kept)
                if data is not None:
                    answered.embedded[kept.id] = data
                address = asked.address_of(kept)
                told = medium_of(kept, address, data if asked.embed else None).model_dump()
                yield answered.tell(event="done", medium=index, **told)
                yield Delta(content=writer.medium(kept, address))
                sound = first_sound(answered) if asked.tells_parts else None
                if sound is not None and sound.id == kept.id:
                    yield Delta(audio=sound)

    def _finish(self, asked: AnswerRequest, answered: AnswerResult, writer: AnswerWriter, record: KeptAnswer) -> None:
        reply = answered.reply
        record.content = answered.content = writer.content
        if reply is not None and not writer.stopped:  # the texts as the pipeline has them, so that the cache stays valid
            record.parts = [part if part["type"] == "text" else {"type": part["type"]} for part in reply.message["content"]]
        files = iter(answered.media)
        for part in writer.parts:
            if part["type"] == "text":
                answered.parts.append(Medium(type="text", text=part["text"]))
            else:
                kept = next(files)
                data = answered.embedded[kept.id] if asked.embed else None
                answered.parts.append(medium_of(kept, asked.address_of(kept), data))
        if reply is None:
            return
        answered.finish_reason = "stop" if writer.stopped or reply.finished else "length"
        self.metrics.tokens.labels("prompt").inc(answered.timings.prompt_tokens)
        self.metrics.tokens.labels("cached").inc(answered.timings.cached_tokens)
        self.metrics.tokens.labels("completion").inc(answered.completion_tokens)

    # ------------------------------------------------------------------ the pipeline's thread

    async def _events(
        self, asked: AnswerRequest, enough: threading.Event, cancel: AnyOf, record: KeptAnswer
    ) -> AsyncIterator[tuple[Event, Any]]:
        """The pipeline's events, each with what belongs to it: of a medium its kept file, of a step its preview."""
        next_preview = 0.0

        def prepare(event: Event) -> Any:
            nonlocal next_preview
            if isinstance(event, MediaDone):
                kept = self.store.keep(event.modality, event.media, event.seed, asked.owner, record)
                told = asked.embed or (asked.tells_parts and kept.is_sound)
                return kept, kept.base64() if told else None
            if isinstance(event, MediaProgress) and asked.previews and event.preview and time.monotonic() >= next_preview:
                next_preview = time.monotonic() + PREVIEW_EVERY
                return png_data_url(event.preview())
            return None

        made: list[KeptMedium] = []
        given: set[str] = set()

        def work(tell: Callable[[tuple[Event, Any]], None]) -> None:
            session = self.sessions.take(asked.messages, asked.owner)
            stream = self.pipeline.stream(asked.messages, session=session, cancel=cancel, **asked.options)
            for event in stream:
                extra = prepare(event)
                if isinstance(event, MediaDone):
                    made.append(extra[0])
                if isinstance(event, Finished):
                    answer = {"role": "assistant", "content": event.reply.message["content"]}
                    self.sessions.put([*asked.messages, answer], asked.owner, session)
                tell((event, extra))

        until = asyncio.get_running_loop().time() + self.deadline
        await self._in_time(self._turns.take(asked.owner), until)
        if self._closing:
            self._turns.give(asked.owner)
            raise _closing()
        self._cancels.add(enough)
        told = FromThread(work, self._threads)
        told.running.add_done_callback(lambda _: self._turns.give(asked.owner))
        try:
            while (item := await self._in_time(told.get(), until)) is not told.END:
                if isinstance(item[0], MediaDone):
                    given.add(item[1][0].id)
                yield item
        finally:
            enough.set()
            self._cancels.discard(enough)
            # Nobody gets the addresses of what was made and is not taken any more.
            told.running.add_done_callback(lambda _: self.store.drop([kept for kept in made if kept.id not in given]))
            await asyncio.wait([told.running], timeout=STOPPING_SECONDS)

    async def _in_time(self, waiting: Awaitable[Any], until: float) -> Any:
        """What comes in time; after that the answer is given up."""
        try:
            async with asyncio.timeout_at(until) as limit:
                return await waiting
        except TimeoutError:
            if not limit.expired():  # it is what was waited for that raised it
                raise
            raise too_late(f"the answer took longer than {self.deadline:g} s and was stopped") from None

    def stop(self) -> None:
        """Stops all answers that are under way, and takes no other."""
        self._closing = True
        for cancel in list(self._cancels):
            cancel.set()

    def close(self) -> None:
        """Stops all answers, and waits for that."""
        self.stop()
        self._threads.shutdown()


def _closing() -> ApiError:
    return ApiError(503, "the server is closing", type=SERVER, code="closing", headers={"Retry-After": "30"})


def medium_of(kept: KeptMedium, address: str, data: str | None) -> Medium:
    """A kept file as a part of an answer: with its data where they are given, else with its address."""
    place = {"url": address} if data is None else {"b64_json": data}
    return Medium(type=kept.kind, id=kept.id, mime_type=kept.mime_type, seed=kept.seed, expires_at=kept.expires_at, **place)


def first_sound(answered: AnswerResult) -> AudioOfAnswer | None:
    """The first sound of an answer as OpenAI gives it, which has room for one; None where there is none to tell of."""
    for kept in answered.media:
        if kept.is_sound and kept.id in answered.embedded:
            data = answered.embedded[kept.id]
            return AudioOfAnswer(id=kept.id, data=data, expires_at=kept.expires_at, transcript="")
    return None
