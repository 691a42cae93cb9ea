"""What clients get: OpenAI's answers, with the ordered parts of an answer beside its text."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, model_serializer


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every error."""

    error: ErrorDetail


class Sparse(BaseModel):
    """A model whose fields are left out where they are None and not among `always`."""

    ALWAYS: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_nones(self, handler: Any):  # no type: with one, the schema would tell of any object
        return {name: value for name, value in handler(self).items() if value is not None or name in self.ALWAYS}


class Medium(Sparse):
    """A part of an answer: its text, or a medium with its type, seed and either its address or its file in base64."""

    type: str
    text: str | None = None
    id: str | None = None
    mime_type: str | None = None
    seed: int | None = None
    url: str | None = None
    b64_json: str | None = None
    expires_at: int | None = None


class ImageAddress(BaseModel):
    """Where a picture is."""

    url: str


class ImageOfAnswer(BaseModel):
    """A picture, as other servers give it."""

    type: Literal["image_url"] = "image_url"
    image_url: ImageAddress
    index: int


class AudioOfAnswer(BaseModel):
    """The first sound, as OpenAI gives it; `data` is a WAV file in base64."""

    id: str
    data: str
    expires_at: int
    transcript: str


class AnswerMessage(Sparse):
    """The answer. `parts`, `images` and `audio` come where the request has `modalities`."""

    ALWAYS: ClassVar[frozenset[str]] = frozenset({"content", "refusal"})

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    parts: list[Medium] | None = None
    images: list[ImageOfAnswer] | None = None
    audio: AudioOfAnswer | None = None


FinishReason = Literal["stop", "length"]


class Choice(BaseModel):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: None = None


class PromptTokens(BaseModel):
    """Of which so many were still in a cache."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """Tokens; an answer's signal tokens among them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class ChatCompletion(BaseModel):
    """The answer to `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str | None = None
    service_tier: Literal["default"] = "default"


class MediaEvent(Sparse):
    """How far a medium is: `started`, `progress` (a diffusion step is done) or `done`.

    `medium` counts the answer's media, `index` its events: OpenAI's client, which puts the entries of lists together by it,
    keeps each as it is.
    """

    event: Literal["started", "progress", "done"]
    index: int
    medium: int
    type: str
    seed: int | None = None
    step: int | None = None
    total: int | None = None
    preview: str | None = None
    id: str | None = None
    mime_type: str | None = None
    url: str | None = None
    b64_json: str | None = None
    expires_at: int | None = None


class Delta(Sparse):
    """What is new."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    media: list[MediaEvent] | None = None
    audio: AudioOfAnswer | None = None


class ChunkChoice(BaseModel):
    """A step of one of `n` answers."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: None = None


class ChatCompletionChunk(Sparse):
    """An event of a stream."""

    ALWAYS: ClassVar[frozenset[str]] = frozenset({"system_fingerprint"})

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None
    service_tier: Literal["default"] = "default"


class GeneratedImage(Sparse):
    """A picture: its address or its PNG file in base64."""

    url: str | None = None
    b64_json: str | None = None


class ImageTokens(BaseModel):
    """Of text and of pictures."""

    text_tokens: int
    image_tokens: int = 0


class ImageUsage(BaseModel):
    """Tokens."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: ImageTokens


class GeneratedImages(BaseModel):
    """The answer to `POST /v1/images/generations`."""

    created: int
    data: list[GeneratedImage]
    output_format: Literal["png"] = "png"
    size: str
    usage: ImageUsage


class Model(BaseModel):
    """A model, and what it takes and makes."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["nextgpt"] = "nextgpt"
    input_modalities: list[str]
    output_modalities: list[str]


class Models(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Whether the server lives, or is ready."""

    status: Literal["ok", "closing"]
