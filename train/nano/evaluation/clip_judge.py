"""Makes and is the judge of clips: a small classifier that learns from true clips of the world alone.

`python -m nextgpt.train.nano.evaluation.clip_judge --minutes 5` trains it on the training split and goes on from its last
checkpoint when started again; `--final` only measures it on the held-out clips.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nextgpt.train.nano.evaluation import judges
from nextgpt.train.nano.evaluation.judges import UNKNOWN, MediaJudge
from nextgpt.train.nano.world.clips import FRAMES, ClipRenderer, ClipWorld, KeptClips
from nextgpt.train.nano.world.pictures import Renderer, World
from nextgpt.train.nano.world.unknown_pictures import UnknownClips, UnknownPictures, disturb_clips, turn_some

FRAME_WIDTHS = (24, 48, 96, 128)
MOTION_WIDTHS = (32, 64, 96)
LEARNED_FRAMES = 2  # of a clip, drawn at random: in training they stand for all
SHIFT = 3  # pixels


class ClipJudge(MediaJudge):
    """Reads concept (or `UNKNOWN`) and motion off clips `[N, 3, 8, 64, 64]` in 0..1; 0.5 M parameters.

    The thing is read off single frames, the motion off all frames and their differences, at half the resolution.

    Args:
        labels: part → its names: `{"concept": [..., "unknown"], "motion": [...]}`.
    """

    def __init__(self, labels: dict[str, list[str]]):
        super().__init__(labels, {"concept": 2 * FRAME_WIDTHS[-1], "motion": 2 * MOTION_WIDTHS[-1]})
        self.frame_blocks = judges.blocks(3, *FRAME_WIDTHS)
        self.motion_blocks = judges.blocks(3 * (2 * FRAMES - 1), *MOTION_WIDTHS)

    def features(self, media: Tensor) -> dict[str, Tensor]:
        """Clips → features of the frames for the concept, of the changes for the motion."""
        media = media * 2 - 1
        frames = media.transpose(1, 2)  # [N, frames, 3, H, W]
        if self.training:
            chosen = torch.rand(frames.shape[:2], device=media.device).argsort(1)[:, :LEARNED_FRAMES]
            seen = frames[torch.arange(len(frames), device=media.device)[:, None], chosen]
        else:
            seen = frames
        pooled = judges.pool(self.frame_blocks(seen.flatten(0, 1))).unflatten(0, seen.shape[:2]).mean(1)
        small = F.avg_pool2d(media.flatten(1, 2), 2).unflatten(1, (3, FRAMES))
        changes = torch.cat([small, small.diff(dim=2)], dim=2).flatten(1, 2)
        return {"concept": pooled, "motion": judges.pool(self.motion_blocks(changes))}


class Clips(judges.Lessons):
    """The clips of one split."""

    def __init__(self, world: World, split: str, most: int | None, device: torch.device):
        clips = ClipWorld(world)
        renderer = Renderer(torch.from_numpy(world.art).to(device))
        pictures = UnknownPictures(world, split, renderer, world.combinations(split).to(device))
        self.unknown = UnknownClips(pictures, clips)
        self.kept = KeptClips(ClipRenderer(world, renderer), clips.rows(split, most).to(device))
        self.labels = {"concept": [*world.names, UNKNOWN], "motion": list(clips.motions)}

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Some clips, as `Lessons` says."""
        clips, targets = turn_some(*self.kept(count, SHIFT))
        return disturb_clips(clips), targets

    def draw_unknown(self, count: int) -> Tensor:
        """Some from outside, as `Lessons` says."""
        return disturb_clips(self.unknown(count))

    def exam(self) -> tuple[Tensor, Tensor, Tensor]:
        """All clips, as `Lessons` says."""
        return self.kept.pixels.float() / 255, self.kept.rows, self.unknown(100)


if __name__ == "__main__":
    judges.main(__doc__.split("\n")[0], "clip_judge", ClipJudge, Clips, minutes=5, batch=256)
