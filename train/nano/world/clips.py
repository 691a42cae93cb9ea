"""The world of clips: things of the world in motion, 8 frames at 4 a second. Knows artwork and motions, no models."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nextgpt.train.nano.world.pictures import Renderer, World
from nextgpt.train.nano.world.split import split_of_names

FRAMES = 8
FPS = 4
FILMED = 60  # concepts: those that can be heard too, and the first of the others
STYLE, BACKGROUND, SIZE = "3d", "white", "small"
REACH = 15.0  # pixels that a thing goes to either side
SIDES = (20.0, 56.0)  # the least and the largest artwork, in pixels
RESTING_SIDE = 34.0


class Pose(NamedTuple):
    """Where the artwork is in one frame: side in pixels, distance from the middle in pixels, turn in radians."""

    side: float = RESTING_SIDE
    right: float = 0.0
    down: float = 0.0
    turn: float = 0.0


def _from_to(first: float, last: float, at: float) -> float:
    return first + (last - first) * at


# Time runs from 0 in the first frame to 1 in the last one. No frame looks like a picture of the world, which may be held
# out: the artwork is never upright, in the middle, and as large as theirs.
MOTIONS = {
    "sliding left": lambda at: Pose(right=_from_to(REACH, -REACH, at)),
    "sliding right": lambda at: Pose(right=_from_to(-REACH, REACH, at)),
    "sliding up": lambda at: Pose(down=_from_to(REACH, -REACH, at)),
    "sliding down": lambda at: Pose(down=_from_to(-REACH, REACH, at)),
    "spinning": lambda at: Pose(turn=2 * math.pi * (at * (FRAMES - 1) / FRAMES + 1 / 16)),
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


def filmed(sounds: dict[str, str | None]) -> list[str]:
    """The concepts of which there are clips, in the world's order.

    Args:
        sounds: of all concepts, the sound that each makes, or None.
    """
    first = sorted(sounds, key=lambda name: not sounds[name])[:FILMED]
    return [name for name in sounds if name in first]


class ClipWorld:
    """The clips of a built world.

    Args:
        world: gives names and artwork.
    """

    motions = tuple(MOTIONS)

    def __init__(self, world: World):
        self.world = world
        self.names = filmed({concept["name"]: concept.get("sound") for concept in world.concepts})
        self.combinations = [Clip(concept, motion) for concept in self.names for motion in self.motions]

    def rows(self, split: str, most: int | None = None) -> Tensor:
        """The clips of one split, as indices `[N, 2]`: concept (of the whole world's), motion.

        Args:
            most: only those of so many concepts, the first that are filmed.
        """
        names = self.names[:most]
        return torch.tensor(
            [
                (self.world.names.index(clip.concept), self.motions.index(clip.motion))
                for clip in self.combinations
                if clip.split == split and clip.concept in names
            ]
        )


class ClipRenderer:
    """Composes clips on any device, by the batch.

    Args:
        world: gives style, background and the artwork's order.
        renderer: of its pictures.
        style: of the artwork, by its number; by default that of all the world's clips.
    """

    def __init__(self, world: World, renderer: Renderer, style: int | None = None):
        self.renderer = renderer
        device = renderer.backgrounds.device
        poses = [[tuple(motion(frame / (FRAMES - 1))) for frame in range(FRAMES)] for motion in MOTIONS.values()]
        self.poses = torch.tensor(poses, device=device)  # [motion, frame, pose]
        style = world.styles.index(STYLE) if style is None else style
        self.rest = torch.tensor([0, style, world.backgrounds.index(BACKGROUND), world.sizes.index(SIZE)], device=device)

    def __call__(self, index: Tensor) -> Tensor:
        """Indices `[N, 2]` → clips `[N, 3, 8, 64, 64]` in 0..1, float32."""
        rows = self.rest.repeat(len(index), 1)
        rows[:, 0] = index[:, 0]
        pictures = self.renderer.place(rows.repeat_interleave(FRAMES, 0), *self.poses[index[:, 1]].flatten(0, 1).unbind(1))
        return pictures.unflatten(0, (-1, FRAMES)).transpose(1, 2)


class KeptClips:
    """Clips that are rendered once and then drawn, a little moved, as often as needed.

    Args:
        renderer: of clips.
        rows: the clips, as indices `[N, 2]`.
    """

    def __init__(self, renderer: ClipRenderer, rows: Tensor):
        self.rows = rows
        self.pixels = torch.cat([renderer(part).mul(255).round().byte() for part in rows.split(32)])

    def __call__(self, count: int, shift: int = 0) -> tuple[Tensor, Tensor]:
        """Clips `[count, 3, 8, 64, 64]` in 0..1, drawn with repetition, and what they show, `[count, 2]`.

        Args:
            shift: move each clip by up to so many pixels to any side; its edge is repeated.
        """
        chosen = torch.randint(len(self.rows), (count,), device=self.rows.device)
        clips = self.pixels[chosen].float() / 255
        for across in (3, 4):
            side = clips.shape[across]
            moved = torch.arange(side, device=clips.device) + torch.randint(
                -shift, shift + 1, (count, 1), device=clips.device
            )
            places = moved.clamp(0, side - 1).view(count, 1, 1, *((1, side) if across == 4 else (side, 1)))
            clips = clips.gather(across, places.expand_as(clips))
        return clips, self.rows[chosen]
