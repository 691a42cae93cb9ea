"""Interleaved generation: forced runs, one pass each, contracts, batches equal to singles, cancelling."""

import threading
from collections import Counter

import pytest
import torch
from PIL import Image

from nextgpt.errors import ContractError
from tiny_decoders import save_tiny_audioldm, save_tiny_stable_diffusion
from tiny_models import tiny_model

RED = Image.new("RGB", (40, 30), "red")
PROMPTS = [
    [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "draw a banana"}]}],
    [{"role": "user", "content": "What do you see? Play a trumpet, then draw a cat and a dog on blue, please."}],
    [{"role": "user", "content": "hi"}],
]


@pytest.fixture(scope="module", params=["llama", "mistral"])
def talker(request, tmp_path_factory):
    """A tiny random model that emits media of both kinds: its signal rows are made likely."""
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny_stable_diffusion(folder / "image")
    save_tiny_audioldm(folder / "audio")
    decoders = {
        "image": {"kind": "stable-diffusion", "source": str(folder / "image")},
        "audio": {"kind": "audioldm", "source": str(folder / "audio")},
    }
    model, processor = tiny_model(folder, request.param, decoders=decoders)
    torch.manual_seed(3)
    with torch.no_grad():
        model.signal_rows.output.normal_(std=0.06)
    return model, processor


def test_batched_answers_equal_single_ones(talker):
    model, processor = talker
    batch = model.generate_interleaved(**processor(PROMPTS), max_new_tokens=60)
    assert sum(len(row) for row in batch.sequences) and len(batch.runs) >= 3
    assert {run.modality for run in batch.runs} == {"image", "audio"}
    for i, prompt in enumerate(PROMPTS):
        single = model.generate_interleaved(**processor(prompt), max_new_tokens=60)
        assert single.sequences[0] == batch.sequences[i]
        own = [run for run in batch.runs if run.row == i]
        assert [(run.modality, run.position) for run in single.runs] == [(run.modality, run.position) for run in own]
        for one, other in zip(single.runs, own, strict=True):
            torch.testing.assert_close(one.hidden_states, other.hidden_states, atol=1e-4, rtol=1e-3)


def test_every_run_is_whole_and_costs_one_pass(talker):
    model, processor = talker
    inputs = processor(PROMPTS[1])
    lengths = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    answer = model.generate_interleaved(**inputs, max_new_tokens=60)
    hook.remove()
    tokens, vocabulary = answer.sequences[0], model.vocabulary
    signals = [token for token in tokens if vocabulary.offset <= token < vocabulary.offset + vocabulary.num_signals]
    assert signals == [token for run in answer.runs for token in vocabulary.runs[run.modality]]
    runs = [len(vocabulary.runs[run.modality]) for run in answer.runs]
    assert lengths[0] == inputs["input_ids"].shape[1]
    assert Counter(lengths[1:]) - Counter(runs) == Counter({1: sum(length == 1 for length in lengths)})


def test_states_are_those_of_a_plain_pass_over_the_whole_answer(talker):
    model, processor = talker
    inputs = processor(PROMPTS[0])
    answer = model.generate_interleaved(**inputs, max_new_tokens=60)
    whole = torch.cat([inputs["input_ids"], torch.tensor([answer.sequences[0]])], dim=1)
    seen = []
    with torch.no_grad():
        model(whole, image_values=inputs["image_values"], signal_recorder=lambda *states: seen.append(states))
    hidden, embeddings = seen[0]
    start = inputs["input_ids"].shape[1]
    assert answer.runs
    for run in answer.runs:
        where = slice(start + run.position, start + run.position + len(model.vocabulary.runs[run.modality]))
        torch.testing.assert_close(run.hidden_states, hidden[0, where], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(run.token_embeddings, embeddings[0, where], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("require", [{"image": 1}, {"audio": 2}, {"image": 1, "audio": 1}, {}])
def test_require_gives_exactly_that(talker, require):
    model, processor = talker
    answer = model.generate_interleaved(**processor(PROMPTS), max_new_tokens=50, require=require)
    for row in range(len(PROMPTS)):
        assert Counter(run.modality for run in answer.runs if run.row == row) == Counter(require)


@pytest.mark.parametrize("kinds", [("text",), ("text", "image"), ("text", "audio")])
def test_output_modalities_leave_other_kinds_out(talker, kinds):
    model, processor = talker
    free = model.generate_interleaved(**processor(PROMPTS), max_new_tokens=60)
    bound = model.generate_interleaved(**processor(PROMPTS), max_new_tokens=60, output_modalities=kinds)
    assert {run.modality for run in free.runs} - set(kinds)  # it would have given others
    assert {run.modality for run in bound.runs} <= set(kinds)


@pytest.mark.parametrize("kinds", [("text",), ("text", "image"), ("text", "audio")])
def test_no_other_kind_is_given_instead_of_one_that_is_switched_off(talker, kinds):
    """The answer is the one that would have come anyhow, without what is switched off; alone and in a batch."""
    model, processor = talker
    free = model.generate_interleaved(**processor(PROMPTS), max_new_tokens=60)
    bound = model.generate_interleaved(**processor(PROMPTS), max_new_tokens=60, output_modalities=kinds)
    assert bound.sequences == free.sequences
    assert places(bound.runs) == {place for place in places(free.runs) if place[2] in kinds}
    assert places(bound.switched_off) == places(free.runs) - places(bound.runs) != set()
    for i, prompt in enumerate(PROMPTS):
        single = model.generate_interleaved(**processor(prompt), max_new_tokens=60, output_modalities=kinds)
        assert single.sequences[0] == bound.sequences[i]
        assert {(i, *place[1:]) for place in places(single.runs)} == {p for p in places(bound.runs) if p[0] == i}


def places(runs) -> set[tuple[int, int, str]]:
    return {(run.row, run.position, run.modality) for run in runs}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"require": {"video": 1}}, "cannot give video"),
        ({"require": {"image": 1}, "output_modalities": ("text", "audio")}, "output_modalities leaves out"),
        ({"require": {"audio": 9}, "max_new_tokens": 20}, "takes 72 signal tokens, and only 20 may be generated"),
    ],
)
def test_what_cannot_be_given_is_said(talker, options, message):
    model, processor = talker
    with pytest.raises(ContractError, match=message):
        model.generate_interleaved(**processor(PROMPTS[2]), **options)


def test_cancel_stops_within_one_token(talker):
    from transformers.generation.streamers import BaseStreamer

    model, processor = talker
    cancel = threading.Event()

    class StopAfter(BaseStreamer):
        count = 0

        def put(self, value):
            self.count += value.numel()
            if self.count >= 5:
                cancel.set()

        def end(self):
            pass

    answer = model.generate_interleaved(
        **processor(PROMPTS[1]), max_new_tokens=200, require={}, streamer=StopAfter(), cancel=cancel
    )
    assert 5 <= len(answer.sequences[0]) <= 6 and answer.finished == [False]
