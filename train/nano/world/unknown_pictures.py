"""Pictures and clips that are none of the world's, by the batch: artwork of other things, noise, gradients, mixtures.

Encoder and classifiers learn from it to say "something unknown".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.clips import FRAMES, ClipRenderer, ClipWorld
from nextgpt.train.nano.world.pictures import SIDE, Renderer, World
from nextgpt.train.nano.world.sampling import IGNORED

TURNED_SHARE = 0.3


class UnknownPictures:
    """Draws pictures from outside the world.

    Args:
        world: gives the artwork.
        split: whose artwork of other things to use.
        renderer: of the world itself, for mixtures.
        rows: the world's pictures that may be mixed, as indices `[N, 4]`.
    """

    def __init__(self, world: World, split: str, renderer: Renderer, rows: Tensor):
        numbers = world.outside_numbers(split)
        self.rows, self.world_renderer, self.count = rows, renderer, len(numbers)
        self.renderer = Renderer(torch.from_numpy(world.outside[numbers][:, None]).to(rows.device))

    def __call__(self, count: int, shift: float = 0.0, stretch: float = 0.0) -> Tensor:
        """Pictures `[count, 3, 64, 64]` in 0..1; at least half are artwork."""
        others = count // 2
        makers = (self._noise, self._gradients, self._mixtures, self._shuffled)
        shares = [(make, (others + index) // len(makers)) for index, make in enumerate(makers)]
        pictures = [make(share) for make, share in shares if share]
        if count:
            pictures.append(self._artwork(count - others, shift, stretch))
        return torch.cat([torch.empty(0, 3, SIDE, SIDE, device=self.rows.device), *pictures])

    def _artwork(self, count: int, shift: float, stretch: float) -> Tensor:
        rows = sampling.draw(self.rows, count).clone()
        rows[:, 0] = torch.randint(self.count, (count,), device=rows.device)
        rows[:, 1] = 0
        return self.renderer(rows, shift, stretch)

    def _noise(self, count: int) -> Tensor:
        """Noise of any grain: from single pixels to one colour."""
        device = self.rows.device
        grains = [F.interpolate(torch.rand(count, 3, side, side, device=device), SIDE) for side in (1, 4, 16, SIDE)]
        return torch.stack(grains)[torch.randint(len(grains), (count,), device=device), torch.arange(count)]

    def _gradients(self, count: int) -> Tensor:
        """Soft colours, as in a photograph out of focus."""
        corners = torch.rand(count, 3, 3, 3, device=self.rows.device)
        return F.interpolate(corners, SIDE, mode="bilinear", align_corners=True)

    def _mixtures(self, count: int) -> Tensor:
        """Three pictures of the world shining through each other."""
        return self.world_renderer(sampling.draw(self.rows, 3 * count)).unflatten(0, (count, 3)).mean(1)

    def _shuffled(self, count: int) -> Tensor:
        """Pictures of the world cut into 16 tiles, the tiles mixed up between pictures."""
        tiles = F.unfold(self.world_renderer(sampling.draw(self.rows, count)), SIDE // 4, stride=SIDE // 4)
        mixed = tiles.transpose(1, 2).flatten(0, 1)
        mixed = mixed[torch.randperm(len(mixed), device=mixed.device)].unflatten(0, (count, 16)).transpose(1, 2)
        return F.fold(mixed, SIDE, SIDE // 4, stride=SIDE // 4)


class UnknownClips:
    """Draws clips from outside the world.

    Args:
        pictures: of the same split.
        world: gives the motions.
    """

    def __init__(self, pictures: UnknownPictures, world: ClipWorld):
        self.pictures, self.motions = pictures, len(world.motions)
        self.renderer = ClipRenderer(world.world, pictures.renderer, style=0)

    def __call__(self, count: int) -> Tensor:
        """Clips `[count, 3, 8, 64, 64]` in 0..1: half are artwork in motion, half pictures that stay or fade away."""
        device, moving = self.pictures.rows.device, count - count // 2
        kinds = (self.pictures.count, self.motions)
        rows = torch.stack([torch.randint(kind, (moving,), device=device) for kind in kinds], dim=1)
        first, last = self.pictures(count // 2), self.pictures(count // 2)
        fades = torch.rand(len(first), 1, 1, 1, 1, device=device) < 0.5
        at = torch.linspace(0, 1, FRAMES, device=device).view(1, 1, FRAMES, 1, 1) * fades
        return torch.cat([self.renderer(rows), first[:, :, None].lerp(last[:, :, None], at)])


def turn_some(clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Turns `TURNED_SHARE` of clips any way, the edge repeated, so that things are known however they lie.

    Spinning is all that turns things in the world, and of some things it is held out.

    Args:
        clips: `[N, 3, 8, 64, 64]` in 0..1.
        targets: concept and motion, `[N, 2]`; the motion of what is turned becomes `IGNORED`.
    """
    count = int(len(clips) * TURNED_SHARE)
    turns = 2 * math.pi * torch.rand(count, device=clips.device)
    rows = [torch.stack([turns.cos(), -turns.sin()], dim=1), torch.stack([turns.sin(), turns.cos()], dim=1)]
    matrices = F.pad(torch.stack(rows, dim=1), (0, 1))  # [count, 2, 3]: no shift
    frames = clips[:count].flatten(1, 2)
    places = F.affine_grid(matrices, list(frames.shape), align_corners=False)
    turned = F.grid_sample(frames, places, padding_mode="border", align_corners=False).view_as(clips[:count])
    targets = targets.clone()
    targets[:count, 1] = IGNORED
    return torch.cat([turned, clips[count:]]), targets


def augment_clips(clips: Tensor) -> Tensor:
    """`augment` for clips `[N, 3, 8, 64, 64]`: colours and sharpness change from clip to clip, noise in every frame."""
    frames = augment(clips.transpose(1, 2).flatten(0, 1), together=FRAMES)
    return frames.unflatten(0, (-1, FRAMES)).transpose(1, 2)


def augment(pictures: Tensor, together: int = 1) -> Tensor:
    """Colours, sharpness and noise as in pictures that are not quite true; 0..1 in and out.

    Args:
        together: so many pictures in a row have their colours and sharpness changed alike.
    """
    count, device = len(pictures), pictures.device

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        chosen = low + (high - low) * torch.rand(count // together, channels, 1, 1, device=device)
        return chosen.repeat_interleave(together, 0)

    pictures = pictures.lerp(_blur(pictures), uniform(-0.3, 0.9))
    pictures = (pictures - 0.5) * uniform(0.85, 1.1) + 0.5 + uniform(-0.05, 0.05, channels=3)
    coarse = F.interpolate(torch.randn(count, 3, SIDE // 4, SIDE // 4, device=device), SIDE, mode="bilinear")
    pictures = pictures + uniform(0, 0.05) * torch.randn_like(pictures) + uniform(0, 0.05) * coarse
    return pictures.clamp(0, 1)


def _blur(pictures: Tensor) -> Tensor:
    """The mean of 3 × 3 pixels; by sums, which take a third of the time of torch's pooling on a processor."""
    wide = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
