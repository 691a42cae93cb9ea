"""Trains a UNet to denoise cached latents from text states: what the makers of all diffusion decoders share.

The objective is v-prediction (Salimans and Ho 2022); the weights that are kept are averaged over the last steps.
Knows no words, no media and no pipeline.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nextgpt.decoders.base import DEFAULTS_FILE
from nextgpt.train.nano.models import loop

LEARNING_RATE = 6e-4
# Above this signal-to-noise ratio the loss counts less, as in Hang et al. 2023, "Efficient Diffusion Training via
# Min-SNR Weighting Strategy". Below it, unlike there, it counts in full.
SNR_GAMMA = 5.0
NOISIEST = 0.75  # of the timesteps on; half of the training happens there, for there the words decide
EMPTY_SHARE = 0.1  # of the captions are empty, for classifier-free guidance
NOISY_SHARE = 0.3  # of the text states get noise: later they come, slightly wrong, from an output projection
MOST_NOISE = 0.3  # in units of the text states' own deviation
EMA_STEPS = 300
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",  # ends in pure noise, which the few, nearly independent latents need
    "prediction_type": "v_prediction",
}


def new_scheduler() -> DPMSolverMultistepScheduler:
    """The sampler of all three decoders."""
    return DPMSolverMultistepScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing", steps_offset=1)


def empty_some(ids: Tensor, empty: Tensor) -> Tensor:
    """Token ids `[N, L]` of captions, `EMPTY_SHARE` of them those of the empty one `[L]`."""
    return torch.where(torch.rand(len(ids), 1, device=ids.device) < EMPTY_SHARE, empty, ids)


def save(pipeline: DiffusionPipeline, generation: dict, out: Path) -> None:
    """Saves a pipeline in half precision, with the options that it generates with by default."""
    pipeline.to(torch.bfloat16).save_pretrained(out, max_shard_size="20MB")
    (out / DEFAULTS_FILE).write_text(json.dumps(generation, indent=1) + "\n", encoding="utf-8")


class Denoising(nn.Module):
    """The UNet with the training loss.

    Args:
        unet: any of diffusers' conditional UNets.
        takes: the name of the argument by which it takes the text states.
    """

    def __init__(self, unet: nn.Module, takes: str = "encoder_hidden_states"):
        super().__init__()
        self.unet, self.takes = unet, takes
        alphas = DDPMScheduler(**NOISE_SCHEDULE).alphas_cumprod
        self.register_buffer("alphas", alphas, persistent=False)

    def forward(self, states: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Scalar loss; states of the captions `[N, ...]`, latents and noise `[N, C, ...]`, timesteps `[N]`."""
        each = (-1, *[1] * (states.ndim - 1))
        amount = torch.rand(2, len(states), device=states.device)
        amount = (amount[0] < NOISY_SHARE) * amount[1] * MOST_NOISE * states.float().std()
        states = states + amount.view(each) * torch.randn_like(states)
        alphas = self.alphas[timesteps]
        alpha = alphas.view(-1, *[1] * (latents.ndim - 1))
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        predicted = self.unet(noisy, timesteps, **{"encoder_hidden_states": None, self.takes: states}).sample
        snr = alphas / (1 - alphas)
        weight = ((SNR_GAMMA + 1) / (snr + 1)).clamp(max=1)
        return (weight * F.mse_loss(predicted.float(), velocity, reduction="none").flatten(1).mean(1)).mean()


def draw_timesteps(count: int, device: torch.device) -> Tensor:
    """Timesteps `[count]`: half of them from all, half from the noisiest ones."""
    least = torch.where(torch.rand(count, device=device) < 0.5, NOISIEST, 0.0)
    at = least + (1 - least) * torch.rand(count, device=device)
    return (at * NOISE_SCHEDULE["num_train_timesteps"]).long()


def average(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
    """Moves the averaged weights towards the current ones: fast at first, then over `EMA_STEPS` steps."""
    decay = min(1 - 1 / EMA_STEPS, (1 + int(count)) / (10 + int(count)))
    get_ema_multi_avg_fn(decay)(averaged, current, count)


def train(
    args: Namespace, network: Denoising, draw: Callable[[int], tuple[Tensor, Tensor]], device: torch.device
) -> tuple[nn.Module, loop.Loop]:
    """Trains for `args.minutes`, going on from the last checkpoint; returns the averaged UNet and the run.

    Args:
        draw: count → text states and latents of as many training items; called under autocast, without gradients.
    """
    over_time = any(parameter.ndim == 5 for parameter in network.parameters())  # such weights have no channels_last
    network = network.to(device, memory_format=torch.contiguous_format if over_time else torch.channels_last)
    averaged = AveragedModel(network, multi_avg_fn=average)
    optimizer = loop.adamw([network], LEARNING_RATE)
    compute = torch.compile(network) if args.compile else network
    run = loop.Loop(args.out, args.minutes, optimizer, {"network": network, "averaged": averaged}, args.start_from)
    for _ in run:
        timesteps = draw_timesteps(args.batch, device)
        with loop.autocast(device):
            with torch.no_grad():
                states, latents = draw(args.batch)
            loss = compute(states, latents, torch.randn_like(latents), timesteps)
        loop.update(optimizer, loss)
        averaged.update_parameters(network)
        run.record(args.batch, loss=loss)
    return averaged.module.unet.to(memory_format=torch.contiguous_format).eval(), run
