"""Draws from the world at random: rows of a split, evenly or mixed with what lies outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nextgpt.train.nano.world.pictures import World

IGNORED = -100  # the target of what is not told, as `cross_entropy` has it


def combinations(world: World, split: str, concepts: int | None, device: torch.device) -> Tensor:
    """A split's pictures as indices `[N, 4]` on the device, of the first `concepts` concepts when that is given."""
    rows = world.combinations(split).to(device)
    return rows if concepts is None else rows[rows[:, 0] < concepts]


def draw(rows: Tensor, count: int) -> Tensor:
    """`count` rows at random, with repetition."""
    return rows[torch.randint(len(rows), (count,), device=rows.device)]


def draw_evenly(kinds: Tensor, count: int) -> Tensor:
    """Places of `count` things at random, with repetition; each kind is as likely as any other, however few it has.

    Args:
        kinds: of the things, as numbers `[N]`.
    """
    return torch.multinomial(1 / torch.bincount(kinds).float()[kinds], count, replacement=True)


def draw_mixed(media_set: Any, count: int, share: float, unknown: int) -> tuple[Tensor, Tensor]:
    """Media to learn from, a share of them from outside the world, and what they are: `[count, ...]`, `[count, parts]`.

    Args:
        media_set: has `draw(count)` → media and targets, and `draw_unknown(count)` → media.
        unknown: the value of the first part that says so; of what is unknown nothing else is told.
    """
    unknowns = int(count * share)
    media, targets = media_set.draw(count - unknowns)
    outside = torch.full((unknowns, targets.shape[1]), IGNORED, device=targets.device)
    outside[:, 0] = unknown
    return torch.cat([media, media_set.draw_unknown(unknowns)]), torch.cat([targets, outside])
