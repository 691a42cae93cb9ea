"""A checkpoint knows its frozen parts: the same weights anywhere are taken, others are refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nextgpt import NextGPTForConditionalGeneration, NextGPTPipeline, __version__
from nextgpt.errors import ModelLoadError
from nextgpt.hub.fingerprints import fingerprint
from nextgpt.report.doctor import examine
from tiny_models import save_tiny_model


@pytest.fixture
def saved(tmp_path):
    """A checkpoint beside its parts, which a test may damage."""
    return save_tiny_model(tmp_path)


def change(folder) -> None:
    """Other weights of the same shape."""
    file = next(folder.rglob("*.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def test_a_checkpoint_names_a_fingerprint_of_each_part(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["nextgpt_version"] == __version__
    for spec in (config["language_model"], config["encoder"], *config["decoders"].values()):
        assert len(spec["fingerprint"]) == 16
    loaded = NextGPTForConditionalGeneration.from_pretrained(saved)
    assert loaded.config.encoder["fingerprint"] == config["encoder"]["fingerprint"]


@pytest.mark.parametrize("part", ["encoder", "language_model", "image"])
def test_other_weights_of_the_same_shape_are_refused_by_name(part, saved):
    model = NextGPTForConditionalGeneration.from_pretrained(saved)
    change(model.config.part(part).local_path(model.config.base_folder))
    with pytest.raises(ModelLoadError, match=f"the {part.replace('_', ' ')} at .* is not the one that this checkpoint was"):
        NextGPTForConditionalGeneration.from_pretrained(saved)
    findings = {finding.what: finding for finding in examine(str(saved))}
    assert findings[part.replace("_", " ")].works is False and "trained with" in findings[part.replace("_", " ")].detail


def test_a_part_that_moved_is_the_same_part(saved):
    model = NextGPTForConditionalGeneration.from_pretrained(saved)
    folder = model.config.part("encoder").local_path(model.config.base_folder)
    moved = shutil.copytree(folder, saved.parent / "elsewhere")
    assert fingerprint(moved) == fingerprint(folder)
    shutil.rmtree(folder)
    assert NextGPTPipeline.from_pretrained(saved, parts={"encoder": str(moved)}).model.config.encoder["source"] == str(moved)


def test_whoever_names_another_part_gets_it(saved):
    model = NextGPTForConditionalGeneration.from_pretrained(saved)
    other = shutil.copytree(model.config.part("encoder").local_path(model.config.base_folder), saved.parent / "other")
    change(other)
    pipe = NextGPTPipeline.from_pretrained(saved, parts={"encoder": str(other)})
    weights = (dict(m.encoder.named_parameters()) for m in (model, pipe.model))
    assert any(not torch.equal(one, two) for one, two in zip(*(w.values() for w in weights), strict=True))


def test_every_byte_of_a_small_file_counts(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(1000))
    before = fingerprint(tmp_path)
    file.write_bytes(bytes(999) + b"\1")
    assert fingerprint(tmp_path) != before


def test_weights_that_nothing_loads_make_no_difference(saved):
    model = NextGPTForConditionalGeneration.from_pretrained(saved)
    folder = model.config.part("image").local_path(model.config.base_folder)
    before = fingerprint(folder)
    file = next(folder.rglob("*.safetensors"))
    for name in ("safety_checker/model.safetensors", "vae/diffusion.fp16.safetensors", "whole-model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(file, folder / name)
    assert fingerprint(folder) == before != fingerprint(folder, everything=True)
    NextGPTForConditionalGeneration.from_pretrained(saved)


def test_a_fingerprint_of_everything_is_still_taken(saved):
    model = NextGPTForConditionalGeneration.from_pretrained(saved)
    folder = model.config.part("image").local_path(model.config.base_folder)
    (folder / "safety_checker").mkdir()
    shutil.copy(next(folder.rglob("*.safetensors")), folder / "safety_checker" / "model.safetensors")
    config = json.loads((saved / "config.json").read_text())
    config["decoders"]["image"]["fingerprint"] = fingerprint(folder, everything=True)
    (saved / "config.json").write_text(json.dumps(config))
    NextGPTForConditionalGeneration.from_pretrained(saved)
    change(folder / "vae")
    with pytest.raises(ModelLoadError, match="is not the one that this checkpoint was"):
        NextGPTForConditionalGeneration.from_pretrained(saved)
