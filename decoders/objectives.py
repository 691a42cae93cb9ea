"""What diffusion models were trained to predict, by the scheduler that their folder names.

Three families cover what diffusers trains: noise schedules (DDPM and its samplers), flow matching, and Karras'
preconditioned denoisers. A scheduler of another kind is refused by name: its loss would be a guess.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

# Samplers of one and the same training: a table of betas, a prediction of noise, velocity or sample.
NOISE_SCHEDULERS = {
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
}
FLOW_SCHEDULERS = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"}
# Preconditioned ones: the noise level that belongs to the time that the model is told, the inverse of `precondition_noise`.
SIGMA_OF_TIME: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "CosineDPMSolverMultistepScheduler": lambda time: (time * math.pi / 2).tan(),
    "EDMDPMSolverMultistepScheduler": lambda time: (4 * time).exp(),
    "EDMEulerScheduler": lambda time: (4 * time).exp(),
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Noised(NamedTuple):
    """What a denoiser is asked in training, and the right answer.

    Args:
        latents: `[N, …]`, as the denoiser sees them.
        timesteps: `[N]`, as the denoiser is told them.
        target: `[N, …]`, what it should predict.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor


Objective = Callable[[torch.Tensor, torch.Generator | None], Noised]  # true latents [N, …], generator


def training_objective(config: dict[str, Any], where: str = "") -> Callable[[Any], Objective]:
    """The objective that a scheduler's configuration names: a function of the scheduler itself.

    Args:
        config: content of `scheduler_config.json`.
        where: the decoder, for the message.

    Raises:
        ValueError: the scheduler belongs to none of the families.
    """
    name, prediction = config.get("_class_name"), config.get("prediction_type")
    if name in FLOW_SCHEDULERS or (name in NOISE_SCHEDULERS and prediction == "flow_prediction"):
        return flow_matching
    if name in NOISE_SCHEDULERS and (prediction or "epsilon") in PREDICTIONS:
        return noise_schedule
    if name in SIGMA_OF_TIME and (prediction or "epsilon") in PREDICTIONS[:2]:
        return preconditioned
    known = ", ".join(sorted({*NOISE_SCHEDULERS, *FLOW_SCHEDULERS, *SIGMA_OF_TIME}))
    raise ValueError(
        f"{where}its scheduler {name} (prediction_type {prediction!r}) has no denoising loss here; known are {known}. "
        "Train without the denoising loss, or name a folder with one of these."
    )


def noise_schedule(scheduler: Any) -> Objective:
    """Uniform timesteps of a table of betas (Ho et al. 2020); noise, velocity (Salimans and Ho 2022) or sample."""
    from diffusers import DDPMScheduler

    # Sampling schedulers differ in what they offer; this one can noise and knows every prediction type.
    schedule = DDPMScheduler.from_config(scheduler.config)

    def noised(latents: torch.Tensor, generator: torch.Generator | None) -> Noised:
        noise = _noise_like(latents, generator)
        steps = schedule.config.num_train_timesteps
        device = generator.device if generator else None
        timesteps = torch.randint(steps, (len(latents),), generator=generator, device=device).to(latents.device)
        match schedule.config.prediction_type:
            case "epsilon":
                target = noise
            case "v_prediction":
                target = schedule.get_velocity(latents, noise, timesteps)
            case _:
                target = latents
        return Noised(schedule.add_noise(latents, noise, timesteps), timesteps, target)

    return noised


def flow_matching(scheduler: Any) -> Objective:
    """The velocity from sample to noise along straight lines, at logit-normal times (Esser et al. 2024, section 3.1).

    The noise levels are the scheduler's own, shifted as it shifts them; a shift that follows the resolution is left out,
    as in diffusers' training scripts.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.training_utils import compute_density_for_timestep_sampling

    config = scheduler.config
    schedule = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=config.num_train_timesteps,
        shift=config.get("shift", config.get("flow_shift", 1.0)),
        use_dynamic_shifting=config.get("use_dynamic_shifting", False),
    )

    def noised(latents: torch.Tensor, generator: torch.Generator | None) -> Noised:
        noise = _noise_like(latents, generator)
        device = generator.device if generator else "cpu"
        density = compute_density_for_timestep_sampling(
            "logit_normal", len(latents), logit_mean=0.0, logit_std=1.0, device=device, generator=generator
        )
        steps = (density * config.num_train_timesteps).long().clamp(max=config.num_train_timesteps - 1).cpu()
        sigmas = _for_each(schedule.sigmas[steps], latents)
        noisy = (1 - sigmas) * latents + sigmas * noise
        return Noised(noisy, schedule.timesteps[steps].to(latents.device), noise - latents)

    return noised


def preconditioned(scheduler: Any) -> Objective:
    """What makes the scheduler's own preconditioning exact (Karras et al. 2022), at uniform times as the model is told them.

    With the cosine scheduler and velocities this is Stable Audio's training (Evans et al. 2024).
    """
    time_of, config = scheduler.precondition_noise, scheduler.config
    first, last = (float(time_of(torch.tensor(float(sigma)))) for sigma in (config.sigma_min, config.sigma_max))
    sigma_of = SIGMA_OF_TIME[type(scheduler).__name__]

    def noised(latents: torch.Tensor, generator: torch.Generator | None) -> Noised:
        dtype, latents = latents.dtype, latents.float()  # the levels go up to hundreds
        noise = _noise_like(latents, generator)
        drawn = torch.rand(len(latents), generator=generator, device=generator.device if generator else None)
        times = first + (last - first) * drawn
        sigmas = _for_each(sigma_of(times), latents)
        noisy = latents + sigmas * noise
        # The scheduler's estimate of the sample is linear in the prediction: offset + gain × prediction.
        offset = scheduler.precondition_outputs(noisy, torch.zeros_like(noisy), sigmas)
        gain = scheduler.precondition_outputs(torch.zeros_like(noisy), torch.ones_like(noisy), sigmas)
        scaled = scheduler.precondition_inputs(noisy, sigmas).to(dtype)
        return Noised(scaled, times.to(latents.device, dtype), (latents - offset) / gain)

    return noised


def _noise_like(latents: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    from diffusers.utils.torch_utils import randn_tensor

    return randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)


def _for_each(values: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """`[N]` → `[N, 1, …]`, beside the latents."""
    return values.to(latents).view(-1, *[1] * (latents.ndim - 1))
