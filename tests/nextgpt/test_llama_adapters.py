"""LLaMA-Adapter and LLaMA-Adapter V2: what holds for them beside what tests/nextgpt/test_adapters.py asks of every type."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config

from nextgpt import NextGPTConfig, NextGPTForConditionalGeneration, NextGPTPipeline, NextGPTProcessor
from nextgpt.adapters import Adapter
from nextgpt.adapters.llama_adapter_v2 import AdaptedLinear, AdaptedNorm, LlamaAdapterV2Config
from nextgpt.errors import UserInputError
from tiny_models import FAMILIES, answered_together_as_alone, tiny_config, tiny_tokenizer
from tiny_training import make_responsive

PROMPT_TUNED = {"peft_type": "ADAPTION_PROMPT", "adapter_len": 5}
V2 = {"peft_type": "LLAMA_ADAPTER_V2", "r": 4}
both = pytest.mark.parametrize("settings", [PROMPT_TUNED, V2], ids=lambda each: each["peft_type"])
PROMPTS = [
    [{"role": "user", "content": "What do you see? Play a trumpet, then draw a cat and a dog on blue, please."}],
    [{"role": "user", "content": "hi"}],
    [{"role": "user", "content": "Draw a banana."}],
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> NextGPTConfig:
    folder = tmp_path_factory.mktemp("parts")
    config = tiny_config(folder, decoders={})
    make_responsive(folder / "language_model" / "model.safetensors")
    return config


def build(parts: NextGPTConfig, adapter: dict | bool) -> NextGPTForConditionalGeneration:
    torch.manual_seed(0)
    return NextGPTForConditionalGeneration.from_parts(
        NextGPTConfig(language_model=parts.language_model, encoder=parts.encoder, adapter=adapter)
    )


def train(adapter: Adapter) -> None:
    """As if it had learned something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.3)


def plain_language_model(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    vocab = len(tiny_tokenizer())
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
    if family == "wide":  # its heads are wider together than the hidden states
        config = FAMILIES["mistral"](vocab)
        config.head_dim = 16
    else:
        config = GPT2Config(vocab_size=vocab, **sizes) if family == "gpt2" else FAMILIES[family](vocab)
    return AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


IDS = torch.arange(5, 17)[None]


KINDS = [
    *((PROMPT_TUNED, family) for family in ("llama", "vicuna", "mistral", "gpt2")),
    *((V2, family) for family in ("llama", "mistral", "gemma")),
]


@pytest.mark.parametrize(
    ("settings", "family"), KINDS, ids=lambda each: each if isinstance(each, str) else each["peft_type"]
)
@torch.no_grad()
def test_before_the_first_step_it_answers_exactly_as_without_it_and_afterwards_a_cache_changes_nothing(settings, family):
    model = plain_language_model(family)
    expected = model(IDS).logits
    adapter = Adapter(model, settings)
    assert torch.equal(model(IDS).logits, expected)
    train(adapter)
    changed = model(IDS).logits
    assert not torch.allclose(changed, expected, atol=1e-2)
    first = model(IDS[:, :7], use_cache=True)
    rest = model(IDS[:, 7:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], dim=1), changed, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "family", "told"),
    [
        (PROMPT_TUNED, "gemma", "the LLM is 'gemma', and peft has this adapter for llama, mistral, gpt2 alone"),
        (PROMPT_TUNED, "wide", r"the LLM has 4 heads of 16, and peft takes 32 \(hidden_size\) in all"),
        (
            PROMPT_TUNED | {"adapter_layers": 9},
            "llama",
            "Config specifies more adapter layers '9' than the model has '2'",
        ),
        (V2, "gpt2", "the LLM is 'gpt2', which has no linear layers"),
    ],
)
def test_a_language_model_that_it_does_not_fit_is_refused_by_name(settings, family, told):
    with pytest.raises(UserInputError, match=f"adapter: LLaMA-Adapter .*: {told}") as caught:
        Adapter(plain_language_model(family), settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"peft_type": "ADAPTION_PROMPT", "adapter_len": 0}, "adapter_len is 0, expected a whole number of at least 1"),
        ({"peft_type": "ADAPTION_PROMPT", "adapter_layers": 0}, "adapter_layers is 0, expected a whole number"),
        ({"peft_type": "LLAMA_ADAPTER_V2", "rank": 3}, "unknown key 'rank' of LLAMA_ADAPTER_V2"),
        ({"peft_type": "LLAMA_ADAPTER_V2", "r": -1}, "r is -1, expected a whole number of at least 0"),
        ({"peft_type": "LLAMA_ADAPTER_V2", "lora_alpha": "x"}, "lora_alpha is 'x', expected a number above 0"),
    ],
)
def test_settings_that_do_not_work_are_refused_in_one_line(given, told):
    with pytest.raises(UserInputError, match=told) as caught:
        NextGPTConfig(adapter=given)
    assert "\n" not in str(caught.value)


