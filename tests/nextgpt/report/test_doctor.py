"""The doctor finds what would not work, and nothing where all does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nextgpt.__main__ import main
from nextgpt.checkpoint import TRAINED_FILE
from nextgpt.report import doctor
from nextgpt.report.doctor import examine
from nextgpt.train.stages import run_stage
from tiny_decoders import save_tiny_stable_diffusion
from tiny_training import build_world, config_for


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """A trained model beside its frozen parts."""
    world = build_world(tmp_path_factory.mktemp("a world"))
    return run_stage("instruct", config_for(world, "instruct", world / "trained", max_steps=1))


@pytest.fixture
def model(healthy, tmp_path) -> Path:
    """A copy of it, to be made ill."""
    world = shutil.copytree(healthy.parent, tmp_path / "world")
    return world / healthy.name


def failures(model: Path) -> dict[str, str]:
    return {finding.what: finding.detail for finding in examine(str(model)) if finding.works is False}


def change_tensors(file: Path, **tensors: torch.Tensor | None) -> None:
    kept = {name: tensor for name, tensor in (load_file(file) | tensors).items() if tensor is not None}
    save_file(kept, file)


def test_a_healthy_model_passes(healthy, capsys) -> None:
    assert not failures(healthy)
    assert main(["doctor", str(healthy)]) == 0
    printed = capsys.readouterr().out
    assert "77 × 32" in printed and "signal rows" in printed and "FAILS" not in printed


def test_the_environment_alone_is_checked_without_a_model(capsys, monkeypatch) -> None:
    assert main(["doctor"]) == 0
    assert "transformers" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=99", "absent-library>=1", "unneeded; extra == 'test'"])
    findings = {finding.what: finding for finding in examine()}
    assert findings["torch"].works is False and "but >=99 is needed" in findings["torch"].detail
    assert findings["absent-library"].works is False
    assert "unneeded" not in findings
    assert main(["doctor"]) == 1


def test_wrong_tensors_are_named(model) -> None:
    file = model / TRAINED_FILE
    wrong = {"input_projection.bias": torch.zeros(3), "input_projection.weight": None, "stray": torch.ones(1)}
    change_tensors(file, **wrong)
    (model / "lora" / "adapter_model.safetensors").write_bytes(b"cut off")
    found = failures(model)
    assert "1 missing: input_projection.weight" in found["trained tensors"]
    assert "1 left over: stray" in found["trained tensors"]
    assert "input_projection.bias is [3], not [32]" in found["trained tensors"]
    assert "cannot be read" in found["LoRA tensors"]
    assert "copy it again" in found["hash"]


def test_a_changed_number_is_found_by_its_hash(model) -> None:
    change_tensors(model / TRAINED_FILE, **{"input_projection.bias": torch.zeros(32)})
    assert set(failures(model)) == {"hash"}
    (model / "run.json").unlink()
    assert not failures(model)
    assert any(finding.what == "hash" and finding.works is None for finding in examine(str(model)))


def test_a_missing_part_and_a_decoder_of_another_width_are_found(model) -> None:
    parts = model.parent / "parts"
    shutil.rmtree(parts / "encoder")
    assert "is not here" in failures(model)["encoder"]
    shutil.rmtree(parts / "image_decoder")
    config = json.loads((model / "config.json").read_text())
    config["decoders"]["image"]["config"] = str(save_tiny_stable_diffusion(parts / "as it was"))
    config["encoder_config"] = json.loads((model / "processor_config.json").read_text())["encoder_config"]
    (model / "config.json").write_text(json.dumps(config))
    save_tiny_stable_diffusion(parts / "image_decoder", width=64)
    assert "77 × 32, but the decoder" in failures(model).get("image conditioning", "")


def test_parts_that_are_not_whole_are_found(model) -> None:
    parts = model.parent / "parts"
    weights = parts / "language_model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (parts / "encoder" / "model.safetensors").unlink()
    shutil.rmtree(parts / "image_decoder" / "vae")
    found = failures(model)
    assert "model.safetensors is broken" in found["language model"] and "nextgpt download" in found["language model"]
    assert "holds no weights" in found["encoder"]
    assert "lacks its part 'vae'" in found["image"]
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    weights.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    assert "names model-00001-of-00002.safetensors, which is not there" in failures(model)["language model"]


def test_untrained_signal_rows_are_found(model) -> None:
    config = json.loads((model / "config.json").read_text())
    for groups, works in ((["input_projection"], False), (None, None)):
        (model / "config.json").write_text(json.dumps(config | {"trained_groups": groups}))
        assert next(f for f in examine(str(model)) if f.what == "signal rows").works is works
    change_tensors(model / TRAINED_FILE, **{"signal_rows.output": torch.zeros(4, 32)})
    assert "equal rows" in failures(model)["signal rows"]


def test_a_tokenizer_of_another_model_is_found(model) -> None:
    file = model / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"signal_tokens": {"image": 3}}))
    assert "do not belong together" in failures(model)["signal tokens"]


def test_a_configuration_of_another_model_is_found(model) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"signal_tokens": {"image": 3}}))
    found = failures(model)
    assert "the model needs" in found["signal tokens"]
    assert "signal_rows.input is [4, 32], not [3, 32]" in found["trained tensors"]


def test_a_name_that_is_no_model_is_one_line() -> None:
    assert [f.what for f in examine("no/such/model") if f.works is False] == ["model"]
