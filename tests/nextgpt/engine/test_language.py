"""Rows that join and leave the LLM's batch at any token: each is answered as it would be alone."""

import random
import threading

import pytest
import torch
from transformers import Lfm2Config, MistralConfig

from nextgpt.engine.language import LanguageWorker
from nextgpt.engine.limits import Limits
from tiny_models import FAMILIES, SIZES


def answer_joining(pipeline, requests: list, rng: random.Random, rows_at_a_time: int = 12) -> LanguageWorker:
    """Has one worker answer all requests, each submitted before a pass of the LLM that is drawn at random."""
    worker = LanguageWorker(pipeline.model, threading.RLock(), Limits(max_batch_rows=rows_at_a_time))
    plan = [request.row() for request in requests]

    def before_pass(module, args):
        if rng.random() < 0.4:
            submit_next(rng.randint(1, 3))

    def submit_next(count: int) -> None:
        worker.submit([plan.pop() for _ in range(min(len(plan), count))])

    hook = pipeline.model.get_decoder().register_forward_pre_hook(before_pass)
    try:
        submit_next(1)
        for request in reversed(requests):
            while request.inbox.empty() and plan:  # should all that were submitted be done before the next is
                if not worker.snapshot().active:
                    submit_next(1)
            request.wait()
    finally:
        hook.remove()
        worker.close()
    return worker


def is_near_tie(pipeline, request, tokens: list[int], position: int) -> bool:
    """Whether the two best logits at a position of the answer alone lie within 1e-4."""
    ids = torch.cat([request.inputs["input_ids"], torch.tensor([tokens[:position]], dtype=torch.long)], dim=1)
    values = {name: tensor for name, tensor in request.inputs.items() if name.endswith("_values")}
    with torch.no_grad():
        best = pipeline.model(ids, **values, logits_to_keep=1).logits[0, -1].topk(2).values
    return float(best[0] - best[1]) <= 1e-4


def check_alike(pipeline, requests: list) -> int:
    """Asserts that each was answered as alone, up to where it was stopped; returns how many near ties went otherwise."""
    apart = 0
    for request in requests:
        alone, answer, stopped = request.alone(), request.stop.row.answer, request.stop.is_set()
        tokens, expected = answer.tokens, alone.sequences[0]
        if stopped:
            runs = [run.position for run in alone.runs if run.position < len(tokens)]
            last = next((p for p in runs if p + len(pipeline.model.vocabulary.runs[kind_at(alone, p)]) == len(tokens)), -1)
            assert min(len(tokens) - 1, last if last >= 0 else len(tokens)) <= request.stop.count
            expected = expected[: len(tokens)]
        if tokens != expected:
            position = next((i for i, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]), -1)
            assert position >= 0 and is_near_tie(pipeline, request, expected, position)
            apart += 1
            continue
        assert stopped or len(request.runs) == len(alone.runs)
        for one, other in zip(request.runs, alone.runs, strict=False):
            assert (one.modality, one.position) == (other.modality, other.position)
            torch.testing.assert_close(one.hidden_states, other.hidden_states, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(one.token_embeddings, other.token_embeddings, atol=1e-4, rtol=1e-3)
    return apart


def kind_at(answer, position: int) -> str:
    return next(run.modality for run in answer.runs if run.position == position)


@pytest.mark.parametrize("count", [40, pytest.param(100, marks=pytest.mark.slow)])
def test_rows_that_join_at_random_are_answered_as_alone(assistant, draw, count):
    requests = draw(assistant, count, seed=7)
    stats = answer_joining(assistant, requests, random.Random(7)).snapshot()
    assert check_alike(assistant, requests) < max(1, count / 100)
    assert stats.begun == stats.done + stats.stopped == count and stats.failed == 0
    assert max(stats.steps) == 12  # rows at a time
    assert sum(rows * steps for rows, steps in stats.steps.items()) > 3 * sum(stats.steps.values())


OTHERS = {
    "gemma": ("gemma", {}),
    "within a sliding window": ("mistral", {}),
    "beyond a sliding window": ("narrow", {}),
    "prompt tuning": ("llama", {"adapter": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}}),
    "prefix tuning": ("llama", {"adapter": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}}),
    "media as prefixes": ("llama", {"input_bridge": {"kind": "prefix", "num_layers": 2}}),
}


@pytest.fixture
def more_families(monkeypatch):
    """A sliding window shorter than any prompt, and an LLM with recurrent states beside keys and values."""
    monkeypatch.setitem(FAMILIES, "narrow", lambda vocab: MistralConfig(vocab_size=vocab, **SIZES, sliding_window=24))
    layers = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    monkeypatch.setitem(FAMILIES, "recurrent", lambda vocab: Lfm2Config(vocab_size=vocab, **SIZES, **layers))


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_so_are_rows_of_other_models_and_adapters(make_pipeline, more_families, draw, tmp_path, other):
    family, changes = OTHERS[other]
    pipeline = make_pipeline(tmp_path, family, **changes)
    if "input_bridge" in changes:
        torch.nn.init.normal_(pipeline.model.input_projection.gate)
    requests = draw(pipeline, 40, seed=1)
    stats = answer_joining(pipeline, requests, random.Random(1), rows_at_a_time=5).snapshot()
    assert check_alike(pipeline, requests) == 0 and stats.failed == 0
    assert max(stats.steps) == 5


def test_rows_whose_caches_cannot_be_joined_take_turns(make_pipeline, more_families, draw, tmp_path):
    pipeline = make_pipeline(tmp_path, "recurrent")
    requests = draw(pipeline, 12, seed=2)
    stats = answer_joining(pipeline, requests, random.Random(2)).snapshot()
    assert check_alike(pipeline, requests) == 0 and stats.failed == 0
    assert set(stats.steps) == {1}
