"""Makes and is the judge of pictures: a small classifier that learns from true pictures of the world alone.

`python -m nextgpt.train.nano.judge --minutes 3` trains it on the training split and goes on from its last checkpoint
when started again; `--final` only measures it on the held-out pictures. No part of the model ever learns from it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.train.nano import loop
from nextgpt.train.nano.unknown import UnknownPictures, disturb
from nextgpt.train.nano.world import Renderer

logger = logging.getLogger(__name__)

LEARNING_RATE = 2e-3
UNKNOWN = "unknown"
UNKNOWN_SHARE = 1 / 8
IGNORED = -100
WIDTHS = (32, 64, 96, 128)


class Judge(nn.Module):
    """Reads concept (or `UNKNOWN`), style, background and size off a picture; 0.4 M parameters.

    Args:
        labels: part → its names, as `{"concept": [..., "unknown"], "style": [...], ...}`.
    """

    def __init__(self, labels: dict[str, list[str]]):
        super().__init__()
        self.labels = labels
        widths = (3, *WIDTHS)
        self.blocks = nn.Sequential(*(_block(a, b) for a, b in zip(widths, widths[1:], strict=False)))
        self.heads = nn.ModuleDict({part: nn.Linear(2 * WIDTHS[-1], len(names)) for part, names in labels.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Pictures `[N, 3, 64, 64]` in 0..1 → logits for each part."""
        features = self.blocks(pictures * 2 - 1)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        return {part: head(pooled) for part, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pictures: Tensor) -> list[dict[str, str]]:
        """What each picture shows, in words: part → name."""
        said = {part: logits.argmax(1).tolist() for part, logits in self.eval()(pictures).items()}
        return [{part: self.labels[part][said[part][n]] for part in self.labels} for n in range(len(pictures))]

    def save_pretrained(self, folder: Path) -> None:
        """Writes the labels and the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "labels.json").write_text(json.dumps(self.labels, indent=1) + "\n", encoding="utf-8")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "judge.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Judge:
        """Reads what `save_pretrained` wrote."""
        judge = cls(json.loads((Path(folder) / "labels.json").read_text(encoding="utf-8")))
        judge.load_state_dict(load_file(Path(folder) / "judge.safetensors"))
        return judge.eval()


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


@torch.no_grad()
def measure(judge: Judge, renderer: Renderer, rows: Tensor, unknown: Tensor) -> dict[str, float]:
    """Shares of right readings of true pictures given as indices, and of pictures from outside the world."""
    judge.eval()
    said = [judge(renderer(part)) for part in rows.split(256)]
    figures = {
        part: (torch.cat([logits[part] for logits in said]).argmax(1) == target).float().mean().item()
        for part, target in zip(judge.labels, rows.T, strict=True)
    }
    last = len(judge.labels["concept"]) - 1
    figures[UNKNOWN] = (judge(unknown)["concept"].argmax(1) == last).float().mean().item()
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    """Trains and measures on the development split, or with `--final` measures on the held-out one."""
    parser = loop.arguments(__doc__.split("\n")[0], "judge", minutes=3, batch=512)
    parser.add_argument("--final", action="store_true", help="only measure the saved judge on the held-out pictures")
    args = parser.parse_args()
    world, device = loop.start(args)
    renderer = Renderer(torch.from_numpy(world.art).to(device))
    if args.final:
        rows = loop.combinations(world, "heldout", args.concepts, device)
        unknown = UnknownPictures(world, "heldout", renderer, rows)(200)
        logger.info("held out: %s", measure(Judge.from_pretrained(args.out).to(device), renderer, rows, unknown))
        return

    rows = loop.combinations(world, "train", args.concepts, device)
    unknown = UnknownPictures(world, "train", renderer, rows)
    judge = Judge(
        {
            "concept": [*world.names, UNKNOWN],
            "style": list(world.styles),
            "background": list(world.backgrounds),
            "size": list(world.sizes),
        }
    )
    judge = judge.to(device, memory_format=torch.channels_last)
    optimizer = loop.adamw([judge], LEARNING_RATE, weight_decay=0.05)
    compute = torch.compile(judge) if args.compile else judge
    unknowns = int(args.batch * UNKNOWN_SHARE)
    unknown_target = torch.tensor([[len(world.names), IGNORED, IGNORED, IGNORED]], device=device)

    run = loop.Loop(args.out, args.minutes, optimizer, {"judge": judge})
    for _ in run:
        chosen = loop.draw(rows, args.batch - unknowns)
        shown = torch.cat([renderer(chosen, shift=2, stretch=0.05), unknown(unknowns, shift=2, stretch=0.05)])
        targets = torch.cat([chosen, unknown_target.expand(unknowns, -1)])
        with loop.autocast(device):
            logits = compute(disturb(shown))
        parts = {
            part: F.cross_entropy(logits[part].float(), target, ignore_index=IGNORED)
            for part, target in zip(judge.labels, targets.T, strict=True)
        }
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch, **parts)

    judge.save_pretrained(args.out)
    dev = loop.combinations(world, "dev", args.concepts, device)
    unknown_dev = UnknownPictures(world, "dev", renderer, dev)(200)
    figures = measure(judge, renderer, dev, unknown_dev)
    run.write_figures(args.out, parameters=loop.parameter_count(judge), dev=figures)


if __name__ == "__main__":
    main()
