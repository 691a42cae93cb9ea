"""A decoder of several tensors, brought along as a plug-in: it is trained for, saved, loaded and answered with."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from nextgpt import NextGPTPipeline
from nextgpt.decoders import load_decoder
from nextgpt.errors import UserInputError
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.report.doctor import Finding, examine
from nextgpt.train.data.feature_cache import FeatureCache
from nextgpt.train.stages import run_stage
from tiny_training import build_world, checkpoint_tensors, config_for, log_of
from toys.toy_decoder import ROWS, ToyDecoder, save_toy_decoder

ASK = [{"role": "user", "content": "draw red"}]


@pytest.fixture(scope="module")
def toy_world(tmp_path_factory):
    """A world whose model draws with the toy."""
    world = build_world(tmp_path_factory.mktemp("toy"))
    shutil.rmtree(world / "parts" / "image_decoder")
    save_toy_decoder(world / "parts" / "image_decoder")
    file = world / "model" / "config.json"
    file.write_text(file.read_text().replace('"stable-diffusion"', '"toy"'))
    return world


@pytest.fixture(scope="module")
def trained(toy_world, tmp_path_factory):
    """Where stage 2, with the denoising loss, left a model."""
    output = tmp_path_factory.mktemp("run")
    options = {"max_steps": 30, "denoising": True, "learning_rate": 3e-2, "save_steps": 30}
    return run_stage("align_decoders", config_for(toy_world, "align_decoders", output, **options))


def test_every_tensor_is_learned_and_logged(trained) -> None:
    first, *_, last = log_of(trained)
    for name in ("shade", "tint"):
        assert last[f"loss/conditioning/image/{name}"] < first[f"loss/conditioning/image/{name}"]
    both = last["loss/conditioning/image/shade"] + last["loss/conditioning/image/tint"]
    assert last["loss/conditioning/image"] == pytest.approx(both)
    assert last["loss/denoising/image"] > 0
    assert not any("mask" in name for name in last), "no one learns a constant"


def test_one_transformer_has_queries_and_a_head_for_each_tensor(trained) -> None:
    names = {name.removeprefix("output_projections.image.") for name in checkpoint_tensors(trained)}
    assert {"fc.weight", "query_embs", "model.weight", "heads.tint.query_embs", "heads.tint.model.weight"} <= names
    assert not any("mask" in name for name in names)


def test_the_saved_model_answers_with_the_decoder(trained) -> None:
    pipeline = NextGPTPipeline.from_pretrained(trained)
    [picture] = pipeline(ASK, require={"image": 1}, image={"height": 16}).images
    assert picture.size == (8, 16)
    with pytest.raises(UserInputError, match="height must be a multiple of 8, from 8 to 64, got 72"):
        pipeline(ASK, image={"height": 72})


def test_its_output_changes_with_each_tensor_and_the_constant_is_filled_in(toy_world) -> None:
    decoder = load_decoder("toy", str(toy_world / "parts" / "image_decoder"))
    given = {"shade": torch.zeros(1, ROWS, 4), "tint": torch.zeros(1, 3)}

    def colour(**changes):
        [image] = decoder.generate(given | changes, seeds=[0])
        return image.getpixel((0, 0))

    assert colour() == (127, 127, 127)
    assert colour(shade=given["shade"] + 1) != colour() and colour(tint=given["tint"] + 1) != colour()
    assert colour(shade=given["shade"] + 1, mask=torch.zeros(1, ROWS)) == colour()
    with pytest.raises(ValueError, match=r"'mask' of shape \[N, 3\], got \[1, 4\]"):
        colour(mask=torch.ones(1, 4))


@pytest.mark.parametrize("weights", [{"conditioning/image": 3.0}, {"conditioning/image/tint": 5.0, "conditioning": 2.0}])
def test_a_weight_counts_for_one_tensor_or_for_all_of_a_modality(toy_world, weights, tmp_path) -> None:
    options = {"max_steps": 1, "logging_steps": 1, "loss_weights": weights | {"text": 0.0}}
    [log] = log_of(run_stage("align_decoders", config_for(toy_world, "align_decoders", tmp_path, **options)))
    shade, tint = (log[f"loss/conditioning/image/{name}"] for name in ("shade", "tint"))
    expected = 3 * (shade + tint) if "conditioning/image" in weights else 2 * shade + 5 * tint
    assert log["loss"] == pytest.approx(expected, rel=1e-3)


def test_a_weight_for_a_tensor_that_the_decoder_lacks_is_refused(toy_world, tmp_path) -> None:
    options = {"loss_weights": {"conditioning/image/hue": 5.0}}
    with pytest.raises(UserInputError, match="conditioning/image/hue: .* image decoder has the tensors shade, tint"):
        run_stage("align_decoders", config_for(toy_world, "align_decoders", tmp_path, **options))


@pytest.fixture
def moved(toy_world, trained, tmp_path):
    """A copy of the trained model and of its parts, to be changed."""
    folder = shutil.copytree(trained, tmp_path / "model")
    shutil.copytree(toy_world / "parts", tmp_path / "parts")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for part in (config["language_model"], config["encoder"], config["decoders"]["image"]):
        part["source"] = str(tmp_path / "parts" / part["source"].rpartition("/")[-1])
    file.write_text(json.dumps(config))
    return folder


def take_more_rows(folder) -> None:
    (folder / "words" / "config.json").write_text(json.dumps({"rows": ROWS + 1}))


def test_a_checkpoint_for_another_decoder_is_refused_by_the_tensors_name(moved) -> None:
    take_more_rows(moved.parent / "parts" / "image_decoder")
    with pytest.raises(OSError, match=r"output_projections.image.query_embs has shape \[1, 3, 16\].*needs \[1, 4, 16\]"):
        NextGPTForConditionalGeneration.from_pretrained(moved)


def test_the_doctor_compares_every_tensor_with_the_decoders_own_files(moved) -> None:
    def told() -> Finding:
        return next(finding for finding in examine(str(moved)) if finding.what == "image conditioning")

    assert told() == Finding(True, "image conditioning", "3 × 4 and 1 × 3")
    decoder = moved.parent / "parts" / "image_decoder"
    config = json.loads((moved / "config.json").read_text())
    config["decoders"]["image"]["config"] = str(shutil.copytree(decoder, moved.parent / "as it was"))
    (moved / "config.json").write_text(json.dumps(config))
    take_more_rows(decoder)
    assert not told().works and "3 × 4 and 1 × 3, but the decoder" in told().detail and "4 × 4 and 1 × 3" in told().detail


def test_the_cache_keeps_the_tensors_of_a_caption_by_name(tmp_path) -> None:
    cache = FeatureCache(tmp_path, "captions-toy", {"content": "1"})
    rows = {
        bytes([i]) * 32: {"shade": torch.full((3, 4), float(i)), "features": torch.full((3,), -float(i))} for i in range(3)
    }
    cache.add(rows)
    (cache.folder / "index.sqlite").unlink()
    again = FeatureCache(tmp_path, "captions-toy", {"content": "1"})
    for key, feature in rows.items():
        torch.testing.assert_close(again.rows([key])[0], feature)


def test_a_cache_of_an_earlier_version_is_refused_and_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("nextgpt.train.data.feature_cache.CACHE_VERSION", "2")
    FeatureCache(tmp_path, "captions-toy", {"content": "1"}).add({b"1" * 32: torch.zeros(2)})
    monkeypatch.undo()
    with pytest.raises(UserInputError, match="is stale: another version of nextgpt wrote it. Delete it"):
        FeatureCache(tmp_path, "captions-toy", {"content": "1"})


def test_caches_hold_what_the_decoder_encodes(toy_world, trained) -> None:
    [folder] = (toy_world / "features").glob("captions-toy-*")
    [shard] = folder.glob("*.safetensors")
    with safe_open(shard, "pt") as content:
        assert sorted(content.keys()) == ["features/shade", "features/tint", "keys"]
        tints = {tuple(row.tolist()) for row in content.get_tensor("features/tint")}
    decoder = ToyDecoder(str(toy_world / "parts" / "image_decoder"))
    expected = decoder.encode([f"a {colour} square" for colour in ("red", "green", "blue", "yellow")])["tint"]
    assert tints == {tuple(row.tolist()) for row in expected}
