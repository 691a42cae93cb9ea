"""Learning from pairs on tiny models: words, kinds, and what a picture, a sound and a clip show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextgpt import NextGPTPipeline
from nextgpt.decoders import Audio, Video
from nextgpt.errors import UserInputError
from nextgpt.media import save_media
from nextgpt.train.preferences.learning.prefer import PLAN
from nextgpt.train.preferences.learning.settings import PreferenceConfig
from nextgpt.train.stages import run_stage
from nextgpt.train.start import load_processor, read_model_config
from tiny_models import save_tiny_any_to_any
from tiny_training import checkpoint_tensors, log_of, settings, write_lines

SUFFIXES = {"image": "png", "audio": "wav", "video": "mp4"}
pytestmark = pytest.mark.usefixtures("one_thread")


def tell_media_apart(decoder: Path) -> None:
    """Random autoencoders give all media nearly the same latents, and random denoisers say nothing of the noise in them.

    So latents are made larger, and what is to be predicted holds the medium itself.
    """
    changes = {
        "vae/config.json": {"scaling_factor": 20.0},
        "scheduler/scheduler_config.json": {"prediction_type": "v_prediction"},
    }
    if decoder.name == "video":
        changes["generation_defaults.json"] = {"num_frames": 2, "height": 16, "width": 16}
    for name, values in changes.items():
        file = decoder / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | values))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A checkpoint that makes all three kinds, and two media of each: `image-0.png` …"""
    folder = tmp_path_factory.mktemp("preferences")
    save_tiny_any_to_any(folder, prepare=tell_media_apart)
    random = np.random.default_rng(0)
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (32, 32), colour).save(folder / f"image-{number}.png")
        tone = np.sin(np.arange(3200) * (0.1 + 0.5 * number)).astype(np.float32)
        save_media(Audio(tone, 16000), folder / f"audio-{number}.wav")
        frames = (random.integers(0, 60, (8, 32, 32, 3)) + 180 * number).astype(np.uint8)
        save_media(Video(frames, 8.0), folder / f"video-{number}.mp4")
    return folder


