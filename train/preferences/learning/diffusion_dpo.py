"""What a medium shows, learned from preferences: Diffusion-DPO (Wallace et al. 2023, https://arxiv.org/abs/2311.12908).

A medium's probability given its signal run is bounded by the error of the frozen denoiser, whose gradients go through the
conditioning into the output projection, and through the run's states into the adapter. Each medium is conditioned on the run
of its own answer: words and kinds before it belong to DPO on tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.train.preferences.learning.policy import Reading, run_states


def denoising_errors(
    model: NextGPTForConditionalGeneration, modality: str, reading: Reading, places: Tensor, latents: Tensor, seed: int
) -> Tensor:
    """How far the denoiser is off for the media of pairs; both sides of a pair are noised alike, as the paper's code does.

    Args:
        reading: of the batch that holds them.
        places: `[2, media, 2]`, row and column of the signal runs of the chosen and of the rejected media.
        latents: `[2, media, …]`.
        seed: of noise and timesteps; the reference is asked with the same.

    Returns:
        `[2, media]`.
    """
    size = len(model.vocabulary.runs[modality])
    errors = []
    for own_places, own_latents in zip(places, latents, strict=True):
        states = [run_states(each, own_places, size) for each in (reading.hidden_states, reading.embeddings)]
        generator = torch.Generator().manual_seed(seed)
        errors.append(model.decoders[modality].denoising_errors(model.project(modality, *states), own_latents, generator))
    return torch.stack(errors)
