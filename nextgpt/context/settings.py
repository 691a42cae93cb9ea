"""Scaled positions and sliding windows: what a configuration says of them, and the LLM's configuration with them.

The keys are those of transformers (`modeling_rope_utils.RopeParameters`), the limits follow from them: with a factor of 4 on
an LLM of 1,024 positions, `original_max_position_embeddings` is 1,024 and `max_position_embeddings` 4,096.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any

from nextgpt.errors import UserInputError, did_you_mean

if TYPE_CHECKING:  # it takes seconds to import; a look at the environment does not need it
    from transformers import PreTrainedConfig

ORIGINAL = "original_max_position_embeddings"
# How positions are scaled → what may be said of it beside `factor` and the rest of COMMON.
KINDS = {
    "linear": (),
    "dynamic": (),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
COMMON = ("rope_type", "factor", ORIGINAL, "rope_theta")
IGNORING = ("nemotron_h",)  # have the field, and no layer that reads it
LEAST_WINDOW = 2  # transformers' cache keeps one column less


def read_rope(given: Any, old: Any = None) -> dict[str, Any] | None:
    """`rope_parameters` of a configuration, checked; None where positions are not scaled.

    Args:
        given: `{"rope_type": "yarn", "factor": 4.0}`, with fields of transformers'.
        old: the same by its old key, `rope_scaling`. In either `type` may stand for `rope_type`.

    Raises:
        UserInputError: both are given, or a key or a value is not known.
    """
    if given and old:
        raise UserInputError("the configuration has both rope_parameters and rope_scaling, its old key: leave that out")
    given = given or old
    if not given:
        return None
    if not isinstance(given, dict):
        raise UserInputError(f"rope_parameters is {given!r}, expected fields as {{rope_type: yarn, factor: 4}}")
    values = {"rope_type": given.get("type")} | {name: value for name, value in given.items() if name != "type"}
    kind = values["rope_type"]
    if kind not in KINDS:
        raise UserInputError(f"rope_parameters: rope_type is {kind!r}, expected one of {', '.join(KINDS)}")
    known = (*COMMON, *KINDS[kind])
    for name, value in values.items():
        if name not in known:
            raise UserInputError(f"rope_parameters: unknown key {name!r} of {kind}; {did_you_mean(name, known)}")
        if problem := _problem(name, value):
            raise UserInputError(f"rope_parameters: {name} is {value!r}, expected {problem}")
    if "factor" not in values:
        raise UserInputError("rope_parameters: factor is missing: by how much the context becomes longer, as 4")
    if values.get("beta_fast", 32) < values.get("beta_slow", 1):
        raise UserInputError("rope_parameters: beta_fast is below beta_slow: exchange them")
    return values


def _problem(name: str, value: Any) -> str:
    """What is expected in place of a value; empty where it will do."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name == "factor":
        return "" if is_number and value > 1 else "a number above 1"
    if name == ORIGINAL:
        return "" if type(value) is int and value > 0 else "a whole number of at least 1"
    if name == "truncate":
        return "" if isinstance(value, bool) else "true or false"
    return "" if name == "rope_type" or (is_number and value > 0) else "a number above 0"


def read_window(given: Any) -> int | None:
    """`sliding_window` of a configuration, checked: how many tokens back a token sees; None for all of them.

    Raises:
        UserInputError: it is no whole number of at least 2.
    """
    if given is not None and (type(given) is not int or given < LEAST_WINDOW):
        raise UserInputError(f"sliding_window is {given!r}, expected a whole number of at least {LEAST_WINDOW}")
    return given


def lengthened(text_config: PreTrainedConfig, rope: dict[str, Any] | None, window: int | None) -> PreTrainedConfig:
    """An LLM's configuration with scaled positions, a sliding window or both; the one given stays as it is.

    Args:
        rope: as `read_rope` gives it; `original_max_position_embeddings` is the LLM's own limit where it is not said.

    Raises:
        UserInputError: the LLM has nothing to scale, its positions are scaled already, or its class has no sliding window.
    """
    changed = copy.deepcopy(text_config)
    if rope:
        _scale(changed, rope)
    return _slide(changed, window) if window else changed