def says(role: str, *parts: str | dict) -> list[dict]:
    return [{"role": role, "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]}]


def medium(kind: str, number: int) -> dict:
    return {"type": kind, "path": f"{kind}-{number}.{SUFFIXES[kind]}", "caption": "something"}


def pair(prompt: list, chosen: list, rejected: list) -> dict:
    return {
        "prompt": says("user", *prompt),
        "chosen": says("assistant", *chosen),
        "rejected": says("assistant", *rejected),
    }


def config(world: Path, output: Path, records: list[dict], **changes) -> PreferenceConfig:
    data = write_lines(world / f"{output.name}.jsonl", records)
    values = settings(world, "prefer", output, data=[data], logging_steps=1, save_steps=5, max_steps=10)
    return PreferenceConfig.from_dict(values | changes)


def moved(world: Path, folder: Path) -> set[str]:
    before, after = checkpoint_tensors(world / "model"), checkpoint_tensors(folder)
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.mark.parametrize("kind", SUFFIXES)
def test_of_equal_words_the_preferred_medium_is_learned(kind, world, tmp_path):
    records = [pair(["make it"], *(["Here: ", medium(kind, number)] for number in (0, 1)))]
    changes = {"media_beta": 200.0, "trains": ["output_projections"], "max_steps": 6}
    folder = run_stage("prefer", config(world, tmp_path / kind, records, **changes), PLAN)
    names = moved(world, folder)
    assert names and all(name.startswith(f"output_projections.{kind}.") for name in names)
    log = log_of(folder)
    margins = [entry[f"margin/media/{kind}"] for entry in log]
    assert margins[0] == pytest.approx(0, abs=1e-4), "the reference is the model that it began from"
    assert log[0][f"loss/media/{kind}"] == pytest.approx(np.log(2), abs=1e-4)
    assert min(margins[-3:]) > 0.1, f"it does not grow: {margins}"
    assert [entry["loss/words"] for entry in log] == pytest.approx([np.log(2)] * 6), "no word differs"


@pytest.mark.parametrize(("objective", "bf16"), [("dpo", False), ("kto", False), ("dpo", True)])
def test_words_and_kinds_are_learned_and_the_result_answers(objective, bf16, world, tmp_path):
    records = [
        pair(["what is it?", medium("image", 0)], ["A cat."], ["A dog, I think."]),
        pair(["play it"], ["Listen: ", medium("audio", 0)], ["See: ", medium("image", 1)]),
    ]
    changes = {"objective": objective, "learning_rate": 1e-2, "max_steps": 12, "beta": 0.5, "bf16": bf16}
    changes |= {"trains": ["adapter"]} if bf16 else {}  # autocast may have cast one of the two models for both
    folder = run_stage("prefer", config(world, tmp_path / objective, records, **changes), PLAN)
    log = log_of(folder)
    assert log[0]["margin/words"] == pytest.approx(0, abs=1e-5)
    assert log[-1]["accuracy/words"] == 1
    assert log[-1]["margin/words"] > 0.5 and log[-1]["loss/words"] < 0.8 * log[0]["loss/words"]
    assert "taught preferences on" in (folder / "README.md").read_text()
    pipe = NextGPTPipeline.from_pretrained(folder)
    assert pipe(says("user", "play it"), max_new_tokens=4, output_modalities=("text",), seed=0).token_ids
    pipe.close()


def test_forced_tokens_do_not_count_in_what_is_learned(world, tmp_path):
    picture, sound = (["Here: ", medium(kind, 0)] for kind in ("image", "audio"))
    made = config(world, tmp_path / "forced", [pair(["show"], picture, sound)], max_steps=1, learning_rate=0.0)
    log = log_of(run_stage("prefer", made, PLAN))
    assert log[0]["loss/words"] == pytest.approx(np.log(2))
    store = PLAN.open_dataset("prefer", made, *_model_and_processor(made))
    chosen, rejected = store[0], store[1]
    counted = [(each["labels"] != -100).sum().item() for each in (chosen, rejected)]
    assert counted[0] == counted[1], "runs of 4 and of 8 tokens count as the one token that was chosen"


def test_the_end_of_an_answer_that_was_cut_off_is_not_learned(world, tmp_path):
    record = pair(["say"], ["yes"], ["no, never"])
    record["chosen"][0]["finished"] = False
    made = config(world, tmp_path / "cut", [record])
    store = PLAN.open_dataset("prefer", made, *_model_and_processor(made))
    end = load_processor(*read_model_config(made)).tokenizer.eos_token_id
    learned = [each["labels"][each["labels"] != -100].tolist() for each in (store[0], store[1])]
    assert end not in learned[0] and len(learned[0]) > 1 and learned[1][-1] == end


def _model_and_processor(made: PreferenceConfig) -> tuple:
    location, model_config = read_model_config(made)
    return model_config, load_processor(location, model_config)


def test_a_stopped_run_goes_on_to_where_a_straight_one_ends(world, tmp_path):
    answers = [["Here: ", medium("image", number)] for number in (0, 1)]
    records = [pair([f"draw {number}"], *answers[:: 1 - 2 * (number % 2)]) for number in range(3)]
    records.append(pair(["say"], ["yes"], ["no, never"]))
    data = {"per_device_train_batch_size": 2, "max_steps": 6, "save_steps": 2}
    straight = run_stage("prefer", config(world, tmp_path / "straight", records, **data), PLAN)
    run_stage("prefer", config(world, tmp_path / "halves", records, **data | {"max_steps": 2}), PLAN)
    halves = run_stage("prefer", config(world, tmp_path / "halves", records, **data), PLAN)
    one, other = checkpoint_tensors(straight), checkpoint_tensors(halves)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    with pytest.raises(UserInputError, match=r"checkpoint-6 belongs to another run: changed are beta \(was 0.1, is 0.2\)"):
        run_stage("prefer", config(world, tmp_path / "halves", records, **data, beta=0.2), PLAN)


def test_settings_of_a_file_that_an_override_leaves_without_effect_go_with_it(tmp_path):
    values = {"model": "nano", "data": "pairs.jsonl", "output_dir": "out", "objective": "kto", "desirable_weight": 2}
    (tmp_path / "kto.yaml").write_text(json.dumps(values | {"media_beta": 5}))
    made = PreferenceConfig.from_file(tmp_path / "kto.yaml", ["objective=dpo", "denoising=false"])
    assert (made.desirable_weight, made.media_beta) == (1.0, 2000.0)
    kept = PreferenceConfig.from_file(tmp_path / "kto.yaml")
    assert (kept.desirable_weight, kept.media_beta) == (2.0, 5.0)


def test_what_cannot_be_learned_from_is_refused_by_name(world, tmp_path):
    same = pair(["draw"], ["Here: ", medium("image", 0)], ["Here: ", medium("image", 1)])
    cases = [
        ([pair(["say"], ["yes"], ["yes"])], {}, r"pairs\d.jsonl:1: chosen and rejected are equal"),
        ([pair(["say"], ["yes"], [{"type": "image", "path": "gone.png"}])], {}, "gone.png: no such file"),
        ([same], {"denoising": False}, ":1: the words of both answers are equal, and denoising=false leaves"),
        ([same], {"objective": "ppo"}, "objective is 'ppo', expected one of dpo, kto"),
        ([same], {"beta": "much"}, "beta is 'much', expected a number of 0 or more"),
        ([same], {"objective": "kto", "per_device_train_batch_size": 1}, "per_device_train_batch_size is 1, expected 2 or"),
        ([same], {"loss_weights": {"text": 2}}, "loss_weights is .*expected none"),
        ([same], {"heldout": str(world / "heldout.jsonl")}, "pairs7.jsonl:1: the prompt is held out .*heldout.jsonl:1"),
        ([same], {"output_dir": str(world / "heldout.jsonl")}, "output_dir is .*heldout.jsonl, which is a file"),
        ([same], {"sample_count": 8}, "sample_count is 8, expected 4, for this run writes no sample answers: leave it out"),
        ([same], {"desirable_weight": 2}, "desirable_weight is 2.0, expected 1.0, for only objective=kto weighs answers"),
        ([same], {"media_beta": 5, "denoising": False}, "media_beta is 5.0, .*denoising=false leaves media out"),
        ([same], {"trains": ["output_projections"], "denoising": False}, "trains is .*without output_projections"),
        ([same], {"learning_rates": {"value_heads": 1}}, "learning_rates names value_heads: prefer trains input_projection"),
    ]
    write_lines(world / "heldout.jsonl", [same])
    for number, (records, changes, message) in enumerate(cases):
        with pytest.raises(UserInputError, match=message):
            run_stage("prefer", config(world, tmp_path / f"pairs{number}", records, **changes), PLAN)
