"""Several processes train as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_training import REPOSITORY, log_of, settings

pytestmark = pytest.mark.slow

STEPS = {"max_steps": 6, "logging_steps": 1, "save_steps": 6, "per_device_train_batch_size": 2, "weight_decay": 0.1}
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]  # accelerate wants MPI for it


def train(command: list[str], world: Path, output: Path, **changes) -> list[dict]:
    file = output.with_suffix(".yaml")
    file.write_text(json.dumps(settings(world, "instruct", output, **STEPS | changes)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    words = [sys.executable, *command, "-m", "nextgpt.train.instruct", "--config", str(file)]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return log_of(output)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "with checkpointed activations"])
def test_two_processes_have_the_loss_curve_of_one_with_twice_the_accumulation(checkpointing, world, tmp_path) -> None:
    options = {"activation_checkpointing": checkpointing}
    lines = (world / "instruct.jsonl").read_text().splitlines(keepends=True)
    options["data"] = str(world / "five.jsonl")  # an epoch ends with a batch of one, and none for the other process
    Path(options["data"]).write_text("".join(lines[:5]))
    alone = train([], world, tmp_path / "one", gradient_accumulation_steps=2, **options)
    both = train(LAUNCH, world, tmp_path / "two", **options)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["starts"][0]["processes"] == 2
    assert len(alone) == len(both) == 6
    for one, two in zip(alone, both, strict=True):
        expected, found = ({n: v for n, v in each.items() if n.startswith(("loss", "grad_norm"))} for each in (one, two))
        assert found == pytest.approx(expected, rel=1e-5), one["step"]
    assert sum("loss/conditioning/image" in entry for entry in alone) > 3


def test_accelerate_starts_a_stage(world, tmp_path) -> None:
    alone = train([], world, tmp_path / "plain")
    launched = train(["-m", "accelerate.commands.launch", "--cpu", "--num_processes=1"], world, tmp_path / "launched")
    assert [entry["loss"] for entry in launched] == [entry["loss"] for entry in alone]
