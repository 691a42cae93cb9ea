"""The world of clips: things of the world in motion, 8 frames at 4 a second. Knows artwork and motions, no models."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nextgpt.train.nano.split import split_of_names
from nextgpt.train.nano.world import Renderer, World

FRAMES = 8
FPS = 4
CONCEPTS = 60  # the first of the world's
STYLE, BACKGROUND, SIZE = "3d", "white", "small"
REACH = 15.0  # pixels that a thing goes to either side
SIDES = (18.0, 56.0)  # the least and the largest artwork, in pixels
RESTING_SIDE = 34.0


class Pose(NamedTuple):
    """Where the artwork is in one frame: side in pixels, distance from the middle in pixels, turn in radians."""

    side: float = RESTING_SIDE
    right: float = 0.0
    down: float = 0.0
    turn: float = 0.0


def _from_to(first: float, last: float, at: float) -> float:
    return first + (last - first) * at


# Time runs from 0 in the first frame to 1 in the last one.
MOTIONS = {
    "sliding left": lambda at: Pose(right=_from_to(REACH, -REACH, at)),
    "sliding right": lambda at: Pose(right=_from_to(-REACH, REACH, at)),
    "sliding up": lambda at: Pose(down=_from_to(REACH, -REACH, at)),
    "sliding down": lambda at: Pose(down=_from_to(-REACH, REACH, at)),
    "spinning": lambda at: Pose(turn=2 * math.pi * at * (FRAMES - 1) / FRAMES),
    "bouncing": lambda at: Pose(down=REACH - 2 * REACH * abs(math.sin(2 * math.pi * at * (FRAMES - 1) / FRAMES))),
    "growing": lambda at: Pose(side=_from_to(*SIDES, at)),
    "shrinking": lambda at: Pose(side=_from_to(*reversed(SIDES), at)),
}


class Clip(NamedTuple):
    """One combination of the world of clips."""

    concept: str
    motion: str

    @property
    def caption(self) -> str:
        """The canonical caption: "a banana, spinning"."""
        return f"a {self.concept}, {self.motion}"

    @property
    def split(self) -> str:
        return split_of_names("clip", *self)


class ClipWorld:
    """The clips of a built world.

    Args:
        world: gives names and artwork.
    """

    motions = tuple(MOTIONS)

    def __init__(self, world: World):
        self.world = world
        self.names = world.names[:CONCEPTS]
        self.combinations = [Clip(concept, motion) for concept in self.names for motion in self.motions]

    def rows(self, split: str) -> Tensor:
        """The clips of one split, as indices `[N, 2]`: concept, motion."""
        return torch.tensor(
            [
                (self.names.index(clip.concept), self.motions.index(clip.motion))
                for clip in self.combinations
                if clip.split == split
            ]
        )


class ClipRenderer:
    """Composes clips on any device, by the batch.

    Args:
        world: gives style, background and the artwork's order.
        renderer: of its pictures.
    """

    def __init__(self, world: World, renderer: Renderer):
        self.renderer = renderer
        device = renderer.backgrounds.device
        poses = [[tuple(motion(frame / (FRAMES - 1))) for frame in range(FRAMES)] for motion in MOTIONS.values()]
        self.poses = torch.tensor(poses, device=device)  # [motion, frame, pose]
        self.rest = torch.tensor(
            [0, world.styles.index(STYLE), world.backgrounds.index(BACKGROUND), world.sizes.index(SIZE)], device=device
        )

    def __call__(self, index: Tensor) -> Tensor:
        """Indices `[N, 2]` → clips `[N, 3, 8, 64, 64]` in 0..1, float32."""
        rows = self.rest.repeat(len(index), 1)
        rows[:, 0] = index[:, 0]
        pictures = self.renderer.place(rows.repeat_interleave(FRAMES, 0), *self.poses[index[:, 1]].flatten(0, 1).unbind(1))
        return pictures.unflatten(0, (-1, FRAMES)).transpose(1, 2)
