"""What a model's configuration says of its adapter: which types work here, their fields, and what they are called."""

from __future__ import annotations

import dataclasses
from typing import Any

from nextgpt.adapters.llama_adapter_v2 import LlamaAdapterV2Config
from nextgpt.errors import UserInputError, did_you_mean, first_line

OWN = {"LLAMA_ADAPTER_V2": LlamaAdapterV2Config}  # types that peft does not have
LORA_DEFAULTS = {"r": 32, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
DEFAULTS = {
    "LORA": LORA_DEFAULTS,
    "PROMPT_TUNING": {"num_virtual_tokens": 20},
    "PREFIX_TUNING": {"num_virtual_tokens": 20},
    "ADAPTION_PROMPT": {"adapter_len": 10},  # the paper's
    "LLAMA_ADAPTER_V2": dataclasses.asdict(LlamaAdapterV2Config()),
}
# Types that pass tests/nextgpt/test_adapters.py, and what they are called.
TESTED = {
    "LORA": "LoRA",
    "IA3": "IA³",
    "LN_TUNING": "LN tuning",
    "PROMPT_TUNING": "prompt tuning",
    "PREFIX_TUNING": "prefix tuning",
    "ADAPTION_PROMPT": "LLaMA-Adapter",
    "LLAMA_ADAPTER_V2": "LLaMA-Adapter V2",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "MISS": "MiSS",
    "OFT": "OFT",
    "RANDLORA": "RandLoRA",
    "VERA": "VeRA",
}
REFUSED_FIELDS = {
    "alora_invocation_tokens": "it needs peft's own forward",
    "prefix_projection": "peft saves what it made of the prefix, so that no later stage could train it further",
}
COUNTS = {"num_virtual_tokens", "adapter_len", "adapter_layers"}
OWN_FIELDS = ("task_type", "inference_mode", "auto_mapping", "base_model_name_or_path", "revision", "peft_version")
WEIGHTS = "adapter_model.safetensors"  # as peft names it


# ---------------------------------------------------------------------- what a configuration says


def read_settings(adapter: dict | bool | None, lora: dict | bool | None = None) -> dict[str, Any] | bool:
    """What a model's configuration says of its adapter: `peft_type` and the fields of that configuration of peft.

    Args:
        adapter: these, where some may be left out; `False` for no adapter; LoRA by default.
        lora: the same in its old spelling, the fields of a `LoraConfig` without its type.

    Raises:
        UserInputError: the type is none of those that work here, or a field is not one of its own.
    """
    if adapter is not None and lora is not None:
        raise UserInputError("the configuration has both adapter and lora, its old spelling: leave lora out")
    given = lora if adapter is None else adapter
    if given is False:
        return False
    if given is not None and not isinstance(given, dict):
        raise UserInputError(f"adapter is {given!r}, expected {{peft_type: LORA, …}} with fields of peft's, or false")
    settings = {"peft_type": "LORA"} | (given or {})
    if lora is not None and settings["peft_type"] != "LORA":
        raise UserInputError(f"lora has peft_type {settings['peft_type']!r}: another adapter is given as `adapter`")
    check_settings(settings)
    return DEFAULTS.get(settings["peft_type"], {}) | settings


def check_settings(settings: dict[str, Any]) -> None:
    """Raises UserInputError where an adapter's settings are not what peft takes, or are refused here."""
    peft_type, fields = settings.get("peft_type"), _fields(settings)
    if peft_type not in TESTED:
        works = ", ".join(TESTED).replace("LORA", "LORA (DoRA with use_dora: true)", 1)
        raise UserInputError(f"adapter: peft_type {peft_type!r} does not work here; these do: {works}")
    known = {each.name for each in dataclasses.fields(_configuration_class(peft_type))} - {*OWN_FIELDS, "peft_type"}
    for name, value in fields.items():
        if name in OWN_FIELDS:
            raise UserInputError(f"adapter: {name} is set by the model itself: leave it out")
        if name not in known:
            raise UserInputError(f"adapter: unknown key {name!r} of {peft_type}; {did_you_mean(name, known)}")
        if value and name in REFUSED_FIELDS:
            raise UserInputError(f"adapter: {name} does not work here ({REFUSED_FIELDS[name]}): leave it out")
    for name in COUNTS.intersection(fields):
        if type(fields[name]) is not int or fields[name] < 1:
            raise UserInputError(f"adapter: {name} is {fields[name]!r}, expected a whole number of at least 1")
    try:
        peft_configuration(settings)
    except (TypeError, ValueError) as error:
        raise UserInputError(f"adapter: {peft_type}: {first_line(error)}") from None


def peft_configuration(settings: dict[str, Any]) -> Any:
    """The configuration that an adapter's settings stand for: a `PeftConfig`, or our own of a type that peft lacks."""
    peft_type, fields = settings["peft_type"], _fields(settings)
    return OWN[peft_type](**fields) if peft_type in OWN else _configuration_class(peft_type)(task_type="CAUSAL_LM", **fields)


def _configuration_class(peft_type: str) -> type:
    if peft_type in OWN:
        return OWN[peft_type]
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]


def _fields(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "peft_type"}


def title(settings: dict[str, Any]) -> str:
    """What an adapter is called: "LoRA", "prompt tuning"."""
    return "DoRA" if settings.get("use_dora") else TESTED[settings["peft_type"]]


def describe(settings: dict[str, Any]) -> str:
    """How large an adapter is and where it sits, in few words: "r=32 on q_proj, k_proj"."""
    if tokens := virtual_tokens(settings):
        return f"{tokens} virtual tokens"
    if settings["peft_type"] == "ADAPTION_PROMPT":
        layers = settings.get("adapter_layers")
        return f"{settings['adapter_len']} prompts in {f'the top {layers}' if layers else 'all but the lowest two'} layers"
    if settings["peft_type"] in OWN:
        return f"r={settings['r']}, scale and bias on every linear layer, and the norms"
    rank = f"r={settings['r']} " if "r" in settings else ""
    targets = settings.get("target_modules") or "the layers that peft takes by default"
    return f"{rank}on {targets if isinstance(targets, str) else ', '.join(targets)}"


def virtual_tokens(settings: dict[str, Any] | bool) -> int:
    """How many positions of the LLM an adapter takes for itself."""
    return settings.get("num_virtual_tokens", 0) if settings else 0


def folder_name(settings: dict[str, Any]) -> str:
    """The folder of an adapter in a checkpoint, named after its type: `lora`, `prompt_tuning`."""
    return settings["peft_type"].lower()


def weights_file(settings: dict[str, Any]) -> str:
    """The file of an adapter's tensors in a checkpoint."""
    return f"{folder_name(settings)}/{WEIGHTS}"
