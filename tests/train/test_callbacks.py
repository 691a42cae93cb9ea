"""What a person sees of a run: sample answers and pictures, the progress bar, the commands."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from nextgpt.__main__ import main
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.train.config import TrainingConfig
from nextgpt.train.stages import read_config, run_stage
from nextgpt.train.trainer import ProgressBar
from tiny_training import checkpoint_tensors, config_for, settings

SAMPLING = {"sample_steps": 2, "sample_count": 3, "max_steps": 4, "report_to": "tensorboard"}


@pytest.fixture
def drawing_model(monkeypatch):
    """Lets the answers of an untrained model hold a picture, in few diffusion steps."""
    from nextgpt.decoders import StableDiffusionDecoder
    from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration

    generate, answer = StableDiffusionDecoder.generate, NextGPTForConditionalGeneration.generate_interleaved
    monkeypatch.setattr(
        StableDiffusionDecoder, "generate", lambda self, *a, **k: generate(self, *a, **k | {"num_inference_steps": 2})
    )
    monkeypatch.setattr(
        NextGPTForConditionalGeneration,
        "generate_interleaved",
        lambda self, *a, **k: answer(self, *a, **k | {"require": {"image": 1}}),
    )


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_sample_answers_and_pictures_are_kept_and_shown_in_tensorboard(bf16, world, tmp_path, drawing_model) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run_stage("instruct", config_for(world, "instruct", tmp_path, **SAMPLING, bf16=bf16))
    for step in (2, 4):
        shown = folder / "samples" / f"step-{step}"
        for number in range(3):
            question = json.loads((shown / f"question-{number}.json").read_text())
            assert "instruct.jsonl:" in question["id"] and question["prompt"].rstrip().endswith("ASSISTANT:")
            message = json.loads((shown / f"answer-{number}.json").read_text())["message"]
            (picture,) = [part for part in message["content"] if part["type"] == "image"]
            assert Image.open(shown / picture["path"]).size == (32, 32)
    board = EventAccumulator(str(next(folder.rglob("events.out.tfevents.*")).parent), size_guidance={"images": 0})
    tags = board.Reload().Tags()
    assert {f"samples/{number}-0" for number in range(3)} <= set(tags["images"])
    assert [event.step for event in board.Images("samples/0-0")] == [2, 4]
    assert {"train/loss/text", "train/loss/conditioning/image", "train/samples_per_second"} <= set(tags["scalars"])


def test_a_run_shorter_than_its_pauses_shows_answers_and_its_loss(world, tmp_path) -> None:
    changes = {"sample_steps": 500, "sample_count": 2, "logging_steps": 500, "max_steps": 3}
    folder = run_stage("align_encoders", config_for(world, "align_encoders", tmp_path, **changes))
    assert len(list(folder.glob("samples/step-3/answer-*.json"))) == 2
    assert json.loads((folder / "run.json").read_text())["finished"]["loss"] > 0


def test_sample_answers_change_nothing_of_the_training(world, tmp_path, drawing_model) -> None:
    plain = run_stage("instruct", config_for(world, "instruct", tmp_path / "1", max_steps=4))
    sampled = run_stage("instruct", config_for(world, "instruct", tmp_path / "2", **SAMPLING))
    found = checkpoint_tensors(sampled)
    for name, tensor in checkpoint_tensors(plain).items():
        assert torch.equal(tensor, found[name]), name


def test_the_first_stage_shows_words_only_and_goes_on_without_memory_for_samples(world, tmp_path, monkeypatch) -> None:
    folder = run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "1", **SAMPLING))
    assert len(list(folder.glob("samples/step-4/answer-*.json"))) == 3
    assert not list(folder.rglob("*.png"))

    def exhausted(*arguments, **options):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(NextGPTForConditionalGeneration, "generate_interleaved", exhausted)
    assert run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "2", **SAMPLING)).is_dir()


def test_the_bar_shows_the_parts_of_the_loss_and_the_speed(world, tmp_path, monkeypatch) -> None:
    shown = []
    on_log = ProgressBar.on_log

    def record(self, *arguments, **options):
        on_log(self, *arguments, **options)
        shown.append(str(self.training_bar))

    monkeypatch.setattr(ProgressBar, "on_log", record)
    run_stage("instruct", config_for(world, "instruct", tmp_path, max_steps=2, disable_tqdm=False))
    for word in ("2/2", "loss=", "loss/text=", "loss/conditioning/image=", "samples/s=", "<"):  # "<": the time left
        assert word in shown[0], shown


def test_the_train_command_takes_a_file_or_a_packaged_name_and_overrides(world, tmp_path, capsys) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(settings(world, "align_decoders", tmp_path / "out")))
    assert main(["train", "decoders", "--config", str(file), "max_steps=1", "seed=5"]) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["seed"] == 5
    assert main(["train", "decoders", "--config", str(file), "max_step=1"]) == 2
    assert "unknown key 'max_step'; did you mean 'max_steps'?" in capsys.readouterr().err
    assert read_config("instruct", "7b").training_arguments().learning_rate == 5e-4
    for stage in ("align_encoders", "align_decoders"):
        arguments = read_config(stage, "7b", ["seed=3"]).training_arguments()
        assert (arguments.learning_rate, arguments.adam_beta1, arguments.adam_beta2) == (4e-4, 0.9, 0.95)
        assert arguments.seed == 3
    assert isinstance(read_config("instruct", "nano"), TrainingConfig)
    arguments = read_config("instruct", "nano", ["save_strategy=no", "learning_rate=1e-3"]).training_arguments()
    assert (arguments.save_strategy, arguments.learning_rate) == ("no", 1e-3), "YAML alone reads false, and a string"
