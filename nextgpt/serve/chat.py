"""`POST /v1/chat/completions` and `POST /v1/images/generations`: from a body to answers, whole or streamed."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from nextgpt.errors import UserInputError
from nextgpt.events import MAX_SEED, ServedBy
from nextgpt.multimodal.generation_modes import check_decoder_options
from nextgpt.serve.answering import Answering, AnswerRequest, AnswerResult, first_sound
from nextgpt.serve.conversation import MEDIA_PATH, ConversationReader
from nextgpt.serve.errors import SERVER, ApiError, from_exception, invalid
from nextgpt.serve.gate import Admission
from nextgpt.serve.media_store import KeptMedium
from nextgpt.serve.metrics import Metrics
from nextgpt.serve.responses import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    GeneratedImage,
    GeneratedImages,
    ImageAddress,
    ImageOfAnswer,
    ImageTokens,
    ImageUsage,
    PromptTokens,
    Usage,
)
from nextgpt.serve.schema import SPOKEN_FIELDS, ChatRequest, ImageRequest
from nextgpt.serve.settings import ServerSettings

logger = logging.getLogger(__name__)

DEFAULT_TOKENS = 256
WAITING_STEPS = 64  # of a stream whose client reads slowly


class Chat:
    """Answers bodies.

    Args:
        settings: the limits.
        answering: runs answers.
        reader: reads messages.
        admission: gives places.
        metrics: counts.
    """

    def __init__(
        self,
        settings: ServerSettings,
        answering: Answering,
        reader: ConversationReader,
        admission: Admission,
        metrics: Metrics,
    ):
        self.settings, self.answering, self.reader = settings, answering, reader
        self.admission, self.metrics = admission, metrics

    async def complete(self, body: ChatRequest, request: Request) -> ChatCompletion | StreamingResponse:
        """Answers a chat request.

        Raises:
            ApiError: the request does not fit, or there is no place for it.
        """
        self._check(body)
        with ExitStack() as places:
            places.enter_context(self.admission.place(_who(request), body.n or 1))
            asked = await self._ask(body, request)
            answers = _with_seeds(asked, body.n)
            if body.stream:
                events = self._stream(body, answers, request, places.pop_all())
                first = await anext(events)  # what is wrong from the start is an ordinary error, with its status
                return TimedStream(first, events, self.settings.send_seconds)
            answered = await self._together(answers, request)
        choices = [_choice(i, each, asked) for i, each in enumerate(answered)]
        node = answered[0].node
        return ChatCompletion(choices=choices, usage=_usage(answered), system_fingerprint=node, **self._heading())

    async def draw(self, body: ImageRequest, request: Request) -> GeneratedImages:
        """Draws pictures.

        Raises:
            ApiError: as `complete`.
        """
        self._check(body)
        kind, size = "image", body.size or "auto"
        options: dict[str, Any] = {"num_inference_steps": body.num_inference_steps, "guidance_scale": body.guidance_scale}
        if size != "auto":
            options["width"], options["height"] = map(int, size.split("x"))
            if max(options["width"], options["height"]) > self.settings.max_side:
                raise invalid(f"size is {size}, at most {self.settings.max_side} a side are drawn (max_side)", "size")
        options = {name: value for name, value in options.items() if value is not None}
        try:
            check_decoder_options(self.answering.pipeline.decoders[kind], options)
        except UserInputError as error:
            raise invalid(str(error), "size" if "width" in options else None) from None
        messages = [{"role": "user", "content": [{"type": "text", "text": body.prompt}]}]
        options = {"require": {kind: 1}, "seed": _seed(body), kind: options}
        asked = AnswerRequest(messages, options, _owner(request), address_of=self._addresses(request))
        asked.embed = body.response_format == "b64_json"
        with self.admission.place(_who(request), body.n or 1):
            answered = await self._together(_with_seeds(asked, body.n), request, "prompt")
        if any(each.reply is None or not each.media for each in answered):
            raise ApiError(503, "the drawing was broken off", type=SERVER, code="broken_off")
        drawn = [part for each in answered for part in each.parts if part.type == kind]
        data = [GeneratedImage(url=part.url, b64_json=part.b64_json) for part in drawn]
        made = [part[kind] for each in answered for part in each.reply.message["content"] if part["type"] == kind]
        usage = _usage(answered)
        return GeneratedImages(
            created=int(time.time()),
            data=data,
            size="{}x{}".format(*made[0].size),
            usage=ImageUsage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
                input_tokens_details=ImageTokens(text_tokens=usage.prompt_tokens),
            ),
        )

    # ------------------------------------------------------------------ from a body to what is asked

    def _check(self, body: ChatRequest | ImageRequest) -> None:
        """What the schema leaves open."""
        check_model(body.model, self.settings)
        if not isinstance(body, ChatRequest):
            return
        if body.modalities is not None and "text" not in body.modalities:
            raise invalid("modalities must hold text: an answer may always have words", "modalities")
        if body.stream_options is not None and not body.stream:
            raise invalid("stream_options is for streams: set stream, or leave it out", "stream_options")
        if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
            raise invalid("max_tokens is max_completion_tokens' old name: give one of them", "max_tokens")

    async def _ask(self, body: ChatRequest, request: Request) -> AnswerRequest:
        owner = _owner(request)
        messages = await self.reader.read(body.messages, owner)
        options: dict[str, Any] = {
            "max_new_tokens": body.max_completion_tokens or body.max_tokens or DEFAULT_TOKENS,
            "seed": _seed(body),
        }
        if body.modalities is not None:
            options["output_modalities"] = tuple(dict.fromkeys(body.modalities))
        if body.require is not None:
            options["require"] = body.require.model_dump(exclude_none=True)
        if body.temperature or (body.temperature is None and body.top_p is not None):
            options |= {"do_sample": True, "temperature": body.temperature or 1.0, "top_p": body.top_p or 1.0}
        for kind in self.answering.pipeline.output_modalities:
            if kind != "text" and (given := getattr(body, kind, None)) is not None:
                options[kind] = given.model_dump(exclude_none=True, exclude=set(SPOKEN_FIELDS))
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        return AnswerRequest(
            messages,
            options,
            owner,
            stop,
            self._addresses(request),
            embed=body.media_format == "b64_json",
            previews=bool(body.stream_options and body.stream_options.include_previews),
            is_streamed=bool(body.stream),
            tells_parts=body.modalities is not None,
        )

    def _addresses(self, request: Request) -> Callable[[KeptMedium], str]:
        base = (self.settings.public_url or str(request.base_url)).rstrip("/")
        return lambda kept: f"{base}{MEDIA_PATH}{kept.path.name}"

    def _heading(self) -> dict[str, Any]:
        return {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self.settings.model}

    # ------------------------------------------------------------------ whole answers

    async def _together(self, answers: list[AnswerRequest], request: Request, param: str = "messages") -> list[AnswerResult]:
        """Several answers at once; when the client goes away, or one of them fails, all stop."""
        cancel = threading.Event()
        watching = asyncio.create_task(self._cancel_when_gone(request, cancel))
        tasks = [asyncio.create_task(self._whole(asked, cancel)) for asked in answers]
        left = set(tasks)
        try:
            while left:
                done, left = await asyncio.wait({*left, watching}, return_when=asyncio.FIRST_COMPLETED)
                left.discard(watching)
                for error in [task.exception() for task in done if task is not watching]:
                    if error is not None:
                        raise _told(error, param) from error
                if watching in done:
                    raise ApiError(400, "the client has gone", code="client_gone")
            return [task.result() for task in tasks]
        except BaseException:
            for task in tasks:
                if task.done() and not task.cancelled() and task.exception() is None:
                    self.answering.store.drop(task.result().media)  # nobody gets their addresses
            raise
        finally:
            cancel.set()
            await _end([watching, *tasks])

    async def _whole(self, asked: AnswerRequest, cancel: threading.Event) -> AnswerResult:
        step: Any = None
        async with aclosing(self.answering.answer(asked, cancel)) as answer:
            async for each in answer:
                step = each
        return step

    async def _cancel_when_gone(self, request: Request, cancel: threading.Event) -> None:
        while not cancel.is_set():
            try:
                message = await request.receive()
            except OSError:  # what stood between was lost
                message = {"type": "http.disconnect"}
            if message["type"] == "http.disconnect":
                self.metrics.cancelled.inc()
                cancel.set()

    # ------------------------------------------------------------------ streams

    async def _stream(
        self, body: ChatRequest, answers: list[AnswerRequest], request: Request, places: ExitStack
    ) -> AsyncGenerator[bytes, None]:
        """The events of a stream, as Server-Sent Events.

        Raises:
            ApiError: before anything else has come; after that it is an event.
        """
        heading, cancel, steps = self._heading(), threading.Event(), asyncio.Queue(WAITING_STEPS)
        finished: dict[int, AnswerResult] = {}
        has_begun = False

        async def one(index: int, asked: AnswerRequest) -> None:
            try:
                async with aclosing(self.answering.answer(asked, cancel)) as answer:
                    async for step in answer:
                        await steps.put((index, step))
            except Exception as error:
                await steps.put((index, error))

        tasks = [asyncio.create_task(one(i, asked)) for i, asked in enumerate(answers)]
        watching = asyncio.create_task(self._cancel_when_gone(request, cancel))
        try:
            while len(finished) < len(answers):
                index, step = await steps.get()
                if isinstance(step, ServedBy):
                    heading["system_fingerprint"] = step.node
                    continue
                if isinstance(step, Exception):
                    error = _told(step)
                    if not has_begun:
                        raise error from step
                    self.metrics.errors.labels(error.code).inc()
                    yield _event(json.dumps(error.body))
                    return
                if isinstance(step, AnswerResult):
                    finished[index] = step
                    choice = ChunkChoice(index=index, delta=Delta(), finish_reason=step.finish_reason)
                else:
                    choice = ChunkChoice(index=index, delta=step)
                has_begun = True
                yield _event(ChatCompletionChunk(choices=[choice], **heading))
            if body.stream_options is not None and body.stream_options.include_usage:
                usage = _usage([finished[i] for i in sorted(finished)])
                yield _event(ChatCompletionChunk(choices=[], usage=usage, **heading))
            yield _event("[DONE]")
        finally:
            cancel.set()
            try:
                await _end([watching, *tasks])
            finally:
                places.close()


class TimedStream(StreamingResponse):
    """A stream that ends when its client leaves a piece unread for too long.

    Args:
        first, rest: its events.
        seconds: for each of them to be sent.
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], seconds: float):
        self.rest, self.seconds = rest, seconds
        super().__init__(_chained(first, rest), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def stream_response(self, send: Any) -> None:
        """As starlette has it."""

        async def timed(message: dict[str, Any]) -> None:
            await asyncio.wait_for(send(message), self.seconds)

        try:
            await super().stream_response(timed)
        except TimeoutError:
            logger.info("a client did not read its stream")
        finally:
            await self.rest.aclose()


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for each in rest:
        yield each


def check_model(name: str | None, settings: ServerSettings) -> None:
    """Refuses a model that is not here; None is the one that is.

    Raises:
        ApiError: with status 404.
    """
    if name not in (None, settings.model):
        message = f"the model {name!r} is not here; this server has {settings.model!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


def _told(error: BaseException, param: str = "messages") -> ApiError:
    """What a client is told of an error; the log has the whole of what is no client's fault."""
    told = from_exception(error, param)
    if told.status >= 500:
        logger.error("an answer failed", exc_info=error)
    return told


async def _end(tasks: Sequence[asyncio.Task]) -> None:
    """Cancels tasks and waits for that."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _seed(body: ChatRequest | ImageRequest) -> int:
    return secrets.randbelow(MAX_SEED) if body.seed is None else body.seed


def _with_seeds(asked: AnswerRequest, count: int | None) -> list[AnswerRequest]:
    """The same asked several times, each with the next seed."""
    return [replace(asked, options=asked.options | {"seed": asked.options["seed"] + i}) for i in range(count or 1)]


def _choice(index: int, answered: AnswerResult, asked: AnswerRequest) -> Choice:
    message = AnswerMessage(content=answered.content)
    if asked.tells_parts:
        message.parts = answered.parts
        message.images = [
            ImageOfAnswer(image_url=ImageAddress(url=part.url or f"data:{part.mime_type};base64,{part.b64_json}"), index=i)
            for i, part in enumerate(part for part in answered.parts if (part.mime_type or "").startswith("image/"))
        ]
        message.audio = first_sound(answered)
    return Choice(index=index, message=message, finish_reason=answered.finish_reason)


def _usage(answered: list[AnswerResult]) -> Usage:
    """Of all answers; the prompt counts once."""
    prompt, completion = answered[0].timings.prompt_tokens, sum(each.completion_tokens for each in answered)
    details = PromptTokens(cached_tokens=answered[0].timings.cached_tokens)
    return Usage(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion, prompt_tokens_details=details
    )


def _event(data: BaseModel | str) -> bytes:
    text = data if isinstance(data, str) else data.model_dump_json()
    return f"data: {text}\n\n".encode()


def _owner(request: Request) -> str:
    """Whose request it is, as the gate found it."""
    return getattr(request.state, "owner", "")


def _who(request: Request) -> str:
    """By whom requests are counted: the key, or the address where there are no keys."""
    return _owner(request) or (request.client.host if request.client else "")
