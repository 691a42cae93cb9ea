"""The losses of preferences and rewards, as functions of log-probabilities.

DPO, KTO and GRPO give what trl's trainers give on the same log-probabilities (its version 1.16; the tests compare them).
Those trainers cannot run here: they multiply hidden states by `lm_head.weight`, where signal tokens have no rows, and the
only media that they pass on are pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dpo_loss(margins: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7).

    Args:
        margins: `[pairs]`, see `margins`.

    Returns:
        `[pairs]`.
    """
    return -F.logsigmoid(beta * margins)


def margins(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
    """How much more than its reference a policy prefers the chosen answers; log-probabilities `[pairs]` → `[pairs]`."""
    return (chosen - reference_chosen) - (rejected - reference_rejected)


def diffusion_margins(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
    """The same for media, of denoising errors `[media]` (Wallace et al. 2023, equation 14).

    An error is a mean over a medium's latents, and half of it stands for the log-probability that is lost: with
    `dpo_loss` this is the loss that was published, whose `beta` is 2000 for Stable Diffusion 1.5.
    """
    return 0.5 * margins(-chosen, -rejected, -reference_chosen, -reference_rejected)


def kto_loss(
    log_ratios: Tensor,
    desirable: Tensor,
    divergence: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, equation 7).

    Args:
        log_ratios: `[answers]`, log-probability less the reference's.
        desirable: `[answers]` of bool.
        divergence: what an answer's gain is measured against, see `kto_divergence`.

    Returns:
        `[answers]`.
    """
    gains = beta * (log_ratios - divergence)
    return torch.where(
        desirable, desirable_weight * (1 - torch.sigmoid(gains)), undesirable_weight * (1 - torch.sigmoid(-gains))
    )


def kto_divergence(log_ratios: Tensor) -> Tensor:
    """The policy's distance from its reference, from log ratios `[answers]` of answers to other prompts; no gradient."""
    return log_ratios.detach().mean().clamp(min=0)


def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """How much better than its group each answer is, in the group's standard deviations (Shao et al. 2024, section 4.1).

    Args:
        rewards: `[groups × group_size]`, the answers to one prompt together; NaN for an answer that has none.

    Returns:
        `[groups × group_size]`; 0 for an answer without a reward.
    """
    grouped = rewards.view(-1, group_size)
    centred = grouped - grouped.nanmean(dim=1, keepdim=True)
    known = grouped.isfinite().sum(dim=1, keepdim=True)
    spread = (centred.square().nansum(dim=1, keepdim=True) / (known - 1).clamp(min=1)).sqrt()
    return (centred / (spread + 1e-4)).nan_to_num(nan=0.0).flatten()


def grpo_loss(
    log_probabilities: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    reference: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """Group relative policy optimisation (Shao et al. 2024, equation 3), a loss for each token.

    Args:
        log_probabilities, old, reference: `[answers, length]`, of the policy, of the policy that drew the answers, and of
            the reference.
        advantages: `[answers]`.
        mask: `[answers, length]`, true on what the policy drew.
        clip: how far the ratio of the two policies counts on either side of 1.
        beta: weight of the divergence from the reference, which is weighed by the ratio (DeepSeek-V3.2, section 3.1).

    Returns:
        `[answers, length]`, 0 where the mask is; sum and divide as it should be weighed.
    """
    ratio = (log_probabilities - old).exp()
    advantages = advantages[:, None]
    loss = -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    if beta:
        difference = reference - log_probabilities
        loss = loss + beta * ratio * (difference.exp() - difference - 1)
    return loss.masked_fill(~mask.bool(), 0.0)
