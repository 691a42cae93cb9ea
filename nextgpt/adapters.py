"""Adapters of peft on the LLM: from a configuration to the adapted LLM, what of it is the adapter's, saving, loading.

Virtual tokens (prompt and prefix tuning) stand before a conversation's first token. peft's own forward adds them at every
call; here they enter with the first pass, and from then on are in the cache. Nothing else counts them: input ids, masks,
positions, labels and hidden states are those of the conversation alone.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.errors import UserInputError, did_you_mean, first_line

if TYPE_CHECKING:  # they take seconds to import; a look at the environment does not need them
    from transformers import Cache, PreTrainedModel

LORA_DEFAULTS = {"r": 32, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
DEFAULTS = {"LORA": LORA_DEFAULTS, "PROMPT_TUNING": {"num_virtual_tokens": 20}, "PREFIX_TUNING": {"num_virtual_tokens": 20}}
# peft's types that pass tests/nextgpt/test_adapters.py, and what they are called.
TESTED = {
    "LORA": "LoRA",
    "IA3": "IA³",
    "LN_TUNING": "LN tuning",
    "PROMPT_TUNING": "prompt tuning",
    "PREFIX_TUNING": "prefix tuning",
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
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {each.name for each in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[peft_type])} - {*OWN_FIELDS, "peft_type"}
    for name, value in fields.items():
        if name in OWN_FIELDS:
            raise UserInputError(f"adapter: {name} is set by the model itself: leave it out")
        if name not in known:
            raise UserInputError(f"adapter: unknown key {name!r} of {peft_type}; {did_you_mean(name, known)}")
        if value and name in REFUSED_FIELDS:
            raise UserInputError(f"adapter: {name} does not work here ({REFUSED_FIELDS[name]}): leave it out")
    tokens = fields.get("num_virtual_tokens", 1)
    if type(tokens) is not int or tokens < 1:
        raise UserInputError(f"adapter: num_virtual_tokens is {tokens!r}, expected a whole number of at least 1")
    try:
        peft_configuration(settings)
    except (TypeError, ValueError) as error:
        raise UserInputError(f"adapter: {peft_type}: {first_line(error)}") from None


def peft_configuration(settings: dict[str, Any]) -> Any:
    """The `PeftConfig` that an adapter's settings stand for."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]](task_type="CAUSAL_LM", **_fields(settings))


def _fields(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "peft_type"}


def title(settings: dict[str, Any]) -> str:
    """What an adapter is called: "LoRA", "prompt tuning"."""
    return "DoRA" if settings.get("use_dora") else TESTED[settings["peft_type"]]


def describe(settings: dict[str, Any]) -> str:
    """How large an adapter is and where it sits, in few words: "r=32 on q_proj, k_proj"."""
    if tokens := virtual_tokens(settings):
        return f"{tokens} virtual tokens"
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


# ---------------------------------------------------------------------- the adapted LLM


