"""A stretch of generation over one batch: transformers' `generate`, until a row has to leave or another may join."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from nextgpt.engine.rows import Row
from nextgpt.engine.sampling import GREEDY
from nextgpt.errors import NextGPTError
from nextgpt.generation import NOT_NUMBERS, RunRecorder, SignalGate, not_numbers


@dataclass
class Batch:
    """Rows that are fed together.

    Args:
        rows: each with as many pending tokens as the others, unless there is no cache yet.
        cache: right-aligned, see `nextgpt.engine.caches`; None before the first pass.
        kind: the cache's `joining_kind`; None where it cannot be joined.
    """

    rows: list[Row]
    cache: Cache | None = None
    kind: tuple | None = None


def run_segment(model: Any, batch: Batch, may_go_on: Callable[[int], bool]) -> int:
    """Feeds the pending tokens of a batch and generates; every row takes the same number of tokens.

    The cache and the rows are brought up to date. Where it raises, the rows have kept all tokens that they took.

    Args:
        model: a `NextGPTForConditionalGeneration`.
        batch: at least one row.
        may_go_on: asked after each token, with how many there are, whether the batch may go on as it is.

    Returns:
        How many tokens each row took; the last one is not in the cache.
    """
    rows = batch.rows
    opened = [row.answer.open_run for row in rows]
    owners = {id(run): row for row in rows if (run := row.answer.recorded_run) is not None}
    answers = [row.answer for row in rows]
    recorder = RunRecorder(answers, model.vocabulary.runs, [], lambda run: owners[id(run)].on_run(run))
    for answer in answers:
        answer.open_run = None
    pending, end = [row.pending for row in rows], _End(model, rows, may_go_on)
    input_ids, mask = _tensors(model, [row.token_ids for row in rows])
    try:
        result = model.generate_segment(
            input_ids,
            attention_mask=mask,
            past_key_values=batch.cache,
            media_features=_features(rows),
            signal_recorder=recorder if recorder.is_needed else None,
            max_new_tokens=max(max(answer.budget, 1) for answer in answers),
            logits_processor=LogitsProcessorList([_Draw(model, rows, end)]),
            stopping_criteria=StoppingCriteriaList([end]),
            **GREEDY,
        )
    except Exception:
        for answer, run in zip(answers, opened, strict=True):
            if run is not None and run.hidden_states is None:  # it is still to be fed
                answer.open_run = run
        raise
    batch.cache = result.past_key_values
    for row, fed in zip(rows, pending, strict=True):
        row.fed += fed + end.steps - 1
    return end.steps


class _Draw(LogitsProcessor):
    """Gates the scores, draws for the rows that sample, and lets a row fail alone where its scores are no numbers."""

    def __init__(self, model: Any, rows: Sequence[Row], end: _End):
        self.rows, self.end = rows, end
        self.gate = SignalGate(model, [row.answer for row in rows], prompt_length=0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.end.reached:  # some devices run one pass ahead; it is undone
            return scores
        spoilt = not_numbers(scores)
        if spoilt.any():
            scores = scores.masked_fill(spoilt[:, None], 0.0)
            for i in spoilt.nonzero().flatten().tolist():
                self.rows[i].error = NextGPTError(NOT_NUMBERS)
        gated = self.gate.gate(scores, spent=0)
        for i, row in enumerate(self.rows):
            if row.sampler is not None and row.error is None:
                token = row.sampler.draw(input_ids[i : i + 1], gated[i : i + 1])
                gated[i] = -torch.inf
                gated[i, token] = 0.0
        return gated


class _End(StoppingCriteria):
    """Hands each row its token; all rows stop where one has to leave or the batch may not go on."""

    def __init__(self, model: Any, rows: Sequence[Row], may_go_on: Callable[[int], bool]):
        self.model, self.rows, self.may_go_on = model, rows, may_go_on
        self.steps, self.reached = 0, False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if not self.reached:
            self.steps += 1
            tokens = input_ids[:, -1].tolist()
            leaving = [row.take(token, self.model) for row, token in zip(self.rows, tokens, strict=True)]
            self.reached = any(leaving) or not self.may_go_on(self.steps)
        return torch.full((len(input_ids),), self.reached, dtype=torch.bool, device=input_ids.device)


def _tensors(model: Any, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids of unequal length → ids and mask `[rows, longest]`, padded on the left."""
    device, length = model.get_input_embeddings().weight.device, max(map(len, rows))
    pad = model.generation_config.pad_token_id or 0
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def _features(rows: Sequence[Row]) -> Tensor | None:
    """Features of all media of the rows, in their order, where a prompt is still to be fed."""
    if all(row.fed >= len(row.prompt) for row in rows):
        return None
    features = [row.features for row in rows if row.features is not None]
    return torch.cat(features) if features else None