def as_built(text_config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration that the LLM's class is to be built with.

    transformers' dynamic positions take the original limit from `max_position_embeddings`: there it stays as it was.
    """
    if rope_type(text_config) != "dynamic" or ORIGINAL not in text_config.rope_parameters:
        return text_config
    built = copy.deepcopy(text_config)
    built.max_position_embeddings = text_config.rope_parameters[ORIGINAL]
    return built


def rope_type(text_config: PreTrainedConfig) -> str:
    """How an LLM's positions are scaled: `default` where they are not."""
    return (getattr(text_config, "rope_parameters", None) or {}).get("rope_type", "default")


def unchecked_keys(rope: dict[str, Any]) -> set[str]:
    """The keys that transformers does not expect: it knows the original limit of YaRN, and of the other kinds not."""
    return set() if rope.get("rope_type") == "yarn" else {ORIGINAL}


def describe_rope(rope: dict[str, Any]) -> str:
    """In few words: "yarn, 4 × 1,024 positions"."""
    original = f" × {rope[ORIGINAL]:,} positions" if ORIGINAL in rope else " times the LLM's positions"
    return f"{rope['rope_type']}, {rope['factor']:g}{original}"


def _scale(config: PreTrainedConfig, rope: dict[str, Any]) -> None:
    own, positions = getattr(config, "rope_parameters", None), getattr(config, "max_position_embeddings", None)
    if not own or not positions:
        raise UserInputError(f"rope_parameters: a {config.model_type} has no rotary positions to scale: leave it out")
    if kinds := config.nested_rope_parameter_keys(own):
        raise UserInputError(
            f"rope_parameters: a {config.model_type} has positions of several kinds ({', '.join(kinds)}), which cannot be "
            "scaled here: leave it out"
        )
    if (found := rope_type(config)) != "default":
        raise UserInputError(f"rope_parameters: the LLM's own positions are scaled already ({found}): leave it out")
    original = rope.get(ORIGINAL, positions)
    longest = int(original * rope["factor"])
    if longest < positions:
        raise UserInputError(
            f"rope_parameters: {original} × {rope['factor']:g} are {longest} positions, the LLM has {positions} already: "
            "raise the factor"
        )
    config.ignore_keys_at_rope_validation = {*(config.ignore_keys_at_rope_validation or ()), *unchecked_keys(rope)}
    config.max_position_embeddings = longest
    config.rope_parameters = own | rope | {ORIGINAL: original}


def _slide(config: PreTrainedConfig, window: int) -> PreTrainedConfig:
    from transformers import DynamicCache

    if not has_window(config):
        raise UserInputError(
            f"sliding_window: a {config.model_type} has none, it would take the key and ignore it: leave it out, or take an "
            "LLM with one, such as Mistral"
        )
    if hasattr(config, "use_sliding_window"):  # which layers slide is then worked out when a configuration is made
        values = {name: value for name, value in config.to_dict().items() if name not in ("layer_types", "model_type")}
        values |= {"use_sliding_window": True, "sliding_window": window}
        ignored, config = config.ignore_keys_at_rope_validation, type(config)(**values)
        config.ignore_keys_at_rope_validation = ignored
    config.sliding_window = window
    if not any(layer.is_sliding for layer in DynamicCache(config=config).layers):
        least = getattr(config, "max_window_layers", None)
        why = f" (max_window_layers is {least}, of {config.num_hidden_layers} layers)" if least is not None else ""
        raise UserInputError(f"sliding_window: no layer of this {config.model_type} would slide{why}: leave it out")
    return config


def has_window(config: PreTrainedConfig) -> bool:
    """Whether the LLM's class knows a sliding window; every class takes the key."""
    known = {each.name for each in dataclasses.fields(config)} | set(config.attribute_map)
    sets_it = "sliding_window" in known or hasattr(type(config)(), "sliding_window")
    return sets_it and config.model_type not in IGNORING


def check_own_window(config: PreTrainedConfig) -> None:
    """Raises UserInputError where an LLM's own configuration names a window that its class ignores: its caches would not."""
    if getattr(config, "sliding_window", None) is not None and not has_window(config):
        raise UserInputError(
            f"the LLM's configuration has sliding_window {config.sliding_window}, and a {config.model_type} knows none: "
            "take the key out of its config.json"
        )
