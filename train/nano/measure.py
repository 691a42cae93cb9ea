"""Measures the assembled nano model on pictures: what it names and what it draws. Learns nothing, tunes nothing.

`python -m nextgpt.train.nano.measure` asks the pipeline to describe true pictures of the development split and to draw
others, and has the judge look at the drawings. `--ablate` zeroes the input projection for the first and the image
output projection for the second: then both must fall to chance.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from nextgpt import NextGPTPipeline
from nextgpt.parts import preset_folder
from nextgpt.train.nano.judge import Judge
from nextgpt.train.nano.world import World

logger = logging.getLogger(__name__)

PARTS = ("concept", "style", "background", "size")
SAID = re.compile(r"an? (?P<size>\w+) (?P<concept>[^,.]+), (?P<style>\w+) style, (?P<background>\w+) background")


def described(
    pipeline: NextGPTPipeline, pictures: list[Image.Image], question: str = "Describe this picture."
) -> list[dict]:
    """What the assistant says of each picture: part → name, empty where it gives no caption."""
    parts = [[{"type": "image", "image": picture}, {"type": "text", "text": question}] for picture in pictures]
    replies = pipeline([[{"role": "user", "content": each}] for each in parts], output_modalities=("text",))
    found = [SAID.search(reply.text) for reply in replies]
    return [match.groupdict() if match else {} for match in found]


def drawn(pipeline: NextGPTPipeline, judge: Judge, requests: list[str], seed: int = 0) -> list[dict]:
    """What the judge sees in the first picture of each answer: part → name, empty where no picture came."""
    replies = pipeline([[{"role": "user", "content": request}] for request in requests], seed=seed)
    seen = []
    for reply in replies:
        if not reply.images:
            seen.append({})
            continue
        pixels = torch.from_numpy(np.array(reply.images[0])).permute(2, 0, 1)[None] / 255
        seen += judge.read(pixels)
    return seen


def shares(expected: Iterable[dict], found: Iterable[dict]) -> dict[str, float]:
    """Share of right readings, by part."""
    pairs = list(zip(expected, found, strict=True))
    return {part: round(sum(a[part] == b.get(part) for a, b in pairs) / len(pairs), 3) for part in PARTS}


def zero(module: nn.Module) -> None:
    """Sets all parameters to zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


def main() -> None:
    """Prints one JSON object of shares."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", type=Path, default=Path("runs/nano/world"))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--split", default="dev", choices=("dev", "heldout"))
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--examples", type=Path, help="only render 40 held-out pictures, one of a concept, into this folder")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    world = World(args.world)
    if args.examples:
        render_examples(world, args.examples)
        return
    rows = world.combinations(args.split)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: args.count]].tolist()
    names = [world.names, world.styles, world.backgrounds, world.sizes]
    expected = [{part: names[i][row[i]] for i, part in enumerate(PARTS)} for row in rows]
    pictures = [Image.fromarray(world.render(*each.values())) for each in expected]
    requests = [
        f"Draw a {e['size']} {e['concept']} in {e['style']} style on a {e['background']} background." for e in expected
    ]

    pipeline = NextGPTPipeline.from_pretrained(args.model)
    judge = Judge.from_pretrained(preset_folder("nano/judge"))
    if args.ablate:
        zero(pipeline.model.input_projection)
        zero(pipeline.model.output_projections["image"])
    figures = {"pictures": len(rows), "split": args.split, "ablated": args.ablate}
    batches = [slice(start, start + 40) for start in range(0, len(rows), 40)]
    figures["image to text"] = shares(expected, [d for b in batches for d in described(pipeline, pictures[b])])
    figures["text to image"] = shares(expected, [d for b in batches for d in drawn(pipeline, judge, requests[b])])
    if not args.ablate:
        true = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in pictures])
        figures["judge on true pictures"] = shares(expected, judge.read(true))
    print(json.dumps(figures, indent=1))


def render_examples(world: World, folder: Path, count: int = 40) -> None:
    """Writes held-out pictures of as many concepts, large, as `<concept>.<style>.<background>.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    large = [row for row in world.combinations("heldout").tolist() if row[3] == 0]
    first = {row[0]: row for row in reversed(large)}
    rows = [first[c] for c in sorted(first)]
    for c, s, b, z in rows[:: max(1, len(rows) // count)][:count]:
        concept, style, background = world.names[c], world.styles[s], world.backgrounds[b]
        picture = Image.fromarray(world.render(concept, style, background, world.sizes[z]))
        picture.save(folder / f"{concept.replace(' ', '_')}.{style}.{background}.png")


if __name__ == "__main__":
    main()
