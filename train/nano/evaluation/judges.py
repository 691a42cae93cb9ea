"""What the judges of pictures, sounds and clips share: reading, saving, learning and measuring.

A judge is a small classifier that learns from true media of the world alone. No part of the model ever learns from it.
Knows no media.
"""

from __future__ import annotations

import argparse
import json
import logging
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.train.nano.models import loop
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.sampling import IGNORED

logger = logging.getLogger(__name__)

LEARNING_RATE = 2e-3
UNKNOWN = "unknown"
UNKNOWN_SHARE = 1 / 8
BATCH = 32  # pieces that are read at once
WEIGHTS = "judge.safetensors"
LABELS = "labels.json"


class MediaJudge(nn.Module):
    """Reads the parts of what a piece of media shows; of the first one the last name is `UNKNOWN`.

    Args:
        labels: part → its names, as `{"concept": [..., "unknown"], "style": [...], ...}`.
        widths: part → width of the features that it is read from.
    """

    def __init__(self, labels: dict[str, list[str]], widths: dict[str, int]):
        super().__init__()
        self.labels = labels
        self.heads = nn.ModuleDict({part: nn.Linear(widths[part], len(names)) for part, names in labels.items()})

    @abstractmethod
    def features(self, media: Tensor) -> dict[str, Tensor]:
        """Media `[N, ...]` → for each part, the features `[N, width]` that it is read from."""

    def forward(self, media: Tensor) -> dict[str, Tensor]:
        """Media `[N, ...]` → logits for each part."""
        features = self.features(media)
        return {part: head(features[part]) for part, head in self.heads.items()}

    @torch.no_grad()
    def numbers(self, media: Tensor) -> dict[str, Tensor]:
        """What each piece shows: part → the numbers of its names `[N]`."""
        logits = [self.eval()(part) for part in media.split(BATCH)]
        return {part: torch.cat([each[part] for each in logits]).argmax(1) for part in self.labels}

    def read(self, media: Tensor) -> list[dict[str, str]]:
        """What each piece shows, in words: part → name."""
        said = {part: numbers.tolist() for part, numbers in self.numbers(media).items()}
        return [{part: self.labels[part][said[part][n]] for part in self.labels} for n in range(len(media))]

    def save_pretrained(self, folder: Path) -> None:
        """Writes the labels and the weights, these in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LABELS).write_text(json.dumps(self.labels, indent=1) + "\n", encoding="utf-8")
        weights = {name: v.bfloat16() if v.is_floating_point() else v for name, v in self.state_dict().items()}
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MediaJudge:
        """Reads what `save_pretrained` wrote."""
        judge = cls(json.loads((Path(folder) / LABELS).read_text(encoding="utf-8")))
        judge.load_state_dict(load_file(Path(folder) / WEIGHTS))
        return judge.eval()


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions; halves height and width."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def blocks(*widths: int) -> nn.Sequential:
    """One block from each width to the next."""
    return nn.Sequential(*(block(a, b) for a, b in zip(widths, widths[1:], strict=False)))


def pool(features: Tensor) -> Tensor:
    """Mean and maximum over height and width: `[N, C, H, W]` → `[N, 2 C]`."""
    return torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)


class Lessons:
    """True media of one split.

    Args:
        world: gives the folder of the world.
        split: "train", "dev" or "heldout".
        most: only so many of the things or sounds.
    """

    labels: dict[str, list[str]]

    @abstractmethod
    def __init__(self, world: World, split: str, most: int | None, device: torch.device): ...

    @abstractmethod
    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Disturbed media and the numbers of their labels `[count, parts]`, to learn from."""

    @abstractmethod
    def draw_unknown(self, count: int) -> Tensor:
        """Disturbed media from outside the world, to learn from."""

    @abstractmethod
    def exam(self) -> tuple[Tensor, Tensor, Tensor]:
        """All true media, the numbers of their labels `[N, parts]`, and media from outside the world."""


def measure(judge: MediaJudge, media: Tensor, targets: Tensor, unknown: Tensor) -> dict[str, float]:
    """Shares of right readings of true media, and of media from outside the world."""
    said = judge.numbers(media)
    right = {part: said[part] == target for part, target in zip(judge.labels, targets.T, strict=True)}
    first = next(iter(judge.labels))
    right[UNKNOWN] = judge.numbers(unknown)[first] == len(judge.labels[first]) - 1
    return {name: round(each.float().mean().item(), 4) for name, each in right.items()}


def train(judge: MediaJudge, lessons: Lessons, args: argparse.Namespace, device: torch.device) -> loop.Loop:
    """Trains for `args.minutes`, going on from the last checkpoint."""
    optimizer = loop.adamw([judge], LEARNING_RATE, weight_decay=0.05)
    compute = torch.compile(judge) if args.compile else judge
    first = next(iter(lessons.labels.values()))

    run = loop.Loop(args.out, args.minutes, optimizer, {"judge": judge}, args.start_from)
    for _ in run:
        media, targets = sampling.draw_mixed(lessons, args.batch, UNKNOWN_SHARE, unknown=len(first) - 1)
        with loop.autocast(device):
            logits = compute(media)
        parts = {
            part: F.cross_entropy(logits[part].float(), target, ignore_index=IGNORED)
            for part, target in zip(lessons.labels, targets.T, strict=True)
        }
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch, **parts)
    return run


def main(
    description: str,
    part: str,
    kind: Callable[[dict[str, list[str]]], MediaJudge],
    lessons: type[Lessons],
    minutes: float,
    batch: int,
) -> None:
    """The command of a judge: trains and measures on the development split, or with `--final` on the held-out one.

    Args:
        kind: makes the judge from its labels.
        lessons: of its media.
        part, minutes, batch: the defaults of the command.
    """
    parser = loop.arguments(description, part, minutes=minutes, batch=batch)
    parser.add_argument("--final", action="store_true", help="only measure the saved judge on the held-out split")
    args = parser.parse_args()
    world, device = loop.start(args)
    if args.final:
        judge = kind.from_pretrained(args.out).to(device)
        logger.info("held out: %s", measure(judge, *lessons(world, "heldout", args.concepts, device).exam()))
        return

    taught = lessons(world, "train", args.concepts, device)
    judge = kind(taught.labels).to(device, memory_format=torch.channels_last)
    run = train(judge, taught, args, device)
    judge.save_pretrained(args.out)
    torch.manual_seed(0)
    figures = measure(judge, *lessons(world, "dev", args.concepts, device).exam())
    run.write_figures(args.out, parameters=loop.parameter_count(judge), dev=figures)
