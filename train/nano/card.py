"""Writes the nano model's card beside its weights: what it knows, how it was made, what was measured, hashes, licences.

`python -m nextgpt.train.nano.card --scores scores.json` takes what `nextgpt evaluate nano --json` printed. Every number
comes from a file; only the sentences between them stand here.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from nextgpt.hub.fingerprints import file_hash
from nextgpt.hub.parts import preset_folder
from nextgpt.media.text import listed
from nextgpt.train.nano.evaluation.evaluate import Score, table
from nextgpt.train.nano.models.loop import LOG_FILE
from nextgpt.train.nano.world.clips import FPS, FRAMES, ClipWorld
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.sounds import SoundWorld
from nextgpt.train.nano.world.things import PLURALS

logger = logging.getLogger(__name__)

HASHED = (".safetensors", ".npz")
CARD = """---
license: apache-2.0
language: en
library_name: nextgpt
tags: [any-to-any, multimodal]
---

# nano

A small NExT-GPT that knows one little world and comes inside the package: no download, no accelerator. It takes
{takes}, and answers with {makes}: it names what it is shown, makes what it is asked for, talks about its world,
and says so when something lies outside it. It is the same machinery as the full-size model: a frozen ImageBind, a linear
input projection, a Llama with LoRA, signal tokens, transformer output projections, frozen diffusion decoders.

## What it knows

{concepts} things ({names}) in {styles} styles ({style_names}), on {backgrounds} background colours
({background_names}), in {sizes} sizes: {combinations} pictures of 64 × 64.{more}A tenth of the combinations was held
out from every part.

It does not know {unknown}photographs, people, or anything else of the world at large, and its English is about this world.

## How it was made

`python -m nextgpt.train.nano.make`. The frozen parts and the curves of the stages, with every
step's figures on the development split, are in `training_log.json`:

| part | minutes | steps | parameters |
|---|---|---|---|
{parts}

## Measured

On held-out combinations, asked for in phrasings that were written apart from those it learned from (`nextgpt evaluate
nano`); independent classifiers, trained on true media alone, look at and listen to what it makes.

{table}

With a projection zeroed, its row falls to chance (`nextgpt evaluate nano --ablate`):

{ablation}

## Files

| file | sha256 |
|---|---|
{files}

## Licences

The weights: Apache-2.0. What they learned from:

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
        note = f" ({entry['note']})" if "note" in entry else ""
        lines.append(f"| {part}{note} | {minutes} | {steps} | {parameters} |")
    return "\n".join(lines)


SOUNDS = """

{sounds} instruments and effects ({names} …), the {pitched} that have a pitch in {registers} registers
({register_names}) and {figures} figures ({figure_names}): {combinations} sounds of two seconds."""
CLIPS = """

{concepts} of the things in {motions} motions ({motion_names}): {combinations} clips of 64 × 64, {frames} frames at
{fps} a second."""


def about_sounds(world: SoundWorld) -> str:
    """What there is to know about sounds."""
    return SOUNDS.format(
        sounds=len(world.names),
        names=", ".join(world.names[:8]),
        pitched=sum(sound["pitched"] for sound in world.sounds),
        registers=len(world.registers),
        register_names=", ".join(world.registers),
        figures=len(world.figures),
        figure_names=", ".join(world.figures),
        combinations=len(world.combinations),
    )


def about_clips(world: ClipWorld) -> str:
    """What there is to know about clips."""
    return CLIPS.format(
        concepts=len(world.names),
        motions=len(world.motions),
        motion_names=", ".join(world.motions),
        combinations=len(world.combinations),
        frames=FRAMES,
        fps=FPS,
    )


def write_card(preset: Path, scores: list[Score], ablation: list[Score]) -> Path:
    """Writes `README.md` into the preset folder."""
    world = World(preset / "world")
    log = json.loads((preset / LOG_FILE).read_text(encoding="utf-8"))
    files = sorted(path for path in preset.rglob("*") if path.suffix in HASHED)
    attribution = (preset / "ATTRIBUTION.md").read_text(encoding="utf-8").split("\n", 2)[2].strip()
    config = json.loads((preset / "config.json").read_text(encoding="utf-8"))
    takes, makes = config["input_modalities"], [modality for modality in PLURALS if modality in config["decoders"]]
    more = [about_sounds(SoundWorld(world.folder))] if "audio" in {*takes, *makes} else []
    more += [about_clips(ClipWorld(world))] if "video" in {*takes, *makes} else []
    card = CARD.format(
        takes=listed(["text", *(PLURALS[modality] for modality in takes)]),
        makes=listed(["text", *(PLURALS[modality] for modality in makes)]),
        more="".join(more) + ("\n\n" if more else " "),
        unknown="".join(f"{name}, " for modality, name in PLURALS.items() if modality not in {*takes, *makes}),
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
