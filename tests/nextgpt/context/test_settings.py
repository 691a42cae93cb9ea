"""What a configuration says of a longer context: transformers' keys, old and new, and what is none of them."""

from __future__ import annotations

import copy

import pytest
from transformers import AutoConfig, Gemma3TextConfig, GPT2Config

from nextgpt import NextGPTConfig
from nextgpt.context.settings import lengthened, read_rope
from nextgpt.errors import UserInputError

YARN = {"rope_type": "yarn", "factor": 4}


@pytest.mark.parametrize(
    "given",
    [
        {"rope_parameters": {"rope_type": "linear", "factor": 2}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2}},
        {"rope_scaling": {"type": "linear", "factor": 2}},
    ],
    ids=str,
)
def test_the_old_key_and_the_old_name_of_the_kind_are_read(parts, given):
    config = parts("short")
    read = NextGPTConfig(language_model=config.language_model, encoder=config.encoder, **given)
    assert read.text_config.max_position_embeddings == read.max_positions == 256
    assert read.rope_parameters == {"rope_type": "linear", "factor": 2, "original_max_position_embeddings": 128}
    assert read.rope_scaling == read.rope_parameters  # as of transformers' own configurations
    assert read.text_config.rope_parameters == read.rope_parameters | {"rope_theta": 10000.0}


def test_the_original_limit_is_what_one_says_it_is(parts):
    config = copy.deepcopy(parts("short"))
    config.lengthen({"rope_type": "dynamic", "factor": 8, "original_max_position_embeddings": 64})
    assert config.max_positions == 512
    assert config.language_model_config().max_position_embeddings == 64  # where transformers' dynamic positions begin


def test_a_configuration_without_it_stays_as_it_was(parts, tmp_path):
    config = parts("short")
    assert not {"rope_parameters", "rope_scaling", "sliding_window"} & config.to_dict().keys()
    assert config.language_model_config() is config.text_config


BAD = {
    "rope_type is 'longrope', expected one of linear, dynamic, yarn": {"rope_type": "longrope", "factor": 4},
    "rope_type is None, expected one of": {"factor": 4},
    "factor is missing: by how much": {"rope_type": "yarn"},
    "factor is 1, expected a number above 1": {"rope_type": "yarn", "factor": 1},
    "factor is 'four', expected a number above 1": {"rope_type": "yarn", "factor": "four"},
    "factor is True, expected a number": {"rope_type": "yarn", "factor": True},
    "factor is nan, expected a number": {"rope_type": "linear", "factor": float("nan")},
    "original_max_position_embeddings is 0, expected a whole": YARN | {"original_max_position_embeddings": 0},
    "unknown key 'beta' of yarn; .*beta_": YARN | {"beta": 3},
    "unknown key 'beta_fast' of linear": {"rope_type": "linear", "factor": 4, "beta_fast": 32},
    "beta_fast is below beta_slow": YARN | {"beta_fast": 1, "beta_slow": 2},
    "attention_factor is -1, expected a number above 0": YARN | {"attention_factor": -1},
    "truncate is 'no', expected true or false": YARN | {"truncate": "no"},
    "rope_parameters is 4, expected fields": 4,
}


@pytest.mark.parametrize("message", BAD)
def test_bad_settings_are_one_clear_line(message):
    with pytest.raises(UserInputError, match=message) as caught:
        read_rope(BAD[message])
    assert "\n" not in str(caught.value)


def test_both_keys_at_once_are_refused():
    with pytest.raises(UserInputError, match="both rope_parameters and rope_scaling"):
        read_rope(YARN, YARN)


def test_what_has_no_positions_to_scale_is_refused_by_name(parts):
    scaled = AutoConfig.from_pretrained(parts("scaled").language_model["source"])
    for config, message in (
        (GPT2Config(), "a gpt2 has no rotary positions to scale"),
        (Gemma3TextConfig(), "a gemma3_text has positions of several kinds"),
        (scaled, r"the LLM's own positions are scaled already \(linear\)"),
    ):
        with pytest.raises(UserInputError, match=message):
            lengthened(config, YARN, None)


def test_positions_are_scaled_once(parts):
    config = copy.deepcopy(parts("short"))
    with pytest.raises(UserInputError, match="16 × 4 are 64 positions, the LLM has 128 already: raise the factor"):
        config.lengthen(YARN | {"original_max_position_embeddings": 16})
    assert config.rope_parameters is None
    config.lengthen(YARN)
    config.lengthen(YARN)  # the same again, as a second run says it
    with pytest.raises(UserInputError, match=r"scaled already \(yarn, 4 × 128 positions\)"):
        config.lengthen(YARN | {"factor": 8})
