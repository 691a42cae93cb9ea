"""LLaMA-Adapter V2 on any LLM of linear layers: norms, a scale and a bias on every linear layer, and LoRA.

Gao et al. 2023, https://arxiv.org/abs/2304.15010, section 3.1: "bias tuning". All norms are trained, and each linear layer
gives s·(W x + b) with s = 1 and b = 0 at the start; the LoRA beside W is that of the authors' version 2.1. Neither changes
an answer before the first step. (The paper's zero-initialised prompts are LLaMA-Adapter's own; its early fusion of a
picture and its joint training are no part of an adapter.)
"""

from __future__ import annotations

import copy
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OWN_NAMES = ("adapter_scale", "adapter_bias", "lora_A", "lora_B", "adapter_norm")
PEFT_TYPE = "LLAMA_ADAPTER_V2"


@dataclass
class LlamaAdapterV2Config:
    """The fields of this adapter.

    Args:
        r: rank of LoRA on every linear layer; 0 for none.
        lora_alpha: LoRA's result counts `lora_alpha / r` times.

    Raises:
        ValueError: one of them is not such a number.
    """

    r: int = 16
    lora_alpha: float = 16

    def __post_init__(self):
        if type(self.r) is not int or self.r < 0:
            raise ValueError(f"r is {self.r!r}, expected a whole number of at least 0")
        if type(self.lora_alpha) not in (int, float) or not 0 < self.lora_alpha < math.inf:
            raise ValueError(f"lora_alpha is {self.lora_alpha!r}, expected a number above 0")


class AdaptedLinear(nn.Module):
    """scale · (W x + lora_B lora_A x · lora_alpha / r + bias), its own parameters in fp32 whatever the LLM's dtype."""

    def __init__(self, base_layer: nn.Linear, config: LlamaAdapterV2Config):
        super().__init__()
        self.base_layer, self.r, self.is_merged = base_layer, config.r, False
        width, device = base_layer.out_features, base_layer.weight.device
        self.adapter_scale = nn.Parameter(torch.ones(width, device=device))
        self.adapter_bias = nn.Parameter(torch.zeros(width, device=device))
        if self.r:
            self.factor = config.lora_alpha / self.r
            self.lora_A = nn.Parameter(torch.empty(self.r, base_layer.in_features, device=device))
            self.lora_B = nn.Parameter(torch.zeros(width, self.r, device=device))
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as peft does

    @property
    def weight(self) -> Tensor:
        """The frozen layer's, for code that looks at its dtype or device."""
        return self.base_layer.weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., in]` → `[..., out]`, in the frozen layer's dtype."""
        output = self.base_layer(hidden_states)
        if self.is_merged:
            return output + self.merged_bias.to(output)
        output = output + self.adapter_bias.to(output.dtype)
        if self.r:
            low_rank = F.linear(hidden_states, self.lora_A.to(hidden_states.dtype))
            output = output + F.linear(low_rank, self.lora_B.to(low_rank.dtype)) * self.factor
        # In half precision a scale near 1 has no room for small steps; its distance from 1 has.
        return torch.addcmul(output, output, (self.adapter_scale - 1).to(output.dtype))

    @torch.no_grad()
    def merge(self) -> None:
        """Puts scale and LoRA into the frozen weights, so that a pass costs one addition more than the LLM's own."""
        if self.is_merged:
            return
        base, scale = self.base_layer, self.adapter_scale
        weight = base.weight.float()
        if self.r:
            weight = weight + self.lora_B @ self.lora_A * self.factor
        base.weight.copy_(scale[:, None] * weight)
        if base.bias is not None:
            base.bias.copy_(scale * base.bias.float())
        self.register_buffer("merged_bias", scale * self.adapter_bias, persistent=False)
        self.is_merged = True


class AdaptedNorm(nn.Module):
    """A trained copy of a norm, in fp32 whatever the LLM's dtype, in the norm's place; the frozen norm stands beside it."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.adapter_norm = copy.deepcopy(base_layer).float().requires_grad_(True)

    @property
    def weight(self) -> Tensor:
        """The trained copy's."""
        return self.adapter_norm.weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., hidden]` → the same, in the same dtype."""
        return self.adapter_norm(hidden_states).to(hidden_states.dtype)


class LlamaAdapterV2Model(nn.Module):
    """An LLM with this adapter in its layers, its head left alone; stands where another adapter has peft's wrapper.

    Args:
        language_model: frozen; it is changed.

    Raises:
        ValueError: it has no linear layers.
    """

    def __init__(self, language_model: PreTrainedModel, config: LlamaAdapterV2Config):
        super().__init__()
        self.model, self.adapter_config = language_model, config
        if not _replace(language_model.get_decoder(), config):
            raise ValueError(
                f"the LLM is {language_model.config.model_type!r}, which has no linear layers (torch.nn.Linear)"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The LLM's own."""
        return self.model(*args, **kwargs)

    def get_base_model(self) -> PreTrainedModel:
        """The LLM, this adapter's layers included."""
        return self.model

    def merge_adapter(self) -> None:
        """Puts what can be into the LLM's weights; see `AdaptedLinear.merge`."""
        for module in self.modules():
            if isinstance(module, AdaptedLinear):
                module.merge()

    def adapter_state(self) -> dict[str, Tensor]:
        """The adapter's tensors, by their names in the LLM."""
        return {name: each.detach() for name, each in self._own().items()}

    def load_adapter_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes tensors as `adapter_state` gives them, all of them."""
        with torch.no_grad():
            for name, each in self._own().items():
                each.copy_(tensors[name])

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the adapter's settings and tensors under the names of files that peft gives them."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"peft_type": PEFT_TYPE, "base_model_name_or_path": self.model.name_or_path} | asdict(self.adapter_config)
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        tensors = {name: each.cpu().contiguous() for name, each in self.adapter_state().items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def _own(self) -> dict[str, nn.Parameter]:
        named = self.model.named_parameters()
        return {name: each for name, each in named if any(part in OWN_NAMES for part in name.split("."))}


def _replace(module: nn.Module, config: LlamaAdapterV2Config) -> int:
    """Puts the adapted layers below `module`, and says how many linear ones there were."""
    count = 0
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, AdaptedLinear(child, config))
            count += 1
        elif _is_norm(child):
            setattr(module, name, AdaptedNorm(child))
        else:
            count += _replace(child, config)
    return count


def _is_norm(module: nn.Module) -> bool:
    """Each LLM has a class of its own for its norms: RMSNorm, LlamaRMSNorm, LayerNorm."""
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("Norm") and isinstance(weight, nn.Parameter) and weight.dim() == 1
