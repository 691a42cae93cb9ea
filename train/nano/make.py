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
    """A module of `nextgpt.train.nano`, the file under the root that says it is done, and its minutes of training."""

    done: str
    minutes: float | None = None


STEPS = {
    "world": Step("world/world.json"),
    "judge": Step("judge/training_log.json", 3),
    "encoder": Step("encoder/training_log.json", 6),
    "autoencoder": Step("autoencoder/training_log.json", 15),
    "image_decoder": Step("image_decoder/training_log.json", 30),
}


def command(step: str, root: Path, device: str, minutes: float | None) -> list[str]:
    """The command line of a step."""
    words = [sys.executable, "-m", f"nextgpt.train.nano.{step}", "--out", str(root / step)]
    if STEPS[step].minutes is not None:
        words += ["--world", str(root / "world"), "--device", device, "--minutes", str(minutes or STEPS[step].minutes)]
    if step == "image_decoder":
        words += ["--autoencoder", str(root / "autoencoder")]
    return words


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
