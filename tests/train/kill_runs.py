"""Trains in processes that die by SIGKILL again and again, until one of them ends: the other half of test_resume.py.

Usage: python kill_runs.py CONFIG STAGE SEED KILLS

A parent imports everything and forks one child per start (the parent computes nothing, so that threads survive the
fork). A child is killed at a random function call of its training (which, unlike a clock, gets equally far on slow and on
fast machines), or at a random file operation inside a checkpoint. Prints one line of JSON: what each start died of.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys

import torch

from nextgpt.train.checkpoints import UNFINISHED
from nextgpt.train.config import TrainingConfig
from nextgpt.train.stages import run_stage
from nextgpt.train.trainer import StageTrainer

CALLS = 60_000  # about two steps and a checkpoint
OPERATIONS = 40  # on the files of a checkpoint


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kind: str, draw: random.Random) -> None:
    """Makes this process die in its training."""
    left = draw.randrange(1, CALLS if kind == "call" else OPERATIONS)

    def count_down() -> None:
        nonlocal left
        left -= 1
        if not left:
            die()

    def on_call(frame: object, event: str, argument: object) -> None:
        if event == "call":
            count_down()

    def on_file(event: str, arguments: tuple) -> None:
        if event in ("open", "os.rename", "os.remove") and UNFINISHED in str(arguments[0]):
            count_down()

    if kind == "file":
        sys.addaudithook(on_file)
        return
    train = StageTrainer.train

    def counted(*arguments: object, **options: object) -> object:
        sys.setprofile(on_call)
        return train(*arguments, **options)

    StageTrainer.train = counted


def main() -> None:
    file, stage, seed, kills = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    draw = random.Random(seed)
    deaths: list[str] = []
    while True:
        kind = ("file" if len(deaths) % 2 else "call") if len(deaths) < kills else "none"
        child_draw = random.Random(draw.random())
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            if kind != "none":
                arm(kind, child_draw)
            run_stage(stage, TrainingConfig.from_file(file))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            deaths.append(kind)
        elif status == 0:
            break
        else:
            sys.exit(f"a start ended with status {status}")
    print(json.dumps(deaths))


if __name__ == "__main__":
    main()
