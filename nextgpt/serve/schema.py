"""What clients send: OpenAI's requests as typed bodies, with the fields of our own.

A field that OpenAI knows and this server lacks is taken at its neutral value, so that clients which always send it work,
and refused at any other. A field of no schema is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from nextgpt.decoders import Decoder
from nextgpt.pipeline import NextGPTPipeline
from nextgpt.serve.settings import ServerSettings

# The fields that are taken at their neutral value alone, and what that is.
NEUTRAL = {
    "frequency_penalty": "or give 0",
    "presence_penalty": "or give 0",
    "logit_bias": "or give {}",
    "logprobs": "or give false",
    "top_logprobs": "or give 0",
    "tools": "or give []",
    "tool_choice": "or give none or auto",
    "functions": "or give []",
    "function_call": "or give none or auto",
    "response_format": 'or give {"type": "text"}',
    "prediction": "or give null",
    "web_search_options": "or give null",
    "moderation": "or give null",
    "prompt_cache_options": "or give null",
    "reasoning_effort": "or give none",
    "verbosity": "or give medium",
    "service_tier": "or give auto or default",
    "metadata": "or give {}",
    "tool_calls": "or give []",
    "annotations": "or give []",
}


class Strict(BaseModel):
    """Nothing is converted, and nothing is left over."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Nothing(Strict):
    """An empty object."""


def _whole(value: Any) -> Any:
    """JSON knows one kind of numbers: 2.0 is 2."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
Zero = Annotated[float, Field(ge=0, le=0)]
MOST_PARTS = 4096  # of one message, before the server's own limit counts those of all
Few = Field(min_length=1, max_length=MOST_PARTS, fail_fast=True)  # the first error is all that is told
FewOrNone = Field(max_length=MOST_PARTS, fail_fast=True)
Never = Annotated[list[Nothing], Field(max_length=0)]
Id = Annotated[str, Field(min_length=1, max_length=128, json_schema_extra={"format": "medium-id"})]
Address = Annotated[
    str, Field(min_length=1, json_schema_extra={"format": "uri"}, description="an http(s) address or a base64 data: URL")
]
Base64 = Annotated[str, Field(min_length=1, json_schema_extra={"format": "byte"})]

# -- parts of messages --------------------------------------------------------------------------------------------


class TextPart(Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class RefusalPart(Strict):
    """What an assistant declined with; read as its text."""

    type: Literal["refusal"]
    refusal: str


class MediaAddress(Strict):
    """Where a medium is. `detail` is OpenAI's and changes nothing here."""

    url: Address
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: MediaAddress


class VideoPart(Strict):
    """A clip."""

    type: Literal["video_url"]
    video_url: MediaAddress


class AudioAddressPart(Strict):
    """A sound by its address."""

    type: Literal["audio_url"]
    audio_url: MediaAddress


class AudioData(Strict):
    """A sound's file in base64."""

    data: Base64
    format: Literal["wav", "mp3", "flac", "ogg", "opus", "m4a", "aac"]


class AudioPart(Strict):
    """A sound."""

    type: Literal["input_audio"]
    input_audio: AudioData


class FileData(Strict):
    """A file of any kind of media, as a base64 `data:` URL or plain base64. Files by id are not kept here."""

    file_data: Address
    filename: Annotated[str, Field(max_length=1024)] | None = None


class FilePart(Strict):
    """A file; what it is, its content says."""

    type: Literal["file"]
    file: FileData


UserPart = Annotated[TextPart | ImagePart | VideoPart | AudioAddressPart | AudioPart | FilePart, Field(discriminator="type")]

# -- messages -----------------------------------------------------------------------------------------------------


class SystemMessage(Strict):
    """What the model is told first."""

    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], Few]
    name: str | None = None


class UserMessage(Strict):
    """What the user says and shows."""

    role: Literal["user"]
    content: str | Annotated[list[UserPart], Few]
    name: str | None = None


class AudioReference(Strict):
    """A sound of an answer by its id; the rest is as it came."""

    id: Id
    data: str | None = None
    expires_at: Integer | None = None
    transcript: str | None = None


class AnswerPart(Strict):
    """A part of an answer as it came: text, or a medium by its id."""

    type: Annotated[str, Field(min_length=1, max_length=64)]
    text: str | None = None
    id: Id | None = None
    mime_type: str | None = None
    seed: Integer | None = None
    url: str | None = None
    b64_json: str | None = None
    expires_at: Integer | None = None


class AnswerImage(Strict):
    """A picture of an answer as it came; its place in the answer is told by the content."""

    type: Literal["image_url"]
    image_url: MediaAddress
    index: Integer | None = None


AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class AssistantMessage(Strict):
    """What the assistant answered: as it came, or its text alone, or one of its sounds by id."""

    role: Literal["assistant"]
    content: str | Annotated[list[AssistantPart], FewOrNone] | None = None
    parts: Annotated[list[AnswerPart], FewOrNone] | None = None
    images: Annotated[list[AnswerImage], FewOrNone] | None = None
    audio: AudioReference | None = None
    refusal: str | None = None
    name: str | None = None
    annotations: Never | None = None
    tool_calls: Never | None = None
    function_call: None = None
    parsed: None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]

# -- options ------------------------------------------------------------------------------------------------------


