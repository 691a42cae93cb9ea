"""Writes the nano model's card beside its weights: what it knows, how it was made, what was measured, hashes, licences.

`python -m nextgpt.train.nano.card --scores scores.json` takes what `nextgpt evaluate nano --json` printed. Every number
comes from a file; only the sentences between them stand here.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from nextgpt.doctor import file_hash
from nextgpt.parts import preset_folder
from nextgpt.train.nano.evaluate import Score, table
from nextgpt.train.nano.loop import LOG_FILE
from nextgpt.train.nano.world import World

logger = logging.getLogger(__name__)

HASHED = (".safetensors", ".npz")
CARD = """---
license: apache-2.0
language: en
library_name: nextgpt
tags: [any-to-any, multimodal]
---

# nano

A small NExT-GPT that knows one little world of pictures and comes inside the package: no download, no accelerator. It
sees a picture and names it, draws what it is asked, talks about its world, and says so when something lies outside it.
It is the same machinery as the full-size model: a frozen ImageBind, a linear input projection, a Llama with LoRA, signal
tokens, a transformer output projection, a frozen Stable Diffusion.

## What it knows

{concepts} things ({names}) in {styles} styles ({style_names}), on {backgrounds} background colours
({background_names}), in {sizes} sizes: {combinations} pictures of 64 × 64. A tenth of the combinations and all test
phrasings were held out from every part.

It does not know sounds, clips, photographs, people, or anything else of the world at large. Its English is that of a
few thousand sentences.

## How it was made

`python -m nextgpt.train.nano.make`, on two processor cores. The frozen parts and the curves of the stages, with every
step's figures on the development split, are in `training_log.json`:

| part | minutes | steps | parameters |
|---|---|---|---|
{parts}

## Measured

On held-out combinations, asked for in held-out words (`nextgpt evaluate nano`); an independent judge, trained on true
pictures alone, looks at the drawings.

{table}

With a projection zeroed, its row falls to chance (`nextgpt evaluate nano --ablate`):

{ablation}

## Files

| file | sha256 |
|---|---|
{files}

## Licences

The weights: Apache-2.0. The artwork that they learned from:

{attribution}
"""


def parts_table(log: dict) -> str:
    """One line for each part and stage of the log."""
    lines = []
    for part, entry in log.items():
        parameters = entry.get("figures", {}).get("parameters", entry.get("parameters", ""))
        if isinstance(parameters, dict):
            parameters = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
        elif parameters:
            parameters = f"{parameters:,}"
        minutes = entry.get("minutes", entry["curve"][-1].get("minutes", "") if entry.get("curve") else "")
        steps = entry.get("steps", entry["curve"][-1].get("step", "") if entry.get("curve") else "")
        lines.append(f"| {part} | {minutes} | {steps} | {parameters} |")
    return "\n".join(lines)


def write_card(preset: Path, scores: list[Score], ablation: list[Score]) -> Path:
    """Writes `README.md` into the preset folder."""
    world = World(preset / "world")
    log = json.loads((preset / LOG_FILE).read_text(encoding="utf-8"))
    files = sorted(path for path in preset.rglob("*") if path.suffix in HASHED)
    attribution = (preset / "ATTRIBUTION.md").read_text(encoding="utf-8").split("\n", 2)[2].strip()
    card = CARD.format(
        concepts=len(world.names),
        names=f"{', '.join(world.names[:8])} …",
        styles=len(world.styles),
        style_names=", ".join(world.styles),
        backgrounds=len(world.backgrounds),
        background_names=", ".join(world.backgrounds),
        sizes=len(world.sizes),
        combinations=f"{len(world.names) * len(world.styles) * len(world.backgrounds) * len(world.sizes):,}",
        parts=parts_table(log),
        table=table(scores),
        ablation=table(ablation),
        files="\n".join(f"| {path.relative_to(preset).as_posix()} | `{file_hash(path)}` |" for path in files),
        attribution=attribution,
    )
    path = preset / "README.md"
    path.write_text(card, encoding="utf-8")
    return path


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scores", type=Path, required=True, help="what `nextgpt evaluate nano --json` printed")
    parser.add_argument("--ablation", type=Path, required=True, help="the same with --ablate")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    read = [Score.from_json(path.read_text(encoding="utf-8")) for path in (args.scores, args.ablation)]
    logger.info("%s", write_card(preset_folder("nano"), *read))


if __name__ == "__main__":
    main()
