"""Makes the nano model's parts in order: each step is a command of its own, run only when its result is missing.

`python -m nextgpt.train.nano.make` runs what is left; `--steps encoder,judge --minutes 6,3` runs these, so long. A
step that was broken off goes on from its checkpoint. It knows the order and the files, and nothing of what they hold.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)


class Step(NamedTuple):
    """A command: the words after `python -m nextgpt.train.`, the file under the root that says it is done, its minutes.

    `{root}` stands for the root folder. Steps with minutes take `--device` and `--minutes` too.
    """

    words: str
    done: str
    minutes: float | None = None


STEPS = {
    "world": Step("nano.world.pictures --out {root}/world", "world/world.json"),
    "sounds": Step("nano.world.sounds --out {root}/world", "world/studies.npy"),
    "judge": Step("nano.evaluation.judge --world {root}/world --out {root}/judge", "judge/training_log.json", 3),
    "sound_judge": Step(
        "nano.evaluation.sound_judge --world {root}/world --out {root}/sound_judge", "sound_judge/training_log.json", 14
    ),
    "clip_judge": Step(
        "nano.evaluation.clip_judge --world {root}/world --out {root}/clip_judge", "clip_judge/training_log.json", 5
    ),
    "encoder": Step("nano.models.encoder --world {root}/world --out {root}/encoder", "encoder/training_log.json", 110),
    "audio_encoder": Step(
        "nano.models.audio_encoder --world {root}/world --out {root}/audio_encoder", "audio_encoder/training_log.json", 44
    ),
    "autoencoder": Step(
        "nano.models.autoencoder --world {root}/world --out {root}/autoencoder", "autoencoder/training_log.json", 30
    ),
    "text_encoder": Step(
        "nano.models.text_encoder --world {root}/world --out {root}/text_encoder", "text_encoder/training_log.json", 3
    ),
    "image_decoder": Step(
        "nano.models.image_decoder --world {root}/world --out {root}/image_decoder --autoencoder {root}/autoencoder"
        " --text-encoder {root}/text_encoder",
        "image_decoder/training_log.json",
        70,
    ),
    "clip_text_encoder": Step(
        "nano.models.text_encoder --clips --world {root}/world --out {root}/clip_text_encoder",
        "clip_text_encoder/training_log.json",
        2,
    ),
    "clip_decoder": Step(
        "nano.models.clip_decoder --world {root}/world --out {root}/clip_decoder --autoencoder {root}/autoencoder"
        " --text-encoder {root}/clip_text_encoder",
        "clip_decoder/training_log.json",
        60,
    ),
    "refined_autoencoder": Step(
        "nano.models.autoencoder --refine --world {root}/world --out {root}/autoencoder --encoder {root}/encoder",
        "autoencoder_refined.work/sheet.png",
        41,
    ),
    "sound_autoencoder": Step(
        "nano.models.sound_autoencoder --world {root}/world --out {root}/sound_autoencoder",
        "sound_autoencoder/training_log.json",
        30,
    ),
    "sound_text_encoder": Step(
        "nano.models.sound_text_encoder --world {root}/world --out {root}/sound_text_encoder",
        "sound_text_encoder/training_log.json",
        3,
    ),
    "sound_decoder": Step(
        "nano.models.sound_decoder --world {root}/world --out {root}/sound_decoder --autoencoder {root}/sound_autoencoder"
        " --text-encoder {root}/sound_text_encoder",
        "sound_decoder/training_log.json",
        130,
    ),
    "dialogues": Step("nano.dialogues.composer --world {root}/world --out {root}/data --files", "data/instruct_dev.jsonl"),
    "language_model": Step(
        "nano.models.language_model --world {root}/world --data {root}/data --out {root}/language_model",
        "language_model/training_log.json",
        60,
    ),
    "frozen": Step("nano.assemble frozen --root {root}", "model/config.json"),
    "align_encoders": Step("align_encoders --config train/configs/nano/align_encoders.yaml", "align_encoders/config.json"),
    "align_decoders": Step("align_decoders --config train/configs/nano/align_decoders.yaml", "align_decoders/config.json"),
    "instruct": Step("instruct --config train/configs/nano/instruct.yaml", "instruct/config.json"),
    "trained": Step("nano.assemble trained --root {root}", "trained"),
}


def command(step: str, root: Path, device: str, minutes: float | None) -> list[str]:
    """The command line of a step."""
    module, *words = STEPS[step].words.format(root=root).split()
    if STEPS[step].minutes is not None:
        words += ["--device", device, "--minutes", str(minutes or STEPS[step].minutes)]
    return [sys.executable, "-m", f"nextgpt.train.{module}", *words]


def main() -> None:
    """Runs the steps that are asked for and not yet done."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("runs/nano"))
    parser.add_argument("--steps", default=",".join(STEPS), help="separated by commas (default: %(default)s)")
    parser.add_argument("--minutes", help="of training for each of these steps, separated by commas")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--again", action="store_true", help="run finished steps too")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    steps = args.steps.split(",")
    if unknown := set(steps) - set(STEPS):
        parser.error(f"--steps names {', '.join(sorted(unknown))}; it knows {', '.join(STEPS)}")
    minutes = [float(m) for m in args.minutes.split(",")] if args.minutes else [None] * len(steps)
    if len(minutes) != len(steps):
        parser.error(f"--minutes has {len(minutes)} numbers for {len(steps)} steps")

    for step, limit in zip(steps, minutes, strict=True):
        if (args.root / STEPS[step].done).exists() and not args.again:
            logger.info("%s is done", step)
            continue
        logger.info("%s", step)
        if code := subprocess.run(command(step, args.root, args.device, limit)).returncode:
            sys.exit(f"The step {step} failed with exit code {code}; started again, it goes on from its checkpoint.")


if __name__ == "__main__":
    main()
