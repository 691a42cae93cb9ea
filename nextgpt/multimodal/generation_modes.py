"""transformers' `generate` with a `generation_mode`, as its own any-to-any models have it.

In text mode it is transformers' own, in which a run of signal tokens is always whole. In another mode every answer holds
exactly one piece of media of that kind, which the frozen decoder makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from nextgpt.decoders import Decoder
from nextgpt.errors import ModelLoadError, UserInputError, did_you_mean, first_line
from nextgpt.events import MAX_SEED, GenerationOptions
from nextgpt.generation import SignalRun
from nextgpt.hardware import resolve_dtype
from nextgpt.hub.loading import load_frozen_decoder
from nextgpt.signals import SignalVocabulary

logger = logging.get_logger(__name__)

MAX_NEW_TOKENS = 256  # of an answer with media, where neither the call nor the generation config says
# What a single answer with media has no use for, and the value that says nothing.
_TEXT_ONLY = {"num_beams": 1, "num_return_sequences": 1, "logits_processor": None, "stopping_criteria": None}


@dataclass
class NextGPTGenerateOutput(ModelOutput):
    """What `generate` returns in a mode other than text with `return_dict_in_generate`.

    Args:
        sequences: `[batch, length]`, prompts and answers, padded on the right.
        media: one piece for each row, as `generate` returns it alone.
    """

    sequences: Tensor | None = None
    media: Tensor | None = None


class GenerationModesMixin:
    """`generate` in modes; expects `InterleavedGenerationMixin` and `GenerationMixin` behind it, and `decoders`."""

    @property
    def output_modalities(self) -> tuple[str, ...]:
        """What an answer may hold, text included: the generation modes."""
        return ("text", *self.vocabulary.runs)

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the sounds that the model makes."""
        return self._media_decoder("audio").sampling_rate

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        *,
        generation_mode: str | None = None,
        decoder_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`, and answers with media.

        Args:
            inputs: `[batch, length]`; or as `input_ids`.
            generation_mode: None or "text" for transformers' own, in all its ways; "image", "audio" or "video" for answers
                that hold exactly one piece of this kind, which is made. The seeds of the media are drawn from torch's
                generator (`transformers.set_seed`).
            decoder_kwargs: options of the mode's decoder (`num_inference_steps`, `guidance_scale`, `height` …).
            kwargs: as for transformers' `generate`, `<modality>_values` among them; a mode other than text is greedy or
                samples, and gives one answer to a prompt.

        Returns:
            In text mode what transformers returns; otherwise one piece of media for each row, as uint8 pictures `[batch,
            height, width, 3]`, float32 sounds `[batch, samples]` at the model's `sampling_rate`, or uint8 clips `[batch,
            frames, height, width, 3]`; with `return_dict_in_generate` a [`NextGPTGenerateOutput`].

        Raises:
            UserInputError: the model has no such mode, or an argument is not known in it.
            ContractError: the answer ended before it held the media.
        """
        kwargs |= {"generation_config": generation_config, "logits_processor": logits_processor}
        if generation_mode is not None and generation_mode not in self.output_modalities:
            raise UserInputError(
                f"generation_mode is {generation_mode!r}: this model's modes are {', '.join(self.output_modalities)}"
            )
        if generation_mode in (None, "text"):
            if decoder_kwargs:
                raise UserInputError(
                    f"decoder_kwargs {decoder_kwargs}: in text mode no decoder runs; give a generation_mode"
                )
            return self._generate_text(inputs, **kwargs)
        return self._generate_media(generation_mode, inputs, decoder_kwargs or {}, **kwargs)

    def _generate_text(self, inputs: Tensor | None, logits_processor: LogitsProcessorList | None, **kwargs: Any) -> Any:
        processors = LogitsProcessorList([*(logits_processor or ()), _WholeRuns(self.vocabulary)])
        result = super().generate(inputs, logits_processor=processors, **kwargs)
        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        answers = (result if isinstance(result, Tensor) else result.sequences)[:, 0 if prompt is None else prompt.shape[1] :]
        if called := [modality for start, modality in self.vocabulary.starts.items() if (answers == start).any()]:
            logger.warning_once(
                f"An answer calls for {' and '.join(called)}, which text mode leaves out: ask with generation_mode="
                f"{called[0]!r}, or use NextGPTPipeline, whose answers hold all of it"
            )
        return result

    def _generate_media(self, mode: str, inputs: Tensor | None, options: dict, **kwargs: Any) -> Any:
        config = kwargs["generation_config"] or self.generation_config
        for name, neutral in _TEXT_ONLY.items():
            given = kwargs.pop(name, None)
            given = getattr(config, name, None) if given is None else given
            if given not in (None, neutral) and given:
                raise UserInputError(
                    f"{name} is {given}: with generation_mode={mode!r} an answer is greedy or sampled, one to a prompt; "
                    "leave it out"
                )
        returns_dict = kwargs.pop("return_dict_in_generate", config.return_dict_in_generate)
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        kwargs |= {"use_cache": True, "cache_implementation": None}  # an answer goes on from its cache after each medium
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is None:
            raise UserInputError(f"input_ids is missing: with generation_mode={mode!r} give what the processor gives")
        decoder = self._media_decoder(mode)
        check_decoder_options(decoder, options)
        if "streamer" in kwargs:
            kwargs["streamer"].put(input_ids.cpu())  # transformers' streamers expect the prompt first
        budget = _token_budget(config, kwargs, input_ids.shape[1])
        output = self.generate_interleaved(input_ids, max_new_tokens=budget, require={mode: 1}, **kwargs)
        runs = sorted(output.runs, key=lambda run: run.row)
        seeds = torch.randint(MAX_SEED, (len(runs),)).tolist()
        media = _stack(make_media(self, decoder, runs, seeds, options))
        return NextGPTGenerateOutput(self._padded(input_ids, output.sequences), media) if returns_dict else media

    def _padded(self, prompts: Tensor, answers: list[list[int]]) -> Tensor:
        pad = self.generation_config.pad_token_id
        pad = pad if pad is not None else next(iter(self.eos_ids()), 0)
        rows = pad_sequence([prompts.new_tensor(answer) for answer in answers], batch_first=True, padding_value=pad)
        return torch.cat([prompts, rows], dim=1)

    def _media_decoder(self, modality: str) -> Decoder:
        """The decoder beside the model; its weights load on first use, in the precision that is usual for the device."""
        if modality not in self.vocabulary.runs:
            raise AttributeError(f"this model gives {', '.join(self.output_modalities)}, not {modality}")
        device = self.get_input_embeddings().weight.device
        decoder = self.decoders.get(modality)
        if decoder is None or decoder.device != device:
            decoder = load_frozen_decoder(self.config, modality, device, resolve_dtype("auto", device))
            self.decoders[modality] = decoder
        return decoder


class _WholeRuns(LogitsProcessor):
    """After a run's first signal token comes the rest of it; no other signal token comes by itself."""

    def __init__(self, vocabulary: SignalVocabulary):
        runs = vocabulary.runs.values()
        self.following = {token: after for run in runs for token, after in zip(run, run[1:], strict=False)}
        self.inner = [token for run in runs for token in run[1:]]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores, width = scores.clone(), scores.shape[1]  # lookups in the prompt score the LLM's own tokens alone
        scores[:, [token for token in self.inner if token < width]] = -torch.inf
        for row, last in zip(scores, input_ids[:, -1].tolist(), strict=True):
            if last in self.following:
                row.fill_(-torch.inf)
                row[self.following[last] :][:1] = 0.0
        return scores


def check_media_options(decoders: Mapping[str, Decoder], options: GenerationOptions) -> None:
    """Checks the options of all decoders, as `check_decoder_options` does."""
    for modality, decoder in decoders.items():
        check_decoder_options(decoder, options.of_decoder(modality))


def check_decoder_options(decoder: Decoder, options: dict) -> None:
    """Before the LLM begins: an option that its decoder does not know or cannot make is an error even if no media come.

    Raises:
        UserInputError: names the option.
        ModelLoadError: the decoder's files cannot be read.
    """
    known = set(decoder.defaults)
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known, f"it knows {', '.join(sorted(known))}")
            raise UserInputError(f"the {decoder.modality} decoder has no option {name!r}; {hint}")
    try:
        decoder.check_options(options)
    except ValueError as error:
        raise UserInputError(f"{decoder.modality} options {options}: {error}") from None
    except OSError as error:
        raise ModelLoadError(f"the {decoder.modality} decoder: {first_line(error)}") from error


def make_media(
    model: Any,
    decoder: Decoder,
    runs: Sequence[SignalRun],
    seeds: Sequence[int],
    options: dict,
    on_step: Callable | None = None,
    cancel: Any = None,
) -> list:
    """Signal runs of one modality → PIL images, `Audio` or `Video` items.

    Args:
        model: has the output projections.
        seeds: one for each run.
        options, on_step, cancel: as for `Decoder.generate`.

    Raises:
        UserInputError: an option does not fit.
        ModelLoadError: the decoder cannot be loaded.
    """
    conditioning = model.project(
        decoder.modality,
        torch.stack([run.hidden_states for run in runs]),
        torch.stack([run.token_embeddings for run in runs]),
    )
    try:
        return decoder.generate(conditioning, seeds=seeds, on_step=on_step, cancel=cancel, **options)
    except (TypeError, ValueError) as error:
        raise UserInputError(f"{decoder.modality} options {options}: {error}") from error
    except OSError as error:
        raise ModelLoadError(str(error)) from error


def _token_budget(config: GenerationConfig, kwargs: dict, prompt_length: int) -> int:
    """Takes `max_new_tokens` and `max_length` out of a call's arguments; those come first, then the configuration's."""
    for source in ({name: kwargs.pop(name, None) for name in ("max_new_tokens", "max_length")}, config.to_dict()):
        if source.get("max_new_tokens") is not None:
            return source["max_new_tokens"]
        if source.get("max_length") is not None:
            return source["max_length"] - prompt_length
    return MAX_NEW_TOKENS


def _stack(media: list) -> Tensor:
    """Pictures, or media that are an array and its rate, as one tensor."""
    arrays = [item[0] if isinstance(item, tuple) else item for item in media]
    return torch.stack([torch.from_numpy(np.array(array)) for array in arrays])
