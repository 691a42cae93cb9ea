"""Tiny LLMs of few positions, so that a short conversation is beyond them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from nextgpt import NextGPTConfig, NextGPTForConditionalGeneration, NextGPTPipeline, NextGPTProcessor
from nextgpt.decoders import load_decoder
from tiny_models import FAMILIES, SIZES, tiny_config
from tiny_training import make_responsive

POSITIONS = 128
SHORT = SIZES | {"max_position_embeddings": POSITIONS}
SLIDING = SIZES | {"max_position_embeddings": 256}
NEW = {
    "short": lambda vocab: LlamaConfig(vocab_size=vocab, **SHORT),
    "sliding mistral": lambda vocab: MistralConfig(vocab_size=vocab, **SLIDING, sliding_window=None),
    "sliding qwen2": lambda vocab: Qwen2Config(vocab_size=vocab, **SLIDING, max_window_layers=1),
    "ignoring": lambda vocab: LlamaConfig(vocab_size=vocab, **SHORT, sliding_window=32),
    "scaled": lambda vocab: LlamaConfig(vocab_size=vocab, **SHORT, rope_parameters={"rope_type": "linear", "factor": 2.0}),
}
Made = tuple[NextGPTForConditionalGeneration, NextGPTProcessor]


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Iterator[Callable[[str], NextGPTConfig]]:
    """Gives, by the family of the LLM, a configuration whose frozen parts are there."""
    made: dict[str, NextGPTConfig] = {}

    def of(family: str) -> NextGPTConfig:
        if family not in made:
            folder = tmp_path_factory.mktemp("parts")
            made[family] = tiny_config(folder, family)
            make_responsive(folder / "language_model" / "model.safetensors")
        return made[family]

    with pytest.MonkeyPatch.context() as patch:
        for family, config in NEW.items():
            patch.setitem(FAMILIES, family, config)
        yield of


@pytest.fixture(scope="session")
def build(parts) -> Callable[..., Made]:
    """Makes a model that calls for pictures now and then; `changes` are of its configuration."""

    def make(family: str = "short", **changes) -> Made:
        named = {
            name: getattr(parts(family), name) for name in ("language_model", "encoder", "decoders", "output_projection")
        }
        torch.manual_seed(0)
        model = NextGPTForConditionalGeneration.from_parts(
            NextGPTConfig(**named, **({"adapter": {"peft_type": "LORA", "r": 4}} | changes))
        )
        with torch.no_grad():
            model.input_projection.weight.mul_(30)
            model.signal_rows.output.normal_(std=0.1)
        return model, NextGPTProcessor.from_config(model.config)

    return make


@pytest.fixture(scope="session")
def answering() -> Callable[[Made], NextGPTPipeline]:
    """A pipeline of a model; its pictures take one step."""

    def make(made: Made) -> NextGPTPipeline:
        decoder = load_decoder("stable-diffusion", made[0].config.location("image"))
        decoder.defaults = decoder.defaults | {"num_inference_steps": 1}
        return NextGPTPipeline(*made, {"image": decoder})

    return make
