"""Trains a denoiser on cached latents and cached conditioning: what the makers of all diffusion decoders share.

The denoiser predicts the sample itself (`prediction_type="sample"`, as Ramesh et al. 2022 do for their prior). A caption of
this world tells nearly all of a picture, so from the first step on the answer is nearly known; a prediction of noise or
velocity has to carry the noise through the network besides, which takes most of its width. The weights that are kept are
averaged over the last steps.
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

from nextgpt.decoders import Conditioning
from nextgpt.decoders.base import DEFAULTS_FILE
from nextgpt.train.nano.models import loop

LEARNING_RATE = 2e-3
NOISIEST = 0.75  # of the timesteps on, the words decide
EMPTY_SHARE = 0.05  # of the captions are empty, for classifier-free guidance
NOISY_SHARE = 0.5  # of the conditioning gets noise: later it comes, slightly wrong, from an output projection
MOST_NOISE = 0.3  # in units of the conditioning's own deviation
EMA_STEPS = 300
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",  # ends in pure noise, which the few, nearly independent latents need
    "prediction_type": "sample",
}


def new_scheduler() -> DPMSolverMultistepScheduler:
    """The sampler of all three decoders."""
    return DPMSolverMultistepScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing", steps_offset=1)


def save(pipeline: DiffusionPipeline, generation: dict, out: Path) -> None:
    """Saves a pipeline in half precision, with the options that it generates with by default."""
    pipeline.to(torch.bfloat16).save_pretrained(out, max_shard_size="15MB")
    (out / DEFAULTS_FILE).write_text(json.dumps(generation, indent=1) + "\n", encoding="utf-8")


class Denoising(nn.Module):
    """A denoiser with the training loss.

    Args:
        denoiser: any of diffusers' conditional UNets or transformers.
        call: denoiser, noisy latents, timesteps `[N]`, conditioning → the sample.
    """

    def __init__(self, denoiser: nn.Module, call: Callable[[nn.Module, Tensor, Tensor, Conditioning], Tensor]):
        super().__init__()
        self.denoiser, self.call = denoiser, call
        self.register_buffer("alphas", DDPMScheduler(**NOISE_SCHEDULE).alphas_cumprod, persistent=False)

    def forward(self, conditioning: Conditioning, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Scalar loss; latents and noise `[N, C, ...]`, timesteps `[N]`."""
        amount = torch.rand(2, len(latents), device=latents.device)
        amount = (amount[0] < NOISY_SHARE) * amount[1] * MOST_NOISE
        conditioning = {name: _noised(states, amount) for name, states in conditioning.items()}
        alpha = self.alphas[timesteps].view(-1, *[1] * (latents.ndim - 1))
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        return F.mse_loss(self.call(self.denoiser, noisy, timesteps, conditioning).float(), latents)


def _noised(states: Tensor, amount: Tensor) -> Tensor:
    """Conditioning `[N, ...]` with noise of so many of its own deviations, `[N]`."""
    amount = amount.view(-1, *[1] * (states.ndim - 1)) * states.float().std()
    return states + amount * torch.randn_like(states)


def draw_timesteps(count: int, device: torch.device) -> Tensor:
    """Timesteps `[count]`: half of them the last, where sampling begins; a quarter from the noisiest, a quarter from all.

    Without these it learns the last one more slowly: less noise shows what latents look like.
    """
    which = torch.rand(count, device=device)
    least = torch.where(which < 0.25, 0.0, torch.where(which < 0.5, NOISIEST, 1.0))
    at = least + (1 - least) * torch.rand(count, device=device)
    return (at * NOISE_SCHEDULE["num_train_timesteps"]).long().clamp(max=NOISE_SCHEDULE["num_train_timesteps"] - 1)


def average(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
    """Moves the averaged weights towards the current ones: fast at first, then over `EMA_STEPS` steps."""
    decay = min(1 - 1 / EMA_STEPS, (1 + int(count)) / (10 + int(count)))
    get_ema_multi_avg_fn(decay)(averaged, current, count)


class Cached:
    """Conditioning and latents, computed once.

    Args:
        conditioning: of all captions, name → `[captions, ...]`; the last one is the empty caption's.
        latents: `[media, C, ...]`.
        captions: of each of the media, the number of its caption `[media]`.
    """

    def __init__(self, conditioning: Conditioning, latents: Tensor, captions: Tensor):
        self.conditioning, self.latents, self.captions = conditioning, latents, captions

    def draw(self, chosen: Tensor) -> tuple[Conditioning, Tensor]:
        """Of media given by number `[N]`; `EMPTY_SHARE` of the captions are empty."""
        captions = self.captions[chosen]
        empty = torch.rand(len(chosen), device=chosen.device) < EMPTY_SHARE
        captions = captions.where(~empty, len(next(iter(self.conditioning.values()))) - 1)
        return {name: states[captions].float() for name, states in self.conditioning.items()}, self.latents[chosen].float()


def train(
    args: Namespace, network: Denoising, cached: Cached, choose: Callable[[int], Tensor], device: torch.device
) -> tuple[nn.Module, loop.Loop]:
    """Trains for `args.minutes`, going on from the last checkpoint; returns the averaged denoiser and the run.

    Args:
        choose: count → the numbers of as many cached media.
    """
    loop.PatchProjection.replace_in(network)
    network = network.to(device)
    averaged = AveragedModel(network, multi_avg_fn=average)
    optimizer = loop.adamw([network], args.learning_rate)
    compute = torch.compile(network) if args.compile else network
    run = loop.Loop(args.out, args.minutes, optimizer, {"network": network, "averaged": averaged}, args.start_from)
    for _ in run:
        conditioning, latents = cached.draw(choose(args.batch))
        with loop.autocast(device):
            loss = compute(conditioning, latents, torch.randn_like(latents), draw_timesteps(args.batch, device))
        loop.update(optimizer, loss)
        averaged.update_parameters(network)
        run.record(args.batch, loss=loss)
    return averaged.module.denoiser.eval(), run
