"""Nothing lost: killed runs end where straight ones do, bit for bit, and their metadata say so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nextgpt.encoders import ImageBind
from nextgpt.errors import UserInputError
from nextgpt.hardware import is_out_of_memory
from nextgpt.report.info import describe_run
from nextgpt.train.checkpoints import checkpoints, publish, set_aside
from nextgpt.train.stages import run_stage
from nextgpt.train.trainer import StageTrainer, TrainingStopped
from tiny_training import REPOSITORY, checkpoint_tensors, drawing, naming, settings, write_lines
from tiny_training import config_for as config

STEPS = {"max_steps": 20, "save_steps": 2, "save_total_limit": 2, "lr_scheduler_type": "linear"}
KILLS = 12
# The killed runs have one thread, and another number of threads adds up in another order.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def assert_equal_checkpoints(expected: Path, found: Path) -> None:
    one, other = checkpoint_tensors(expected), checkpoint_tensors(found)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_that_is_killed_again_and_again_ends_where_a_straight_one_does(world, tmp_path) -> None:
    # Three conversations a step of eight: epochs end inside the twenty steps, and resumes fall in their middle.
    options = STEPS | {"per_device_train_batch_size": 3, "train_sampling_strategy": "group_by_length"}
    straight = run_stage("instruct", config(world, "instruct", tmp_path / "straight", **options))
    file = tmp_path / "killed.json"
    file.write_text(json.dumps(settings(world, "instruct", tmp_path / "killed", **options)))
    command = [sys.executable, str(Path(__file__).with_name("kill_runs.py")), str(file), "instruct", "7", str(KILLS)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    deaths = json.loads(done.stdout.splitlines()[-1])
    assert deaths.count("call") == deaths.count("file") == KILLS // 2
    assert_equal_checkpoints(straight, tmp_path / "killed")
    assert [folder.name for folder in checkpoints(tmp_path / "killed")] == ["checkpoint-18", "checkpoint-20"]
    starts = json.loads((tmp_path / "killed" / "run.json").read_text())["starts"]
    assert any(start["resumed_from"] for start in starts), "every start began from nothing: nothing was resumed"


def test_a_resumed_run_ends_where_a_straight_one_does(world, tmp_path) -> None:
    straight = run_stage("instruct", config(world, "instruct", tmp_path / "straight"))
    run_stage("instruct", config(world, "instruct", tmp_path / "halves", max_steps=6))
    (tmp_path / "halves" / "checkpoint-9").mkdir()  # a folder that is no checkpoint is passed over
    resumed = run_stage("instruct", config(world, "instruct", tmp_path / "halves", max_steps=12))
    assert json.loads((resumed / "trainer_state.json").read_text())["global_step"] == 12
    assert_equal_checkpoints(straight, resumed)
    again = run_stage("instruct", config(world, "instruct", tmp_path / "halves", max_steps=12))
    assert_equal_checkpoints(straight, again)


def test_a_checkpoint_of_other_data_or_another_model_is_refused(world, tmp_path) -> None:
    data = write_lines(world / "changing.jsonl", [naming("red"), drawing("red")])
    options = {"data": data, "max_steps": 2, "save_steps": 1}
    run_stage("instruct", config(world, "instruct", tmp_path / "run", **options))
    write_lines(world / "changing.jsonl", [naming("blue"), drawing("red")])
    with pytest.raises(UserInputError, match=r"checkpoint-2 belongs to another run: changed are the data .*resume=false"):
        run_stage("instruct", config(world, "instruct", tmp_path / "run", **options))
    other = run_stage("align_encoders", config(world, "align_encoders", tmp_path / "other", max_steps=1))
    write_lines(world / "changing.jsonl", [naming("red"), drawing("red")])
    with pytest.raises(UserInputError, match="the starting model"):
        run_stage("instruct", config(world, "instruct", tmp_path / "run", **options, model=str(other)))

    with pytest.raises(UserInputError, match=r"changed are learning_rate \(was 0.01, is 0.02\)"):
        run_stage("instruct", config(world, "instruct", tmp_path / "run", **options, learning_rate=2e-2))
    for chosen in (
        {"trains": ["adapter"]},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.001}},
    ):
        run_stage("instruct", config(world, "instruct", tmp_path / "chosen", **options, **chosen, resume=False))
        left = {name: value for name, value in chosen.items() if name == "lr_scheduler_type"}
        with pytest.raises(UserInputError, match=f"changed are {list(chosen)[-1]} "):
            run_stage("instruct", config(world, "instruct", tmp_path / "chosen", **options, **left))
    picture = world / "pictures" / "red.png"
    true = picture.read_bytes()
    picture.write_bytes((world / "pictures" / "blue.png").read_bytes())
    with pytest.raises(UserInputError, match="changed are the media "):
        run_stage("instruct", config(world, "instruct", tmp_path / "run", **options))
    picture.write_bytes(true)
    run_stage("instruct", config(world, "instruct", tmp_path / "run", **options | {"seed": 1}, resume=False))
    assert len(checkpoints(tmp_path / "run")) == len(checkpoints(tmp_path / "run" / "earlier-1")) == 2


def test_going_on_from_an_earlier_checkpoint_puts_the_later_ones_aside(world, tmp_path) -> None:
    options = {"max_steps": 4, "save_steps": 1, "save_total_limit": 2}
    folder = run_stage("align_encoders", config(world, "align_encoders", tmp_path, **options))
    earlier = str(checkpoints(folder)[0])
    run_stage("align_encoders", config(world, "align_encoders", tmp_path, **options | {"max_steps": 5}, resume=earlier))
    assert [each.name for each in checkpoints(folder)] == ["checkpoint-4", "checkpoint-5"]
    assert [each.name for each in checkpoints(folder / "earlier-1")] == ["checkpoint-4"]


def test_a_checkpoint_appears_whole_in_place_of_an_older_one(tmp_path) -> None:
    for content in ("old", "new"):
        folder = tmp_path / ".unfinished" / "checkpoint-3"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(content)
        publish(folder, tmp_path / "checkpoint-3")
        assert (tmp_path / "checkpoint-3" / "trainer_state.json").read_text() == content
    set_aside(tmp_path)
    assert not checkpoints(tmp_path)


def test_a_run_keeps_its_metadata(world, tmp_path) -> None:
    from nextgpt.__main__ import main

    folder = run_stage("instruct", config(world, "instruct", tmp_path / "run", max_steps=2, seed=3))
    record = json.loads((folder / "run.json").read_text())
    assert record["configuration"]["arguments"]["learning_rate"] == 1e-2
    assert record["data"]["conversations"] == 8 and len(record["data"]["fingerprint"]) == 64
    assert torch.__version__.startswith(record["starts"][0]["versions"]["torch"])
    assert record["starts"][0]["git_revision"] is None or len(record["starts"][0]["git_revision"]) >= 40
    rows = dict(describe_run(folder))
    assert rows["stage"] == "instruct" and rows["seed"] == "3" and rows["finished"].endswith("step 2")
    assert main(["info", str(folder)]) == 0
    card = (folder / "README.md").read_text()
    assert "| stage | instruct |" in card and record["data"]["fingerprint"][:16] in card
    (folder / "run.json").write_text("{}")
    assert main(["info", str(folder)]) == 2


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_stops_with_the_ids_of_its_batch(value, world, tmp_path, monkeypatch) -> None:
    from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration

    forward = NextGPTForConditionalGeneration.forward

    def broken(self, *arguments, **options):
        outputs = forward(self, *arguments, **options)
        outputs.losses["text"] = outputs.losses["text"] * float(value)
        return outputs

    monkeypatch.setattr(NextGPTForConditionalGeneration, "forward", broken)
    lines = r"align_encoders.jsonl:\d.*" * 4
    with pytest.raises(TrainingStopped, match=f"the loss of step 1 is {value}, in the batch of .*{lines}learning_rate"):
        run_stage("align_encoders", config(world, "align_encoders", tmp_path))


def test_a_gradient_that_is_no_number_stops_before_it_spoils_the_weights(world, tmp_path, monkeypatch) -> None:
    from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration

    forward = NextGPTForConditionalGeneration.forward

    def broken(self, *arguments, **options):
        outputs = forward(self, *arguments, **options)
        loss = outputs.losses["text"]
        outputs.losses["text"] = loss + 0 * (loss - loss.detach()).sqrt()  # 0, with a gradient of 0 times infinity
        return outputs

    monkeypatch.setattr(NextGPTForConditionalGeneration, "forward", broken)
    with pytest.raises(TrainingStopped, match=r"the gradients' norm of step 1 is nan, in the batch of .*jsonl:\d"):
        run_stage("align_encoders", config(world, "align_encoders", tmp_path))


def test_out_of_memory_elsewhere_says_where(world, tmp_path, monkeypatch) -> None:
    def exhausted(*arguments, **options):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(torch.optim.AdamW, "step", exhausted)
    with pytest.raises(TrainingStopped, match="after step 0, outside of a batch, where the optimizer keeps its state"):
        run_stage("align_encoders", config(world, "align_encoders", tmp_path / "run"))
    monkeypatch.setattr(ImageBind, "encode", exhausted)
    with pytest.raises(UserInputError, match="while encoding images, 4 at once: lower feature_batch_size"):
        run_stage("align_encoders", config(world, "align_encoders", tmp_path / "run", features=str(tmp_path / "new")))


def test_out_of_memory_names_the_settings_to_lower(world, tmp_path, monkeypatch) -> None:
    def exhausted(*arguments, **options):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(StageTrainer, "compute_loss", exhausted)
    with pytest.raises(TrainingStopped, match=r"4 conversations of up to \d+ tokens: lower per_device_train_batch_size"):
        run_stage("align_encoders", config(world, "align_encoders", tmp_path))


def test_a_real_failed_allocation_is_known_as_such() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB, max allowed: 18.13 GB)"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
