"""Makes and is the judge of pictures: a small classifier that learns from true pictures of the world alone.

`python -m nextgpt.train.nano.evaluation.judge --minutes 3` trains it on the training split and goes on from its last
checkpoint when started again; `--final` only measures it on the held-out pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextgpt.train.nano.evaluation import judges
from nextgpt.train.nano.evaluation.judges import UNKNOWN, MediaJudge
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.pictures import Renderer, World
from nextgpt.train.nano.world.unknown_pictures import UnknownPictures, disturb

WIDTHS = (32, 64, 96, 128)
MOVED = {"shift": 2, "stretch": 0.05}


class Judge(MediaJudge):
    """Reads concept (or `UNKNOWN`), style, background and size off pictures `[N, 3, 64, 64]` in 0..1; 0.4 M parameters.

    Args:
        labels: part → its names, as `{"concept": [..., "unknown"], "style": [...], ...}`.
    """

    def __init__(self, labels: dict[str, list[str]]):
        super().__init__(labels, dict.fromkeys(labels, 2 * WIDTHS[-1]))
        self.blocks = judges.blocks(3, *WIDTHS)

    def features(self, media: Tensor) -> dict[str, Tensor]:
        """Pictures → the same features for every part."""
        return dict.fromkeys(self.labels, judges.pool(self.blocks(media * 2 - 1)))


class Pictures(judges.Lessons):
    """The pictures of one split."""

    def __init__(self, world: World, split: str, most: int | None, device: torch.device):
        self.renderer = Renderer(torch.from_numpy(world.art).to(device))
        self.rows = sampling.combinations(world, split, most, device)
        self.unknown = UnknownPictures(world, split, self.renderer, self.rows)
        self.labels = {
            "concept": [*world.names, UNKNOWN],
            "style": list(world.styles),
            "background": list(world.backgrounds),
            "size": list(world.sizes),
        }

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Some pictures, as `Lessons` says."""
        chosen = sampling.draw(self.rows, count)
        return disturb(self.renderer(chosen, **MOVED)), chosen

    def draw_unknown(self, count: int) -> Tensor:
        """Some from outside, as `Lessons` says."""
        return disturb(self.unknown(count, **MOVED))

    def exam(self) -> tuple[Tensor, Tensor, Tensor]:
        """All pictures, as `Lessons` says."""
        return torch.cat([self.renderer(part) for part in self.rows.split(256)]), self.rows, self.unknown(200)


if __name__ == "__main__":
    judges.main(__doc__.split("\n")[0], "judge", Judge, Pictures, minutes=3, batch=512)
