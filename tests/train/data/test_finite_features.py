"""Numbers that are none reach neither the feature cache nor the loss; the item that has them is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from nextgpt.errors import UserInputError
from nextgpt.train.data.check import check_files
from nextgpt.train.stages import run_stage
from tiny_training import config_for, naming, write_lines


def hearing(path: str) -> dict:
    question = [{"type": "audio", "path": path}, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "A tone."}]}


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e29])
def test_a_sound_with_a_number_that_is_none_is_found_and_left_out(world, tmp_path, wrong) -> None:
    samples = (np.sin(np.arange(16_000) / 20) / 2).astype(np.float32)
    soundfile.write(world / "good.wav", samples, 16_000, subtype="FLOAT")
    samples[500] = wrong
    soundfile.write(world / "bad.wav", samples, 16_000, subtype="FLOAT")
    data = write_lines(world / "sounds.jsonl", [hearing("good.wav"), hearing("bad.wav")])
    problems = check_files([data], str(world / "model"), workers=0).problems
    assert [(problem.kind, problem.where[-1]) for problem in problems] == [("broken", "2")]
    assert "bad.wav: holds" in problems[0].reason

    options = {"data": data, "max_steps": 2, "logging_steps": 1, "features": str(tmp_path / "features")}
    with pytest.raises(UserInputError, match="bad.wav: holds"):
        run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "1", **options))
    folder = run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "2", **options, on_bad_item="skip"))
    assert "bad.wav" in json.loads((folder / "skipped.jsonl").read_text())["reason"]
    trained = load_file(folder / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in trained.values())
    assert all(torch.isfinite(features).all() for features in cached(tmp_path / "features"))


def cached(folder: Path) -> list[torch.Tensor]:
    return [load_file(file)["features"] for file in folder.glob("*/*.safetensors")]


def test_a_feature_that_is_none_is_not_kept(world, tmp_path) -> None:
    """A frozen part may overflow on what was finite; here its weights are none."""
    file = world / "parts" / "encoder" / "model.safetensors"
    original = file.read_bytes()
    weights = load_file(file)
    name = next(name for name, tensor in weights.items() if name.startswith("modality_heads.vision") and tensor.ndim == 2)
    save_file(weights | {name: torch.full_like(weights[name], torch.nan)}, file, metadata={"format": "pt"})
    options = {"data": write_lines(world / "red.jsonl", [naming("red")]), "features": str(tmp_path / "features")}
    try:
        with pytest.raises(UserInputError, match=r"red.png: its feature holds NaN or infinite numbers"):
            run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "1", **options))
    finally:
        file.write_bytes(original)
    assert not cached(tmp_path / "features")


def test_a_cached_feature_that_is_none_stops_training_by_its_name(world, tmp_path) -> None:
    options = {"data": write_lines(world / "red.jsonl", [naming("red")]), "max_steps": 1}
    config = config_for(world, "align_encoders", tmp_path / "1", **options, features=str(tmp_path / "features"))
    run_stage("align_encoders", config)
    spoiled = shutil.copytree(tmp_path / "features", tmp_path / "spoiled")
    [shard] = spoiled.glob("image-*/*.safetensors")
    held = load_file(shard)
    save_file(held | {"features": torch.full_like(held["features"], torch.inf)}, shard)
    with pytest.raises(UserInputError, match=r"red.png: its feature in .* delete that folder"):
        run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "2", **options, features=str(spoiled)))
