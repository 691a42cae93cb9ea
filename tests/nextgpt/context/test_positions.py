"""Scaled positions: caches, batches, sessions and checkpoints beyond the limit that the LLM was trained with."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from media_values import noise_picture
from nextgpt import NextGPTForConditionalGeneration, NextGPTPipeline
from nextgpt.errors import UserInputError
from nextgpt.report.info import describe_model
from tiny_models import new_tokens

KINDS = ("linear", "dynamic", "yarn")
PICTURE = noise_picture(200)
SHORT = [{"role": "user", "content": "hi"}]  # within 128 positions, as its answer is
SHOWN = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "I see a cat. " * 8}]}]
LONG = [{"role": "user", "content": "What do you see? I see a cat and a dog." * 6}]
PROMPTS = [SHORT, SHOWN, LONG]


@pytest.fixture(scope="module", params=KINDS)
def longer(request, build):
    return build(rope_parameters={"rope_type": request.param, "factor": 4.0})


def generated(made, prompts: list, **options) -> list[list[int]]:
    """New tokens of every row, up to the end of its answer."""
    return new_tokens(*made, prompts, max_new_tokens=10, **options)


def kind(made) -> str:
    return made[0].config.rope_parameters["rope_type"]


def test_beyond_the_old_limit_a_cache_and_a_batch_change_no_answer(longer, build):
    lengths = [longer[1]([prompt])["input_ids"].shape[1] for prompt in PROMPTS]
    assert lengths[0] < 118 and min(lengths[1:]) > 128
    answers = generated(longer, PROMPTS)
    assert generated(longer, PROMPTS, use_cache=False) == answers
    assert [generated(longer, [prompt])[0] for prompt in PROMPTS] == answers
    assert generated(longer, PROMPTS[::-1]) == answers[::-1]  # nothing is kept of a longer one before
    plain = generated(build(), PROMPTS)
    assert plain != answers and (kind(longer) != "dynamic" or plain[0] == answers[0])


def test_beams_are_those_of_no_cache(longer):
    options = {"num_beams": 2}
    assert generated(longer, [LONG], **options) == generated(longer, [LONG], use_cache=False, **options)


def test_signal_states_of_a_batch_are_those_of_single_answers(longer):
    model, processor = longer

    def answers(prompts: list):
        return model.generate_interleaved(**processor(prompts), max_new_tokens=24, require={"image": 1}, do_sample=False)

    together = answers(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = answers([prompt])
        assert together.sequences[row] == alone.sequences[0]
        [run] = [run for run in together.runs if run.row == row]
        torch.testing.assert_close(run.hidden_states, alone.runs[0].hidden_states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("adapter", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_virtual_tokens_count(build, adapter):
    rope = {"rope_type": "dynamic", "factor": 4.0}
    made = build(rope_parameters=rope, adapter={"peft_type": adapter, "num_virtual_tokens": 9})
    assert made[0].config.max_positions == 512 - 9
    answers = generated(made, PROMPTS)
    assert generated(made, PROMPTS, use_cache=False) == answers
    assert [generated(made, [prompt])[0] for prompt in PROMPTS] == answers


def test_a_second_turn_with_a_kept_cache_is_answered_as_without(longer, answering):
    pipe = answering(longer)
    options = {"max_new_tokens": 8, "output_modalities": ["text"]}
    session, messages, cached = pipe.new_session(), list(SHORT), []
    for user in (SHOWN, LONG, None):
        reply = pipe(messages, session=session, **options)
        assert reply.token_ids == pipe(messages, **options).token_ids
        cached.append(reply.timings.cached_tokens)
        messages += [reply.message, *(user or [])]
    assert cached[0] == 0
    if kind(longer) == "dynamic":  # each turn's frequencies are others
        assert cached[1:] == [0, 0]
    else:
        assert 100 < cached[1] < cached[2]


def test_dynamic_positions_keep_their_cache_up_to_the_old_limit(build, answering):
    pipe = answering(build(rope_parameters={"rope_type": "dynamic", "factor": 4.0}))
    session, options = pipe.new_session(), {"max_new_tokens": 3, "output_modalities": ["text"]}
    system = [{"role": "system", "content": "A chat between a curious user and an artificial intelligence assistant."}]
    again = [*system, {"role": "user", "content": "ha"}]
    pipe(system + SHORT, session=session, **options)
    reply = pipe(again, session=session, **options)
    assert 60 < reply.timings.cached_tokens < reply.timings.prompt_tokens < 128 - 3
    assert reply.token_ids == pipe(again, **options).token_ids


def test_rows_in_the_engine_are_answered_as_alone(longer, answering):
    pipe = answering(longer)
    options = {"max_new_tokens": 8, "output_modalities": ["text"]}
    assert [reply.token_ids for reply in pipe(PROMPTS, **options)] == [pipe(each, **options).token_ids for each in PROMPTS]


@torch.no_grad()
def states(model, embeddings: Tensor) -> Tensor:
    return model(inputs_embeds=embeddings, use_cache=False).last_hidden_state


@torch.no_grad()
def test_states_are_those_of_transformers(longer):
    """Of a Llama whose own configuration has the same `rope_parameters`, made anew for each length."""
    model, processor = longer
    base, rope = model.get_base_model(), model.config.rope_parameters
    positions = {} if rope["rope_type"] == "dynamic" else {"max_position_embeddings": 512}
    if rope["rope_type"] != "yarn":
        rope = {name: value for name, value in rope.items() if name != "original_max_position_embeddings"}
    adapter = {name: tensor for name, tensor in base.state_dict().items() if "lora" not in name}
    weights = {name.replace("base_layer.", ""): tensor for name, tensor in adapter.items()}
    for prompt in (LONG, SHORT):
        inputs = processor([prompt])
        own = base.config.to_dict() | positions | {"rope_parameters": rope | {"rope_theta": 10000.0}}
        reference = LlamaForCausalLM(LlamaConfig(**own))
        reference.load_state_dict(weights)
        found = model._run(model.embed(inputs["input_ids"]), inputs["attention_mask"]).hidden_states
        expected = states(reference.model.eval(), model.embed(inputs["input_ids"]))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_keeps_the_longer_context_and_all_limits_follow(longer, build, answering, tmp_path):
    for each in longer:
        each.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    rope = {"rope_type": kind(longer), "factor": 4.0, "original_max_position_embeddings": 128}
    assert written["rope_parameters"] == rope
    pipe = NextGPTPipeline.from_pretrained(tmp_path)
    config = pipe.model.config
    assert config.rope_parameters == rope and config.text_config.max_position_embeddings == pipe.position_limit == 512
    loaded = NextGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert generated((loaded, pipe.processor), PROMPTS) == generated(longer, PROMPTS)
    assert ("positions", f"{kind(longer)}, 4 × 128 positions") in describe_model(tmp_path)

    options = {"max_new_tokens": 2, "output_modalities": ["text"]}
    before = answering(build())
    with pytest.raises(UserInputError, match=r"2\d\d tokens, the model takes 1\d\d"):
        before(LONG, **options)
    assert pipe(LONG, **options).token_ids
    with pytest.raises(UserInputError, match=r"tokens, the model takes 5\d\d"):
        pipe([{"role": "user", "content": LONG[0]["content"] * 4}], **options)


def test_a_row_of_a_batch_learns_as_alone(longer):
    model, processor = longer
    taught = [[*prompt, {"role": "assistant", "content": "A cat."}] for prompt in PROMPTS]
    given = {"add_generation_prompt": False, "return_labels": True, "padding_side": "right"}
    with torch.no_grad():
        together = model(**processor(taught, **given)).loss
        alone = [model(**processor([each], **given)).loss for each in taught]
    torch.testing.assert_close(together, torch.stack(alone).mean(), atol=1e-5, rtol=1e-5)