@both
def test_answers_that_are_given_together_are_those_of_single_calls_in_a_second_turn_too(parts, settings):
    model = build(parts, settings)
    train(model.adapter)
    pipe = NextGPTPipeline(model, NextGPTProcessor.from_config(model.config), {})
    sessions, talks = [pipe.new_session() for _ in PROMPTS], PROMPTS
    for turn in range(2):
        replies = answered_together_as_alone(pipe, talks, sessions)
        assert all((reply.timings.cached_tokens > 0) == (turn > 0) for reply in replies)
        again = {"role": "user", "content": "and then?"}
        talks = [[*talk, reply.message, again] for talk, reply in zip(talks, replies, strict=True)]


@torch.no_grad()
def test_rows_padded_on_the_left_are_those_of_single_passes(parts):
    model = build(parts, PROMPT_TUNED)
    train(model.adapter)
    processor = NextGPTProcessor.from_config(model.config)
    found = model(**processor(PROMPTS)).logits[:, -1]
    expected = torch.cat([model(**processor([each])).logits[:, -1] for each in PROMPTS])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------- V2's own layers


def test_v2_has_a_scale_a_bias_and_lora_on_every_linear_layer_and_a_copy_of_every_norm():
    model = plain_language_model("llama")
    linear = sum(isinstance(each, torch.nn.Linear) for each in model.model.modules())
    adapter = Adapter(model, V2)
    layers = [each for each in model.modules() if isinstance(each, AdaptedLinear)]
    assert len(layers) == linear == 14 and not isinstance(model.lm_head, AdaptedLinear)
    assert sum(isinstance(each, AdaptedNorm) for each in model.modules()) == 5
    widths = [(each.base_layer.in_features, each.base_layer.out_features) for each in layers]
    size = sum(2 * out + 4 * (width + out) for width, out in widths) + 5 * 32
    assert sum(each.numel() for each in adapter.parameters().values()) == size
    fixed = Adapter(plain_language_model("llama"), V2 | {"r": 0})
    assert sum(each.numel() for each in fixed.parameters().values()) == sum(2 * out for _, out in widths) + 5 * 32


def test_a_linear_layer_of_v2_computes_the_formula_of_the_paper_merged_or_not():
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 4)
    layer = AdaptedLinear(base, LlamaAdapterV2Config(r=2, lora_alpha=6))
    with torch.no_grad():
        for parameter in (layer.adapter_scale, layer.adapter_bias, layer.lora_B):
            parameter.normal_()
        given = torch.randn(3, 6)
        low_rank = (layer.lora_B @ layer.lora_A @ given.T).T * 3
        expected = layer.adapter_scale * (base(given) + low_rank + layer.adapter_bias)
        torch.testing.assert_close(layer(given), expected)
        layer.merge()
        layer.merge()  # a second time changes nothing
        torch.testing.assert_close(layer(given), expected)


@torch.no_grad()
def test_v2_is_loaded_on_the_plain_language_model_from_its_folder_alone(tmp_path):
    model = plain_language_model("llama")
    adapter = Adapter(model, V2, base="here/llm")
    train(adapter)
    adapter.save(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings.pop("base_model_name_or_path") == "here/llm"
    other = plain_language_model("llama")
    Adapter(other, settings).load_state(load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(other(IDS).logits, model(IDS).logits)


def test_v2_learns_in_fp32_on_a_language_model_in_half_precision():
    model = plain_language_model("llama").to(torch.bfloat16)
    expected = model(IDS).logits
    adapter = Adapter(model, V2)
    assert {each.dtype for each in adapter.parameters().values()} == {torch.float32}
    logits = model(IDS).logits
    assert logits.dtype == torch.bfloat16 and torch.equal(logits, expected)
    logits.float().logsumexp(-1).sum().backward()
    assert all(each.grad is not None for each in adapter.parameters().values())
