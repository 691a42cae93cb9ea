"""The assistant as a whole: messages in, messages with media out.

It joins the processor, the model and the decoders, and owns what lives between calls: the engine, sessions.
It has no model code of its own, and nothing here decides what an answer holds: that is the LLM's tokens alone.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator

import torch

from nextgpt.adapters import virtual_tokens
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders import Decoder
from nextgpt.engine.answers import Answer, read_conversations
from nextgpt.engine.engine import Engine
from nextgpt.engine.limits import Limits
from nextgpt.errors import ModelLoadError, UserInputError
from nextgpt.events import Event, Finished, GenerationOptions, Reply
from nextgpt.hardware import resolve_device, resolve_dtype
from nextgpt.hub.loading import check_parts, load_frozen_decoder, read_quantization, replace_parts
from nextgpt.hub.parts import fetch_model
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.multimodal.generation_modes import check_media_options
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.session import Session

DEFAULT_MODEL = "nano"


class NextGPTPipeline:
    """Any mix of text, images, audio and video in, any mix out.

    Args:
        model, processor: as loaded or trained.
        decoders: output modality → frozen decoder; they load on first use and stay.
        limits: of what is answered at a time; may be changed later, as `pipe.engine.limits`.

    Example:

        from nextgpt import NextGPTPipeline

        pipe = NextGPTPipeline.from_pretrained("nano")
        messages = [{"role": "user", "content": "Draw a banana on a blue background."}]
        reply = pipe(messages)
        reply.images[0].save("banana.png")
        messages += [reply.message, {"role": "user", "content": "Now on red."}]
        reply = pipe(messages)

    It is safe to call from several threads: the calls are answered together, each as it would be alone.
    `pipe.engine.stats()` counts what is under way.
    """

    def __init__(
        self,
        model: NextGPTForConditionalGeneration,
        processor: NextGPTProcessor,
        decoders: dict[str, Decoder],
        limits: Limits | None = None,
    ):
        self.model, self.processor, self.decoders = model, processor, decoders
        self._lock = threading.RLock()  # held while the LLM computes
        self.engine = Engine(model, limits, self._lock)
        weakref.finalize(self, self.engine.close, wait=False).atexit = False
        if model.vocabulary != processor.vocabulary:
            raise ModelLoadError(
                f"the model's own tokens are {model.vocabulary}, the processor's {processor.vocabulary}: "
                "give a language model with the vocabulary that was trained with"
            )
        missing = set(model.vocabulary.runs) - set(decoders)
        if missing:
            raise ValueError(f"no decoder for {', '.join(sorted(missing))}: give one for each kind the model can emit")

    # ------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike = DEFAULT_MODEL,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        parts: dict[str, str] | None = None,
        device_map: str | dict | None = None,
        quantization: str | None = None,
        revision: str | None = None,
        limits: Limits | None = None,
    ) -> NextGPTPipeline:
        """Loads a trained model with its frozen parts.

        Args:
            name_or_path: a preset ("nano" comes with the package), a folder or a Hub repository.
            device: "auto" takes an accelerator where there is one.
            dtype: "auto" is fp32 on CPUs and half precision elsewhere.
            parts: frozen part → folder or repository to use in place of the configuration's, e.g.
                `{"language_model": "/models/vicuna-7b-v1.5"}`; the decoders go by their modality, as `image`.
            device_map: for the LLM, as in transformers (needs accelerate).
            quantization: "4bit" or "8bit" for the LLM (needs bitsandbytes).
            revision: of the Hub repository.
            limits: of what is answered at a time.

        Raises:
            ModelLoadError: something is missing (all of it is listed, with sizes and the place to put it) or does
                not fit.
        """
        location = fetch_model(name_or_path, revision)
        config = NextGPTConfig.from_pretrained(location)
        replace_parts(config, parts or {})
        check_parts(config, location, str(name_or_path))
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        model = NextGPTForConditionalGeneration.from_pretrained(
            location,
            config=config,
            dtype=dtype,
            device_map={"": device} if device_map is None and quantization and device.type != "cpu" else device_map,
            quantization_config=read_quantization(quantization, dtype),
        )
        if device_map is None and quantization is None:
            if model.adapter:
                model.adapter.merge()
            model.to(device)
        else:
            device = model.get_input_embeddings().weight.device
            for module in (model.encoder, *model.trained_modules().values()):
                module.to(device)
        decoders = {modality: load_frozen_decoder(config, modality, device, dtype) for modality in config.signal_tokens}
        return cls(model, NextGPTProcessor.from_pretrained(location), decoders, limits)

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def position_limit(self) -> int | None:
        """How many positions the LLM has for a conversation, where it says so."""
        return self.model.config.max_positions

    @property
    def input_modalities(self) -> tuple[str, ...]:
        """What may stand in a user's message, text included."""
        return ("text", *self.model.vocabulary.placeholders)

    @property
    def output_modalities(self) -> tuple[str, ...]:
        """What an answer may hold, text included."""
        return ("text", *self.model.vocabulary.runs)

    @property
    def signal_tokens(self) -> dict[str, list[str]]:
        """Output modality → the run of tokens that calls for it, as the LLM writes it."""
        runs = self.model.vocabulary.runs
        return {modality: self.processor.tokenizer.convert_ids_to_tokens(run) for modality, run in runs.items()}

    def new_session(self) -> Session:
        """A session for one conversation: its KV cache is reused from turn to turn."""
        return Session(virtual_tokens=virtual_tokens(self.model.config.adapter))

    # ------------------------------------------------------------------ answering

    def check(self, messages: str | list[dict], **options) -> None:
        """Reads messages and their media, and the options of an answer, as a call does, without answering.

        Raises:
            UserInputError, ContractError: whatever a call would find wrong with them.
        """
        chosen = GenerationOptions.from_keywords(options)
        check_media_options(self.decoders, chosen)
        self.model.start_rows(1, chosen.max_new_tokens, chosen.output_modalities, chosen.require)
        read_conversations(self.model, self.processor, _as_messages(messages), chosen.output_modalities)

    def __call__(
        self,
        messages: str | list[dict] | list[list[dict]],
        *,
        session: Session | None = None,
        cancel: threading.Event | None = None,
        **options,
    ) -> Reply | list[Reply]:
        """Answers one conversation, or each of a list of conversations.

        Args:
            messages: in Hugging Face's chat format, see the README; or the words of one message of the user's.
            session: keeps the KV cache between the turns of one conversation.
            cancel: set it, from another thread, to stop within one token or one diffusion step; the reply holds what
                was finished by then.
            options: see [`GenerationOptions`].

        Raises:
            UserInputError: a message, file or argument is not what it should be.
            ContractError: the model cannot give what `require` or `output_modalities` asks for.
            QueueFullError: too many requests are waiting already.
            DeadlineExceeded: the answer took longer than its `deadline`.
            EngineError: a worker crashed, or the pipeline was closed meanwhile.
        """
        asked = GenerationOptions.from_keywords(options)
        batched = isinstance(messages, (list, tuple)) and bool(messages) and isinstance(messages[0], (list, tuple))
        if batched and session is not None:
            raise UserInputError("a session belongs to one conversation, not to a list of them: leave it out")
        answer = Answer(self.engine, self.processor, self.decoders, asked, cancel)
        conversations = messages if batched else [_as_messages(messages)]
        for _ in answer.run(conversations, session):
            pass
        replies = [answer.reply(row) for row in range(len(conversations))]
        return replies if batched else replies[0]

    def stream(
        self,
        messages: str | list[dict],
        *,
        session: Session | None = None,
        cancel: threading.Event | None = None,
        **options,
    ) -> Iterator[Event]:
        """Answers one conversation as typed events, see `nextgpt.events`; the last is `Finished`, with the reply.

        Media are made where they stand in the answer, before the text after them. Closing the iterator stops the
        answer. Arguments and errors are those of a call.
        """
        asked = GenerationOptions.from_keywords(options)
        answer = Answer(self.engine, self.processor, self.decoders, asked, cancel, streams=True)
        yield from answer.run([_as_messages(messages)], session)
        yield Finished(answer.reply(0))

    def close(self) -> None:
        """Ends the threads that answer; answers under way fail with an `EngineError`. A later call starts them again."""
        self.engine.close()


def _as_messages(messages: str | list[dict]) -> list[dict]:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