class Adapter:
    """One adapter on one LLM.

    Args:
        language_model: frozen; it is changed.
        settings: see `read_settings`.
        base: the LLM's name in the model's configuration, to be written into the adapter's own files too.

    Raises:
        UserInputError: peft cannot put this adapter on this LLM.
    """

    def __init__(self, language_model: PreTrainedModel, settings: dict[str, Any], base: str | None = None):
        from peft import get_peft_model

        self.settings, configuration = settings, peft_configuration(settings)
        if base:
            language_model.name_or_path = language_model.config._name_or_path = base
        try:
            with warnings.catch_warnings():
                # peft asks for a property that transformers has renamed, and for the widths of norms, which have none.
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
                warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
                self.model = get_peft_model(language_model, configuration)
        except (ValueError, TypeError, AttributeError, KeyError, OSError) as error:
            raise UserInputError(f"adapter: {title(settings)} {describe(settings)}: {first_line(error)}") from error
        self._names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        self.virtual_tokens = virtual_tokens(settings)
        self._is_prefix = settings["peft_type"] == "PREFIX_TUNING"
        if self.virtual_tokens:
            configuration.inference_mode = True  # peft then takes the embedding itself, on the meta device too

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's own parameters, by their names in the adapted LLM."""
        found = dict(self.model.named_parameters())
        return {name: found[name] for name in self._names}

    def merge(self) -> None:
        """Puts what the adapter changes into the LLM's weights where that makes a pass faster; it can be saved as before."""
        if not self.virtual_tokens and self.settings["peft_type"] != "LN_TUNING":  # LN tuning would only swap two layers
            self.model.merge_adapter()

    # ------------------------------------------------------------------ saving and loading

    def state(self) -> dict[str, Tensor]:
        """The adapter's tensors by the names that peft saves them under."""
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(self.model, save_embedding_layers=False)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a folder that peft alone can load on the plain LLM."""
        self.model.save_pretrained(folder, save_embedding_layers=False)

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes tensors as `state` gives them."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.model, tensors)

    # ------------------------------------------------------------------ virtual tokens

    def with_virtual_tokens(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """A pass's inputs with the virtual tokens, and how many states of theirs come before the conversation's own."""
        count, mask, positions = self.virtual_tokens, inputs["attention_mask"], inputs["position_ids"]
        if getattr(inputs["past_key_values"], "is_compileable", False):  # its length was counted without them
            raise UserInputError(f"{title(self.settings)} needs a dynamic cache: leave cache_implementation='static' out")
        if mask is not None:
            inputs = inputs | {"attention_mask": F.pad(mask, (count, 0), value=1)}
        if positions is not None:
            inputs = inputs | {"position_ids": positions + count}
        if inputs["past_key_values"] is not None and inputs["past_key_values"].get_seq_length():
            return inputs, 0  # they are in the cache
        return (self._with_prefix(inputs), 0) if self._is_prefix else (self._with_prompt(inputs), count)

    def _with_prompt(self, inputs: dict[str, Any]) -> dict[str, Any]:
        embeddings, positions = inputs["inputs_embeds"], inputs["position_ids"]
        prompt = self.model.get_prompt(len(embeddings)).to(embeddings)
        if positions is not None:
            own = torch.arange(self.virtual_tokens, device=positions.device).expand(len(positions), -1)
            positions = torch.cat([own, positions], dim=1)
        return inputs | {"inputs_embeds": torch.cat([prompt, embeddings], dim=1), "position_ids": positions}

    def _with_prefix(self, inputs: dict[str, Any]) -> dict[str, Any]:
        language_model = self.model.get_base_model()
        if language_model.training and getattr(language_model, "is_activation_checkpointing", False):
            raise UserInputError(
                "prefix tuning keeps its virtual tokens in a cache, and checkpointed activations keep none: leave "
                "activation_checkpointing out, or take PROMPT_TUNING"
            )
        from transformers import DynamicCache

        cache = inputs["past_key_values"]
        cache = DynamicCache(config=language_model.config) if cache is None else cache
        for layer, (keys, values, *_) in enumerate(self.model.get_prompt(len(inputs["inputs_embeds"]))):
            if keys is not None:  # some architectures share the cache of an earlier layer
                cache.update(keys, values, layer)
        return inputs | {"past_key_values": cache}


class Pass(NamedTuple):
    """What a pass through the LLM gives: last hidden states `[batch, length, hidden]`, and the cache where one is kept."""

    hidden_states: Tensor
    cache: Cache | None


def run(
    language_model: PreTrainedModel,
    adapter: Adapter | None,
    embeddings: Tensor,
    attention_mask: Tensor | None,
    *,
    position_ids: Tensor | None = None,
    cache: Cache | None = None,
    use_cache: bool | None = None,
) -> Pass:
    """A pass through the LLM below its head. An adapter's virtual tokens enter where the cache is empty.

    Args:
        language_model: without peft's wrapper.
        embeddings: `[batch, length, hidden]`.
        attention_mask: `[batch, length]`, with a cache of everything so far. As `position_ids` without virtual tokens.
        cache: of what came before, virtual tokens included.
    """
    inputs = {"inputs_embeds": embeddings, "attention_mask": attention_mask, "position_ids": position_ids}
    inputs, before = inputs | {"past_key_values": cache}, 0
    if adapter is not None and adapter.virtual_tokens:
        inputs, before = adapter.with_virtual_tokens(inputs)
    outputs = language_model.get_decoder()(**inputs, use_cache=use_cache)
    kept = None if cache is None and use_cache is False else outputs.past_key_values  # a prefix has a cache all the same
    return Pass(outputs.last_hidden_state[:, before:], kept)
