"""The assistant as a whole: messages in, messages with media out.

It joins the processor, the model and the decoders, and owns what lives between calls: sessions, locks, seeds, timings.
It has no model code of its own, and nothing here decides what an answer holds: that is the LLM's tokens alone.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import BatchFeature

from nextgpt.adapters import virtual_tokens
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders import Decoder, GenerationCancelled
from nextgpt.errors import UserInputError
from nextgpt.events import Event, Finished, GenerationOptions, MediaDone, MediaProgress, MediaStarted, Reply, Timings
from nextgpt.generation import InterleavedOutput, SignalRun
from nextgpt.hardware import resolve_device, resolve_dtype
from nextgpt.hub.loading import check_parts, load_frozen_decoder, read_quantization, replace_parts
from nextgpt.hub.parts import fetch_model
from nextgpt.modalities import take_values
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.multimodal.generation_modes import check_decoder_options, make_media
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.session import Session, fingerprint_media, forgetting_on_error
from nextgpt.streaming import AnswerStreamer, AnyOf

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "nano"


class NextGPTPipeline:
    """Any mix of text, images, audio and video in, any mix out.

    Args:
        model, processor: as loaded or trained.
        decoders: output modality → frozen decoder; they load on first use and stay.

    Example:

        from nextgpt import NextGPTPipeline

        pipe = NextGPTPipeline.from_pretrained("nano")
        messages = [{"role": "user", "content": "Draw a banana on a blue background."}]
        reply = pipe(messages)
        reply.images[0].save("banana.png")
        messages += [reply.message, {"role": "user", "content": "Now on red."}]
        reply = pipe(messages)

    It is safe to call from several threads; the calls take turns.
    """

    def __init__(self, model: NextGPTForConditionalGeneration, processor: NextGPTProcessor, decoders: dict[str, Decoder]):
        self.model, self.processor, self.decoders = model, processor, decoders
        self._lock = threading.RLock()
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
            device_map=device_map,
            quantization_config=read_quantization(quantization, dtype),
        )
        if device_map is None and quantization is None:
            if model.adapter:
                model.adapter.merge()
            model.to(device)
        else:
            device = model.get_input_embeddings().weight.device
            for module in (model.encoder, model.input_projection, model.output_projections, model.signal_rows):
                module.to(device)
        decoders = {modality: load_frozen_decoder(config, modality, device, dtype) for modality in config.signal_tokens}
        return cls(model, NextGPTProcessor.from_pretrained(location), decoders)

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

    def check(self, messages: list[dict]) -> None:
        """Reads messages and their media as a call does, without answering.

        Raises:
            UserInputError: whatever a call would find wrong with them.
        """
        self._read(messages)

    def _read(self, conversations: list[dict] | list[list[dict]]) -> BatchFeature:
        """Messages → the processor's tensors, refused where they are longer than the LLM's positions."""
        limit = self.position_limit
        return self.processor(conversations, max_length=limit - 1 if limit else None)

    @torch.no_grad()
    def __call__(
        self,
        messages: list[dict] | list[list[dict]],
        *,
        session: Session | None = None,
        cancel: threading.Event | None = None,
        **options,
    ) -> Reply | list[Reply]:
        """Answers one conversation, or each of a list of conversations.

        Args:
            messages: in Hugging Face's chat format; see the README.
            session: keeps the KV cache between the turns of one conversation.
            cancel: set it, from another thread, to stop within one token or one diffusion step; the reply holds what
                was finished by then.
            options: see [`GenerationOptions`].

        Raises:
            UserInputError: a message, file or argument is not what it should be.
            ContractError: the model cannot give what `require` or `output_modalities` asks for.
        """
        asked = GenerationOptions.from_keywords(options)
        batched = isinstance(messages, (list, tuple)) and bool(messages) and isinstance(messages[0], (list, tuple))
        if batched and session is not None:
            raise UserInputError("a session belongs to one conversation, not to a list of them: leave it out")
        answer = _Answer(self, asked, cancel)
        conversations = messages if batched else [messages]
        with self._turn(cancel) as my_turn:
            output = answer.generate(conversations, session) if my_turn else answer.give_up(len(conversations))
            answer.decode(output.runs)
        replies = [answer.reply(row) for row in range(len(output.sequences))]
        return replies if batched else replies[0]

    def stream(
        self,
        messages: list[dict],
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
        events: queue.Queue = queue.Queue()
        abandoned = threading.Event()
        answer = _Answer(self, asked, AnyOf(abandoned, cancel), emit=events.put)
        worker = threading.Thread(
            target=self._stream_into, args=(events, answer, messages, session), name="nextgpt-stream", daemon=True
        )
        worker.start()
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            abandoned.set()
            worker.join()

    @torch.no_grad()
    def _stream_into(self, events: queue.Queue, answer: _Answer, messages: list[dict], session) -> None:
        try:
            with self._turn(answer.cancel) as my_turn:
                _ = answer.generate([messages], session) if my_turn else answer.give_up(1)
            events.put(Finished(answer.reply(0)))
        except BaseException as error:  # raised in the reader's thread
            events.put(error)
        finally:
            events.put(None)

    @contextmanager
    def _turn(self, cancel: threading.Event | None) -> Iterator[bool]:
        """Waits until no other call is being answered; gives False when cancelled before that."""
        while not self._lock.acquire(timeout=0.05):
            if cancel is not None and cancel.is_set():
                yield False
                return
        try:
            yield True
        finally:
            self._lock.release()


class _Answer:
    """One call under way: the LLM's part, then (or, in a stream, meanwhile) the decoders' part, then the reply."""

    def __init__(self, pipeline: NextGPTPipeline, options: GenerationOptions, cancel, emit=None):
        self.pipeline, self.options, self.cancel, self.emit = pipeline, options, cancel, emit
        self.started = time.perf_counter()
        self.timings: list[Timings] = []
        for modality, decoder in pipeline.decoders.items():
            check_decoder_options(decoder, options.of_decoder(modality))
        self.media: dict[tuple[int, int], dict] = {}  # (row, position in the answer) → message part
        self.output: InterleavedOutput | None = None

    def generate(self, conversations: list[list[dict]], session: Session | None) -> InterleavedOutput:
        """Runs the LLM; in a stream every piece of media is made as soon as its run is there."""
        pipeline, model = self.pipeline, self.pipeline.model
        inputs = self._prepare(conversations)
        prompt = inputs["input_ids"][0].tolist()
        cached = session.reuse(prompt, fingerprint_media(model, inputs)) if session is not None else 0
        self.timings = [
            Timings(prompt_tokens=int(mask.sum()), cached_tokens=cached, prepare=self._elapsed())
            for mask in inputs["attention_mask"]
        ]
        streamer = None
        if len(conversations) == 1:
            streamer = AnswerStreamer(pipeline.processor, self.emit, self.options.output_modalities)
        generating = time.perf_counter()
        with _seeded(self.options.seed if self.options.do_sample else None), forgetting_on_error(session):
            self.output = model.generate_interleaved(
                **inputs,
                max_new_tokens=self._token_budgets(inputs["attention_mask"].sum(1).tolist()),
                output_modalities=self.options.output_modalities,
                require=self.options.require,
                past_key_values=session.cache if session is not None else None,
                on_run=self._decode_now if self.emit else None,
                streamer=streamer,
                cancel=self.cancel,
                **self.options.sampling(),
            )
        seconds = time.perf_counter() - generating
        for timing, tokens in zip(self.timings, self.output.sequences, strict=True):
            timing.new_tokens = len(tokens)
            timing.generate = seconds - sum(each for _, each in timing.media)
            timing.first_token = (streamer.first_token or time.perf_counter()) - self.started if streamer else 0.0
        if session is not None:
            session.remember(prompt + self.output.sequences[0], self.output.past_key_values)
        return self.output

    def give_up(self, count: int) -> InterleavedOutput:
        """Cancelled before it began."""
        self.timings = [Timings() for _ in range(count)]
        self.output = InterleavedOutput([[] for _ in range(count)], finished=[False] * count)
        return self.output

    def decode(self, runs: list[SignalRun]) -> None:
        """Makes the media of a batch: one call of each decoder."""
        for modality, decoder in self.pipeline.decoders.items():
            own = [run for run in runs if run.modality == modality]
            if not own:
                continue
            began = time.perf_counter()
            seeds = [self.options.seed + self._media_index(run, runs) for run in own]
            try:
                media = self._run_decoder(decoder, own, seeds)
            except GenerationCancelled:
                return
            seconds = (time.perf_counter() - began) / len(own)
            for run, item, seed in zip(own, media, seeds, strict=True):
                self._keep(run, item, seed, seconds)

    def reply(self, row: int) -> Reply:
        """The finished answer of one conversation."""
        content, position = [], 0
        tokens = self.output.sequences[row]
        vocabulary = self.pipeline.model.vocabulary
        switched_off = [run for run in self.output.switched_off if run.row == row]
        left_out = {run.position + i for run in switched_off for i in range(len(vocabulary.runs[run.modality]))}
        kept = [i for i in range(len(tokens)) if i not in left_out]
        starts = [i for i in kept if tokens[i] in vocabulary.starts]
        for part in self.pipeline.processor.decode_parts([tokens[i] for i in kept]):
            if part["type"] == "text":
                content.append(part)
                continue
            made = self.media.get((row, starts[position]))
            position += 1
            if made is not None:  # absent when cancelled
                content.append(made)
        finished = self.output.finished[row] and not (self.cancel is not None and self.cancel.is_set())
        self.timings[row].total = self._elapsed()
        message = {"role": "assistant", "content": content}
        kinds = list(dict.fromkeys(run.modality for run in switched_off))
        return Reply(message, finished, self.timings[row], token_ids=tokens, switched_off=kinds)

    def _prepare(self, conversations: list[list[dict]]) -> dict:
        model = self.pipeline.model
        inputs = {name: tensor.to(self.pipeline.device) for name, tensor in self.pipeline._read(conversations).items()}
        inputs["media_features"] = model.encode_media(inputs["input_ids"], **take_values(inputs))
        return inputs

    def _token_budgets(self, prompt_lengths: list[int]) -> list[int]:
        """What each row may generate: never beyond the LLM's positions, a last run included."""
        asked, model = self.options.max_new_tokens, self.pipeline.model
        limit = self.pipeline.position_limit
        if limit is None:
            return [asked] * len(prompt_lengths)
        longest_run = max((len(run) for run in model.vocabulary.runs.values()), default=1)
        return [max(min(asked, limit - length - longest_run + 1), 1) for length in prompt_lengths]

    def _decode_now(self, run: SignalRun) -> None:
        """In a stream: makes one piece of media where it stands in the answer."""
        index = len(self.media)
        seed = self.options.seed + index
        self.emit(MediaStarted(index, run.modality, seed))

        def on_step(step: int, total: int, preview) -> None:
            self.emit(MediaProgress(index, run.modality, step, total, (lambda: preview()[0]) if preview else None))

        began = time.perf_counter()
        try:
            media = self._run_decoder(self.pipeline.decoders[run.modality], [run], [seed], on_step)[0]
        except GenerationCancelled:
            return
        seconds = time.perf_counter() - began
        self._keep(run, media, seed, seconds)
        self.emit(MediaDone(index, run.modality, media, seed, seconds))

    def _run_decoder(self, decoder: Decoder, runs: list[SignalRun], seeds: list[int], on_step=None) -> list:
        options = self.options.of_decoder(decoder.modality)
        return make_media(self.pipeline.model, decoder, runs, seeds, options, on_step, self.cancel)

    def _media_index(self, run: SignalRun, runs: list[SignalRun]) -> int:
        return sum(other.row == run.row and other.position < run.position for other in runs)

    def _keep(self, run: SignalRun, media, seed: int, seconds: float) -> None:
        self.media[run.row, run.position] = {"type": run.modality, run.modality: media, "seed": seed}
        self.timings[run.row].media.append((run.modality, seconds))

    def _elapsed(self) -> float:
        return time.perf_counter() - self.started


@contextmanager
def _seeded(seed: int | None):
    """Sampling draws from torch's global generator; this leaves it as it was."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
