"""The world of clips: things of the world in motion, 8 frames at 4 a second. Knows artwork and motions, no models.

A clip has a look, too: a style and a background. Which looks there are, and which things are filmed, `world.json` says; a
world that says nothing of it has one look, the default.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nextgpt.train.nano.world.pictures import Renderer, World
from nextgpt.train.nano.world.split import split_of_names

FRAMES = 8
FPS = 4
FILMED = 60  # concepts where none says that it is filmed: those that can be heard too, and the first of the others
STYLE, BACKGROUND = "3d", "white"
LOOKS = 6  # of each clip in files and for evaluation, the default among them
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
    style: str = STYLE
    background: str = BACKGROUND

    @property
    def caption(self) -> str:
        """The canonical caption: "a banana, spinning"; it says nothing of the look."""
        return f"a {self.concept}, {self.motion}"

    @property
    def split(self) -> str:
        """Its split, whatever its look."""
        return split_of_names("clip", self.concept, self.motion)

    @property
    def has_default_look(self) -> bool:
        return (self.style, self.background) == (STYLE, BACKGROUND)

    def in_looks(self, looks: Sequence[tuple[str, str]]) -> list[Clip]:
        """This clip and up to `LOOKS` - 1 others like it, always the same ones.

        Args:
            looks: the world's styles with its backgrounds.
        """
        others = [look for look in looks if look != (self.style, self.background)]
        chosen = random.Random(f"{self.concept}/{self.motion}").sample(others, min(len(others), LOOKS - 1))
        return [self, *(self._replace(style=style, background=background) for style, background in chosen)]


def filmed(concepts: Iterable[dict]) -> list[str]:
    """The concepts of which there are clips, in the world's order; entries as in `world.json`."""
    concepts = list(concepts)
    chosen = [concept["name"] for concept in concepts if concept.get("filmed")]
    first = sorted(concepts, key=lambda concept: not concept.get("sound"))[:FILMED]
    return chosen or [concept["name"] for concept in concepts if concept in first]


class ClipWorld:
    """The clips of a built world.

    Args:
        world: gives names and artwork.
    """

    motions = tuple(MOTIONS)

    def __init__(self, world: World):
        self.world = world
        self.names = filmed(world.concepts)
        looks = world.clips or {"styles": [STYLE], "backgrounds": [BACKGROUND]}
        self.looks: list[tuple[str, str]] = list(itertools.product(looks["styles"], looks["backgrounds"]))
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

    def extra_training_clips(self, most: int | None = None) -> Tensor:
        """Clips beside the world's own, to learn how things move from, as indices `[N, 4]`: what is never filmed, in every
        motion and style, and what is, in the other styles, where thing and motion are of the training split.

        Args:
            most: only of so many concepts, the first.
        """
        styles, background = self.world.styles, self.world.backgrounds.index(BACKGROUND)
        return torch.tensor(
            [
                (concept, motion, style, background)
                for concept, name in enumerate(self.world.names[:most])
                for style in range(len(styles))
                if name not in self.names or styles[style] != STYLE
                for motion in range(len(self.motions))
                if name not in self.names or Clip(name, self.motions[motion]).split == "train"
            ]
        )

    def never_filmed(self, most: int | None = None) -> Tensor:
        """Clips of the concepts that are never filmed, in every motion and style, `[N, 4]` as `vary` has them: none of them
        is of any split.

        Args:
            most: only of so many concepts, the first.
        """
        rows = self.extra_training_clips(most)
        filmed = torch.tensor([name in self.names for name in self.world.names])
        rows = rows[~filmed[rows[:, 0]]]
        rows[:, 3] = torch.randint(len(self.world.backgrounds), (len(rows),))
        return rows

    def row(self, clip: Clip) -> tuple[int, int, int, int]:
        """A clip as indices: concept, motion, style, background."""
        styles, backgrounds = self.world.styles, self.world.backgrounds
        names = (self.world.names.index(clip.concept), self.motions.index(clip.motion))
        return *names, styles.index(clip.style), backgrounds.index(clip.background)

    def vary(self, rows: Tensor) -> Tensor:
        """Clips `[N, 2]` in looks drawn at random, `[N, 4]`: concept, motion, style, background."""
        indices = [(self.world.styles.index(s), self.world.backgrounds.index(b)) for s, b in self.looks]
        looks = torch.tensor(indices, device=rows.device)
        return torch.cat([rows, looks[torch.randint(len(looks), (len(rows),), device=rows.device)]], dim=1)


class ClipRenderer:
    """Composes clips on any device, by the batch.

    Args:
        world: gives style, background and the artwork's order.
        renderer: of its pictures.
        style: of the artwork where a clip does not say, by its number; `STYLE` by default.
    """

    def __init__(self, world: World, renderer: Renderer, style: int | None = None):
        self.renderer = renderer
        device = renderer.backgrounds.device
        poses = [[tuple(motion(frame / (FRAMES - 1))) for frame in range(FRAMES)] for motion in MOTIONS.values()]
        self.poses = torch.tensor(poses, device=device)  # [motion, frame, pose]
        style = world.styles.index(STYLE) if style is None else style
        self.look = torch.tensor([style, world.backgrounds.index(BACKGROUND)], device=device)

    def __call__(self, index: Tensor) -> Tensor:
        """Indices `[N, 2]`, or `[N, 4]` with style and background → clips `[N, 3, 8, 64, 64]` in 0..1, float32."""
        looks = index[:, 2:] if index.shape[1] == 4 else self.look.expand(len(index), 2)
        rows = torch.cat([index[:, :1], looks, torch.zeros_like(index[:, :1])], dim=1)  # a pose has its own size
        pictures = self.renderer.place(rows.repeat_interleave(FRAMES, 0), *self.poses[index[:, 1]].flatten(0, 1).unbind(1))
        return pictures.unflatten(0, (-1, FRAMES)).transpose(1, 2)


class KeptClips:
    """Clips that are rendered once and then drawn, a little moved, as often as needed.

    Args:
        renderer: of clips.
        rows: the clips, as indices `[N, 2]` or `[N, 4]`.
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
        return clips, self.rows[chosen, :2]