class StreamOptions(Strict):
    """What else is streamed."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    include_previews: bool | None = None


class TextFormat(Strict):
    """Plain text."""

    type: Literal["text"]


class ChatRequest(Strict):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    modalities: Annotated[list[str], Field(min_length=1, max_length=16)] | None = None
    media_format: Literal["url", "b64_json"] | None = None
    max_completion_tokens: Integer | None = None
    max_tokens: Integer | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[Integer, Field(ge=0, lt=2**53)] | None = None
    n: Integer | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=256)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=4)]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Taken, and nothing here depends on them.
    user: Annotated[str, Field(max_length=1024)] | None = None
    safety_identifier: Annotated[str, Field(max_length=1024)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=1024)] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    store: bool | None = None
    parallel_tool_calls: bool | None = None
    # Taken at their neutral values.
    metadata: Nothing | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Nothing | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=0)] | None = None
    tools: Never | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Never | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: TextFormat | None = None
    prediction: None = None
    web_search_options: None = None
    moderation: None = None
    prompt_cache_options: None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    service_tier: Literal["auto", "default"] | None = None


def media_options(kind: str, decoder: Decoder, limits: ServerSettings) -> type[Strict]:
    """The options of a decoder: those that it has, as far as it can make them and the server lets it."""
    steps, most = limits.max_steps, {"num_frames": limits.max_frames, "duration": limits.max_seconds}
    fields: dict[str, Any] = {
        "num_inference_steps": Annotated[Integer, Field(ge=1, le=steps)],
        "guidance_scale": Annotated[float, Field(gt=0, le=100)],
    }
    for name, size in decoder.sizes.items():
        bound = most.get(name, limits.max_side)
        bound = bound if size.most is None else min(bound, size.most) if size.least <= bound else size.most
        step = size.step if size.step and size.least % size.step == 0 else None
        number = float if name in ("fps", "duration") else Integer
        fields[name] = Annotated[number, Field(ge=size.least, le=bound, multiple_of=step if number is Integer else None)]
    if "fps" in decoder.defaults:
        fields.setdefault("fps", Annotated[float, Field(ge=1, le=MAX_FPS)])
    if kind == SPOKEN:
        fields |= SPOKEN_FIELDS
    own = {name: (field | None, None) for name, field in fields.items()}
    return create_model(f"{kind.capitalize()}Options", __base__=Strict, __doc__=f"Options of the {kind} decoder.", **own)


def chat_request(pipeline: NextGPTPipeline, limits: ServerSettings) -> type[ChatRequest]:
    """The body with what a model can make: each kind has options under its own name, and a count in `require`."""
    kinds = tuple(kind for kind in pipeline.output_modalities if kind != "text")
    count = (Annotated[Integer, Field(ge=0, le=16)] | None, None)
    require = create_model("Require", __base__=Strict, __doc__="How many of each kind.", **dict.fromkeys(kinds, count))
    options = {kind: media_options(kind, decoder, limits) for kind, decoder in pipeline.decoders.items()}
    fields: dict[str, Any] = {kind: (own | None, None) for kind, own in options.items()}
    listed = list[Literal[("text", *kinds)]]
    tokens = (Annotated[Integer, Field(ge=1, le=limits.max_new_tokens)] | None, None)
    return create_model(
        "ChatCompletionRequest",
        __base__=ChatRequest,
        __doc__=ChatRequest.__doc__,
        model=(Annotated[str, Field(json_schema_extra={"enum": [limits.model]})], ...),
        messages=(Annotated[list[Message], Field(min_length=1, max_length=limits.max_messages, fail_fast=True)], ...),
        modalities=(Annotated[listed, Field(min_length=1, max_length=16)] | None, None),
        n=(Annotated[Integer, Field(ge=1, le=limits.max_answers)] | None, None),
        max_tokens=tokens,
        max_completion_tokens=tokens,
        require=(require | None, None),
        **fields,
    )


MAX_FPS = 60.0
SPOKEN = "audio"  # the kind that OpenAI's `audio` field is about
# What its clients say there of a spoken answer: sounds here are WAV files, and nobody speaks.
SPOKEN_FIELDS = {"format": Literal["wav"], "voice": Annotated[str, Field(max_length=64)]}


class ImageRequest(Strict):
    """The body of `POST /v1/images/generations`."""

    prompt: Annotated[str, Field(min_length=1, max_length=32_000)]
    model: str | None = None
    n: Integer | None = None
    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$")] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    seed: Annotated[Integer, Field(ge=0, lt=2**53)] | None = None
    num_inference_steps: Integer | None = None
    guidance_scale: Annotated[float, Field(gt=0, le=100)] | None = None
    user: Annotated[str, Field(max_length=1024)] | None = None
    safety_identifier: Annotated[str, Field(max_length=1024)] | None = None
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    output_format: Literal["png"] | None = None
    output_compression: Annotated[Integer, Field(ge=100, le=100)] | None = None
    style: None = None
    stream: Literal[False] | None = None
    partial_images: Annotated[Integer, Field(ge=0, le=0)] | None = None


def image_request(limits: ServerSettings) -> type[ImageRequest]:
    """The body with the limits of a server."""
    named = Annotated[str, Field(json_schema_extra={"enum": [limits.model]})]
    return create_model(
        "ImageGenerationRequest",
        __base__=ImageRequest,
        __doc__=ImageRequest.__doc__,
        model=(named | None, None),
        n=(Annotated[Integer, Field(ge=1, le=limits.max_answers)] | None, None),
        num_inference_steps=(Annotated[Integer, Field(ge=1, le=limits.max_steps)] | None, None),
    )
