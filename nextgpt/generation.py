"""Interleaved generation: `GenerationMixin.generate` strung together around forced runs of signal tokens.

It knows token ids, caches and signal states. It does not sample (that is transformers'), and it does not know what the
signal states become.

Each segment ends where a row emits a run's first signal token. The rest of the run is appended, the whole run is fed in
one forward pass by the next segment with the same cache, and generation goes on: a broken run cannot occur, and a run of
24 tokens costs one step.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from nextgpt.adapters import virtual_tokens
from nextgpt.errors import ContractError, NextGPTError
from nextgpt.modalities import take_values
from nextgpt.signals import SignalVocabulary


@dataclass
class SignalRun:
    """One run of signal tokens in an answer.

    Args:
        row: of the batch.
        modality: what it becomes.
        position: index of its first token in the row's answer.
        hidden_states, token_embeddings: `[signal_tokens, hidden]`, last layer and input.
    """

    row: int
    modality: str
    position: int
    hidden_states: Tensor | None = None
    token_embeddings: Tensor | None = None


@dataclass
class InterleavedOutput:
    """What `generate_interleaved` returns.

    Args:
        sequences: per row, the generated ids without the prompt, end-of-sequence token included.
        runs: all signal runs, in the order they were completed.
        finished: per row, whether the answer ended by itself (not by a limit or a cancel).
        past_key_values: cache of the prompt and the answer; for a single row only.
        switched_off: the runs of kinds that `output_modalities` leaves out, without states. They stand in `sequences`.
    """

    sequences: list[list[int]]
    runs: list[SignalRun] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    past_key_values: object | None = None
    switched_off: list[SignalRun] = field(default_factory=list)


@dataclass
class AnswerRow:
    """One answer under way.

    Args:
        index: its row of the call.
        budget: how many tokens it may still emit.
        allowed: the kinds that are made.
        required: modality → how many are still to come; with `exact`, no other kind may come.
        tokens: what was emitted so far.
        finished: whether it ended by itself.
        open_run: the run that its last token began; all of it stands in `tokens`, and is still to be fed.
    """

    index: int
    budget: int
    allowed: frozenset[str]
    required: Counter
    exact: bool
    tokens: list[int] = field(default_factory=list)
    finished: bool = False
    open_run: SignalRun | None = None

    def may_start(self, modality: str) -> bool:
        """Whether a run of this kind may come now."""
        return self.required[modality] > 0 if self.exact else True

    def take(self, token: int, vocabulary: SignalVocabulary, eos_ids: Sequence[int], stopped: bool = False) -> bool:
        """Takes the next token, with the rest of the run that it may begin, and says whether a segment ends with it.

        Args:
            stopped: the answer was cancelled: no run begins any more.
        """
        modality = vocabulary.starts.get(token)
        if modality is None:
            self.tokens.append(token)
            self.budget -= 1
        elif not stopped:
            run = vocabulary.runs[modality]
            self.open_run = SignalRun(self.index, modality, position=len(self.tokens))
            self.required[modality] -= 1
            self.tokens += run
            self.budget = max(self.budget - len(run), 0)
        self.finished = token in eos_ids
        return self.finished or modality is not None

    def check_contract(self) -> None:
        """Raises ContractError where the answer has ended without what `require` asks for."""
        unmet = {modality: number for modality, number in self.required.items() if number > 0}
        if self.exact and unmet:
            raise ContractError(f"the answer ended without {unmet}: raise max_new_tokens")

    @property
    def recorded_run(self) -> SignalRun | None:
        """The open run, if something is to become of it."""
        return self.open_run if self.open_run is not None and self.open_run.modality in self.allowed else None


class InterleavedGenerationMixin:
    """Gives a model with signal tokens `generate_interleaved`; expects `vocabulary`, `config` and `GenerationMixin`."""

    @torch.no_grad()
    def generate_interleaved(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int | Sequence[int] = 256,
        output_modalities: Sequence[str] | None = None,
        require: dict[str, int] | None = None,
        media_features: Tensor | None = None,
        past_key_values: Cache | None = None,
        on_run: Callable[[SignalRun], None] | None = None,
        streamer: BaseStreamer | None = None,
        cancel: threading.Event | None = None,
        **generate_kwargs,
    ) -> InterleavedOutput:
        """Generates answers in which any number of media stand anywhere.

        Args:
            input_ids, attention_mask: `[batch, length]`, left-padded.
            max_new_tokens: for every row, or one for each; a run that has begun is completed all the same.
            output_modalities: kinds that are made, text among them; all by default. The LLM's choice stays its own: where it
                calls for another kind, nothing is made, it goes on as if it were there, and `switched_off` tells of it.
            require: modality → how many an answer must contain, exactly; no other kind is given then.
            media_features: `[media, embed_dim]` in row-major order of the placeholders.
            past_key_values: cache of a prefix of `input_ids` (single row).
            on_run: called as soon as a run's states are known, before any token after it.
            streamer: gets the new tokens, as they come (single row).
            cancel: set it to stop within one token.
            generate_kwargs: `<modality>_values`, and anything else for transformers' `generate`.

        Raises:
            ContractError: `require` asks for a kind this model cannot give or for more than the token budget holds,
                or an answer ended without it.
            NextGPTError: the model computed numbers that are none.
        """
        values = take_values(generate_kwargs)
        if media_features is None:
            media_features = self.encode_media(input_ids, **values)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = self.start_rows(len(input_ids), max_new_tokens, output_modalities, require)
        output = InterleavedOutput(sequences=[row.tokens for row in rows])
        relay = _SegmentStreamer(streamer) if streamer is not None else None
        active, cache = rows, past_key_values
        while active:
            recorder = RunRecorder(active, self.vocabulary.runs, output.runs, on_run)
            result = self.generate_segment(
                input_ids,
                attention_mask=mask,
                past_key_values=cache,
                media_features=media_features,
                signal_recorder=recorder if recorder.is_needed else None,
                max_new_tokens=max(max(row.budget, 1) for row in active),
                logits_processor=LogitsProcessorList([SignalGate(self, active, input_ids.shape[1])]),
                stopping_criteria=StoppingCriteriaList([_SegmentEnd(self, active, input_ids.shape[1], cancel)]),
                streamer=relay if active[0].budget > 0 else None,
                **generate_kwargs,
            )
            cache, media_features = result.past_key_values, None
            for row, new in zip(active, result.sequences[:, input_ids.shape[1] :].tolist(), strict=True):
                self._advance(row, new, cancel)
            output.switched_off += [row.open_run for row in active if row.open_run is not row.recorded_run]
            input_ids, mask, kept = self._append_runs(active, result.sequences, mask)
            if len(kept) < len(active) and kept:
                cache.batch_select_indices(torch.tensor(kept, device=input_ids.device))
            active = [active[i] for i in kept]
            if relay is not None and active:  # the first token of the run has been streamed already
                relay.put_run(self.vocabulary.runs[active[0].open_run.modality][1:])
        if relay is not None:
            relay.finish()
        output.finished = [row.finished for row in rows]
        output.past_key_values = cache if len(rows) == 1 else None
        if cancel is None or not cancel.is_set():
            for row in rows:
                row.check_contract()
        return output

    @torch.no_grad()
    def generate_segment(self, input_ids: Tensor, **arguments: Any) -> GenerateDecoderOnlyOutput:
        """transformers' own `generate` of this model, with its arguments; `media_features` and `signal_recorder` too."""
        return super().generate(input_ids=input_ids, return_dict_in_generate=True, **arguments)

    def _validate_model_kwargs(self, model_kwargs: dict) -> None:
        """transformers reads off `forward` what is known; what media may come there says the table of modalities."""
        take_values(model_kwargs)
        super()._validate_model_kwargs(model_kwargs)

    def _expand_inputs_for_generation(self, expand_size: int = 1, input_ids: Tensor | None = None, **kwargs) -> tuple:
        """Encodes the media once, before rows become beams or several answers, and repeats their features row by row."""
        values = take_values(kwargs)
        if any(value is not None for value in values.values()):
            kwargs["media_features"] = self.encode_media(input_ids, **values)
        features = kwargs.pop("media_features", None)
        if features is not None and expand_size > 1:
            rows = features.split(self.get_placeholder_mask(input_ids).sum(1).tolist())
            features = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, input_ids=input_ids, **kwargs)
        return input_ids, kwargs if features is None else kwargs | {"media_features": features}

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        media_features: Tensor | None = None,
        signal_recorder: Callable | None = None,
        is_first_iteration: bool = False,
        next_sequence_length: int | None = None,
        **kwargs,
    ) -> dict:
        """Media features and the recorder belong to the first pass of a segment; a cached prefix needs no features."""
        if is_first_iteration and next_sequence_length is not None:
            # `generate` takes off what the cache holds, and with it an adapter's virtual tokens, which are no input ids.
            next_sequence_length += virtual_tokens(self.config.adapter)
        kwargs["next_sequence_length"] = next_sequence_length
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration:
            inputs["signal_recorder"] = signal_recorder
        if media_features is not None and (is_first_iteration or kwargs.get("use_cache") is False):
            placeholders = self.get_placeholder_mask(input_ids)
            order = placeholders.flatten().cumsum(0).view_as(placeholders) - 1
            fed = inputs["input_ids"].shape[1]
            inputs["media_features"] = media_features[order[:, -fed:][placeholders[:, -fed:]]]
        return inputs

    def start_rows(
        self,
        count: int,
        max_new_tokens: int | Sequence[int],
        output_modalities: Sequence[str] | None = None,
        require: dict[str, int] | None = None,
    ) -> list[AnswerRow]:
        """The answers of `count` prompts, before their first token; arguments and errors as of `generate_interleaved`."""
        budgets = [max_new_tokens] * count if isinstance(max_new_tokens, int) else list(max_new_tokens)
        if output_modalities is not None and "text" not in output_modalities:
            raise ContractError("an answer always may hold text: add text to output_modalities, or use require")
        possible = set(self.vocabulary.runs)
        wanted = set(require or {}) | (set(output_modalities or ()) - {"text"})
        if wanted - possible:
            raise ContractError(
                f"this model cannot give {', '.join(sorted(wanted - possible))}; it gives text"
                + "".join(f", {modality}" for modality in sorted(possible))
            )
        allowed = possible if output_modalities is None else possible & set(output_modalities)
        if require and set(require) - allowed:
            raise ContractError(
                f"require asks for {', '.join(sorted(set(require) - allowed))}, which output_modalities leaves out"
            )
        required = Counter({modality: number for modality, number in (require or {}).items() if number})
        needed = sum(len(self.vocabulary.runs[modality]) * number for modality, number in required.items())
        if needed > min(budgets):
            raise ContractError(
                f"{dict(required)} takes {needed} signal tokens, and only {min(budgets)} may be generated: "
                "raise max_new_tokens or shorten the conversation"
            )
        return [
            AnswerRow(i, budget, frozenset(allowed), Counter(required), exact=require is not None)
            for i, budget in enumerate(budgets)
        ]

    def _advance(self, row: AnswerRow, new: list[int], cancel) -> None:
        """Takes a segment's tokens into a row, up to the end of the answer, the budget or a signal."""
        row.open_run = None
        stopped = cancel is not None and cancel.is_set()
        for token in new[: row.budget]:  # a spent budget means that the segment only fed the last run
            if row.take(token, self.vocabulary, self.eos_ids(), stopped):
                return

    def _append_runs(self, active: list[AnswerRow], sequences: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Keeps the rows that stopped at a signal and appends their runs, right-aligned.

        The cache holds all columns but the last. A row that stopped earlier than others went on with padding: those
        columns, its own first signal token among them, are masked out and the run is fed whole.
        """
        kept = [i for i, row in enumerate(active) if row.open_run is not None]
        if not kept:
            return sequences, mask, kept
        prompt, fed = mask.shape[1], sequences.shape[1] - 1
        runs = [self.vocabulary.runs[active[i].open_run.modality] for i in kept]
        width = max(len(run) for run in runs)
        new_ids = sequences.new_zeros(len(kept), width)
        new_mask = mask.new_zeros(len(kept), fed - prompt + width)
        for k, (i, run) in enumerate(zip(kept, runs, strict=True)):
            new_ids[k, width - len(run) :] = torch.tensor(run)
            new_mask[k, -len(run) :] = 1
            signal = (sequences[i, prompt:] == run[0]).nonzero()[0]
            new_mask[k, : int(signal)] = 1
        ids = torch.cat([sequences[kept, :fed], new_ids], dim=1)
        return ids, torch.cat([mask[kept], new_mask], dim=1), kept

    def eos_ids(self) -> list[int]:
        """The tokens that end an answer."""
        eos = self.generation_config.eos_token_id
        return eos if isinstance(eos, list) else [] if eos is None else [eos]


NOT_NUMBERS = (
    "the language model computed NaN or infinite numbers, so there is no answer; load it with another dtype "
    "(float32 or bfloat16), or check its weights"
)


def not_numbers(scores: Tensor) -> Tensor:
    """Which rows of `[batch, vocab_size]` hold NaN or infinity: `[batch]`. Every later state that looks back is spoilt."""
    return (scores.isnan() | scores.isposinf()).any(-1)


class SignalGate(LogitsProcessor):
    """Lets only first signal tokens through, under `require` of its kinds alone, and steers towards those.

    Args:
        model: with its vocabulary.
        rows: the answers, as they were when the segment began.
        prompt_length: of the segment, in columns.
    """

    def __init__(self, model: Any, rows: list[AnswerRow], prompt_length: int):
        vocabulary = model.vocabulary
        self.rows, self.prompt_length, self.runs = rows, prompt_length, vocabulary.runs
        self.signals = slice(vocabulary.offset, vocabulary.offset + vocabulary.num_tokens)
        self.eos = model.eos_ids()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not_numbers(scores).any():
            raise NextGPTError(NOT_NUMBERS)
        return self.gate(scores, spent=input_ids.shape[1] - self.prompt_length)

    def gate(self, scores: Tensor, spent: int) -> Tensor:
        """Scores `[batch, vocab_size]` with what may not come at -inf; `spent` tokens are not yet in the rows' budgets."""
        gated = scores.clone()
        gated[:, self.signals] = -torch.inf
        for i, row in enumerate(self.rows):
            starts = [run[0] for modality, run in self.runs.items() if row.may_start(modality)]
            gated[i, starts] = scores[i, starts]
            required = [self.runs[modality][0] for modality, number in row.required.items() if number > 0]
            if required:
                self._steer(gated[i], required, steps_left=row.budget - spent, row=row)
        return gated

    def _steer(self, scores: Tensor, required: list[int], steps_left: int, row: AnswerRow) -> None:
        """The end of the answer gives its score to the likeliest required signal; the last chance takes everything."""
        best = required[int(scores[required].argmax())]
        needed = sum(len(self.runs[modality]) * max(number, 0) for modality, number in row.required.items())
        if steps_left <= needed:
            scores.fill_(-torch.inf)
            scores[best] = 0.0
        elif self.eos:
            scores[best] = torch.maximum(scores[best], scores[self.eos].max())
            scores[self.eos] = -torch.inf


class _SegmentEnd(StoppingCriteria):
    """A row's segment ends at a first signal token, at its budget, or when cancelled."""

    def __init__(self, model, rows: list[AnswerRow], prompt_length: int, cancel: threading.Event | None):
        self.starts = torch.tensor(sorted(model.vocabulary.starts) or [-1])
        self.limits = torch.tensor([prompt_length + max(row.budget, 1) for row in rows])
        self.cancel = cancel

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        if self.cancel is not None and self.cancel.is_set():
            return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        at_signal = torch.isin(input_ids[:, -1], self.starts.to(input_ids.device))
        return at_signal | (input_ids.shape[1] >= self.limits.to(input_ids.device))


class RunRecorder:
    """Takes the states of the runs that a segment's first pass feeds, and hands them on at once."""

    def __init__(self, rows: Sequence[AnswerRow], runs: dict, collected: list[SignalRun], on_run: Callable | None):
        self.open = [(i, row.recorded_run) for i, row in enumerate(rows) if row.recorded_run is not None]
        self.runs, self.collected, self.on_run = runs, collected, on_run

    @property
    def is_needed(self) -> bool:
        """Whether the first pass feeds any run of which something is to become."""
        return bool(self.open)

    def __call__(self, hidden_states: Tensor, embeddings: Tensor) -> None:
        for i, run in self.open:
            size = len(self.runs[run.modality])
            run.hidden_states = hidden_states[i, -size:].clone()
            run.token_embeddings = embeddings[i, -size:].clone()
            self.collected.append(run)
            if self.on_run is not None:
                self.on_run(run)


class _SegmentStreamer(BaseStreamer):
    """Makes one stream of several segments: passes new tokens on, without the prompts and the ends between."""

    def __init__(self, streamer: BaseStreamer):
        self.streamer, self.skip_prompt = streamer, True

    def put(self, value: Tensor) -> None:
        if self.skip_prompt:
            self.skip_prompt = False
        else:
            self.streamer.put(value)

    def put_run(self, tokens: Sequence[int]) -> None:
        self.streamer.put(torch.tensor(tokens))

    def end(self) -> None:
        self.skip_prompt = True

    def finish(self) -> None:
        self.streamer.end()
