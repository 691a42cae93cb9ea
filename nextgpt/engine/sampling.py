"""How the rows of a batch draw their next tokens: each by its own options and its own random numbers.

transformers' `generate` runs greedily over the whole batch; what a row has drawn is the only token that is left to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

# Arguments of `generate`, whatever the generation configuration says: greedy, with a cache that rows may leave and join.
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "num_beams": 1}
GREEDY |= {"use_cache": True, "cache_implementation": None}


@dataclass
class Sampler:
    """Draws one row's tokens: a seed gives what transformers' own sampling of the row alone gives after that seed.

    Args:
        warpers: what transformers would put between the scores and the draw.
        generator: on the model's device.
    """

    warpers: LogitsProcessorList
    generator: torch.Generator

    @classmethod
    def create(cls, model: Any, seed: int, temperature: float, top_p: float) -> Sampler:
        """The sampler of an answer with these options; all else but `top_k` is the generation configuration's."""
        config, device = model.generation_config, model.get_input_embeddings().weight.device
        warpers = LogitsProcessorList()
        if temperature != 1.0:
            warpers.append(TemperatureLogitsWarper(float(temperature)))  # it takes no whole numbers
        if top_p < 1.0:
            warpers.append(TopPLogitsWarper(top_p))
        if config.min_p is not None:
            warpers.append(MinPLogitsWarper(config.min_p))
        if config.typical_p is not None and config.typical_p < 1.0:
            warpers.append(TypicalLogitsWarper(config.typical_p))
        if config.epsilon_cutoff is not None and 0.0 < config.epsilon_cutoff < 1.0:
            warpers.append(EpsilonLogitsWarper(config.epsilon_cutoff))
        if config.eta_cutoff is not None and 0.0 < config.eta_cutoff < 1.0:
            warpers.append(EtaLogitsWarper(config.eta_cutoff, device=str(device)))
        return cls(warpers, torch.Generator(device).manual_seed(seed))

    def draw(self, input_ids: Tensor, scores: Tensor) -> int:
        """The next token of one row: `input_ids` `[1, length]`, `scores` `[1, vocab_size]`."""
        probabilities = torch.softmax(self.warpers(input_ids, scores), dim=-1)
        return int(torch.multinomial(probabilities, num_samples=1, generator=self.generator))
