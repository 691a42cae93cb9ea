"""The adapted LLM: what of it is the adapter's, saving, loading, and a pass through it.

Virtual tokens (prompt and prefix tuning) stand before a conversation's first token. peft's own forward adds them at every
call; here they enter with the first pass, and from then on are in the cache. Nothing else counts them: input ids, masks,
positions, labels and hidden states are those of the conversation alone.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.adapters.llama_adapter_v2 import LlamaAdapterV2Model
from nextgpt.adapters.media_prefix import PrefixBridge
from nextgpt.adapters.settings import OWN, describe, peft_configuration, title, virtual_tokens
from nextgpt.errors import UserInputError, first_line

if TYPE_CHECKING:  # they take seconds to import; a look at the environment does not need them
    from transformers import Cache, PreTrainedModel

NOT_MERGED = ("LN_TUNING", "ADAPTION_PROMPT")  # the one would only swap two layers, the other asks what it is to answer


class Adapter:
    """One adapter on one LLM.

    Args:
        language_model: frozen; it is changed.
        settings: see `read_settings`.
        base: the LLM's name in the model's configuration, to be written into the adapter's own files too.

    Raises:
        UserInputError: this adapter cannot be put on this LLM.
    """

    def __init__(self, language_model: PreTrainedModel, settings: dict[str, Any], base: str | None = None):
        self.settings, configuration = settings, peft_configuration(settings)
        if base:
            language_model.name_or_path = language_model.config._name_or_path = base
        try:
            with warnings.catch_warnings():
                # peft asks for a property that transformers has renamed, and for the widths of norms, which have none.
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
                warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
                self.model = _adapted(language_model, configuration, settings["peft_type"])
        except (ValueError, TypeError, AttributeError, KeyError, OSError) as error:
            raise UserInputError(f"adapter: {title(settings)} {describe(settings)}: {first_line(error)}") from error
        self._names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        self.virtual_tokens = virtual_tokens(settings)
        self._is_own = settings["peft_type"] in OWN
        self._is_prefix = settings["peft_type"] == "PREFIX_TUNING"
        if self.virtual_tokens:
            configuration.inference_mode = True  # peft then takes the embedding itself, on the meta device too

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's own parameters, by their names in the adapted LLM."""
        found = dict(self.model.named_parameters())
        return {name: found[name] for name in self._names}

    def merge(self) -> None:
        """Puts what the adapter changes into the LLM's weights where that makes a pass faster; it can be saved as before."""
        if not self.virtual_tokens and self.settings["peft_type"] not in NOT_MERGED:
            self.model.merge_adapter()

    # ------------------------------------------------------------------ saving and loading

    def state(self) -> dict[str, Tensor]:
        """The adapter's tensors by the names that they are saved under."""
        if self._is_own:
            return self.model.adapter_state()
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(self.model, save_embedding_layers=False)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a folder that peft alone can load on the plain LLM, where it has the adapter's type."""
        if self._is_own:
            self.model.save_pretrained(folder)
        else:
            self.model.save_pretrained(folder, save_embedding_layers=False)

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes tensors as `state` gives them."""
        if self._is_own:
            self.model.load_adapter_state(tensors)
            return
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


def _adapted(language_model: PreTrainedModel, configuration: Any, peft_type: str) -> nn.Module:
    if peft_type in OWN:
        return LlamaAdapterV2Model(language_model, configuration)
    from peft import get_peft_model

    if peft_type == "ADAPTION_PROMPT":
        _fit_adaption_prompt(configuration, language_model.config)
    return get_peft_model(language_model, configuration)


def _fit_adaption_prompt(configuration: Any, text_config: Any) -> None:
    """Says in how many layers LLaMA-Adapter's prompts stand where the settings do not; as in the paper (section 3.1).

    Raises:
        ValueError: peft's layers of this adapter do not compute with this LLM.
    """
    from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG

    kind, heads = text_config.model_type, text_config.num_attention_heads
    if kind not in TRANSFORMERS_MODEL_CONFIG:
        raise ValueError(f"the LLM is {kind!r}, and peft has this adapter for {', '.join(TRANSFORMERS_MODEL_CONFIG)} alone")
    head_size = getattr(text_config, "head_dim", None)
    if head_size and head_size * heads != text_config.hidden_size:  # peft counts key heads by the width
        raise ValueError(
            f"the LLM has {heads} heads of {head_size}, and peft takes {text_config.hidden_size} (hidden_size) in all"
        )
    if configuration.adapter_layers is None:
        configuration.adapter_layers = max(1, text_config.num_hidden_layers - 2)


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
    bridge: nn.Module | None = None,
) -> Pass:
    """A pass through the LLM below its head. An adapter's virtual tokens enter where the cache is empty.

    Args:
        language_model: without peft's wrapper.
        embeddings: `[batch, length, hidden]`; with a `PrefixBridge`, what its `beside` gives.
        attention_mask: `[batch, length]`, with a cache of everything so far. As `position_ids` without virtual tokens.
        position_ids: `[batch, length]`; where None, a row's padding on the left counts for nothing. (Most LLMs see distances
            alone; LLaMA-Adapter's prompts, which have no place, see the position itself.)
        cache: of what came before, virtual tokens included.
        bridge: the input projection; of a `PrefixBridge` the LLM's upper layers see more than the sequence.
    """
    decoder, media = language_model.get_decoder(), None
    if isinstance(bridge, PrefixBridge):
        embeddings, media = bridge.apart(embeddings)
    if position_ids is None and attention_mask is not None and not attention_mask[:, 0].all():
        position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
    inputs = {"inputs_embeds": embeddings, "attention_mask": attention_mask, "position_ids": position_ids}
    inputs, before = inputs | {"past_key_values": cache}, 0
    if adapter is not None and adapter.virtual_tokens:
        inputs, before = adapter.with_virtual_tokens(inputs)
    if media is not None:
        inputs["media_prefixes"], media = bridge.look_back(decoder, inputs, media)
    outputs = decoder(**inputs, use_cache=use_cache)
    kept = None if cache is None and use_cache is False else outputs.past_key_values  # a prefix has a cache all the same
    if media is not None and kept is not None:
        bridge.keep(kept, media)
    return Pass(outputs.last_hidden_state[:, before:], kept)
