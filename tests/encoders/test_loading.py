"""Sources: folders of our own, official checkpoints, open_clip; weights that do not fit are refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nextgpt.encoders import (
    ImageBind,
    OpenClipEncoder,
    encoder_config,
    encoder_from_config,
    imagebind_huge_config,
    load_encoder,
    preprocessor_for,
)
from tiny_encoders import TINY_OPEN_CLIP, TINY_PREPROCESS, tiny_imagebind, tiny_imagebind_config, tiny_open_clip_folder


@pytest.fixture
def folder(tmp_path):
    tiny_imagebind().save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory):
    return tiny_open_clip_folder(tmp_path_factory.mktemp("open_clip"))


def test_a_saved_encoder_comes_back_exact_and_frozen(folder):
    model, again = tiny_imagebind(), load_encoder(folder)
    assert isinstance(again, ImageBind)
    assert (again.config.towers, again.config.kernel_size) == (model.config.towers, model.config.kernel_size)
    assert again.preprocessor().modalities == ("image", "video", "audio", "text")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


def test_the_weights_are_safetensors_and_the_type_can_be_chosen(folder):
    assert (folder / "model.safetensors").is_file()
    assert load_encoder(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_configuration_is_read_without_the_weights(folder):
    (folder / "model.safetensors").unlink()
    config = encoder_config(str(folder))
    assert config.modalities == ("image", "video", "audio", "text")
    assert encoder_from_config(config).embed_dim == 16


def test_weights_that_lack_something_are_refused_by_name(folder):
    weights = load_file(folder / "model.safetensors")
    weights["stranger"] = weights.pop("modality_heads.vision.2.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing: modality_heads.vision.2.weight.*unexpected: stranger"):
        load_encoder(folder)


def test_weights_of_another_size_or_cut_short_are_refused(folder):
    with pytest.raises(ValueError, match="mismatched: .*modality_heads.vision.2.weight"):
        load_encoder(folder, config=tiny_imagebind_config(out_embed_dim=8))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_encoder(folder)


def test_a_folder_with_the_official_checkpoint_needs_no_configuration(tmp_path):
    model = tiny_imagebind()
    torch.save(model.state_dict(), tmp_path / "imagebind_huge.pth")
    assert encoder_config(tmp_path).to_dict() == imagebind_huge_config().to_dict()
    again = load_encoder(tmp_path, config=tiny_imagebind_config())
    values = torch.randn(1, 3, 16, 16)
    assert torch.equal(again.encode("image", values), model.encode("image", values))


def test_a_folder_without_a_configuration_and_another_kind_of_model_are_named(tmp_path):
    with pytest.raises(OSError, match="config.json"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "imageb')
    with pytest.raises(ValueError, match="config.json is not JSON"):
        encoder_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert', expected one of imagebind, open_clip_vision"):
        encoder_config(tmp_path)


def test_an_open_clip_tower_embeds_as_open_clip_does(open_clip_folder):
    import open_clip

    source = f"open_clip:local-dir:{open_clip_folder}"
    encoder = load_encoder(source)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{open_clip_folder}")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8))
    values = encoder.preprocessor().image(picture)[None]
    assert torch.equal(values, preprocess(picture)[None])
    expected = model.eval().encode_image(values, normalize=True)
    torch.testing.assert_close(encoder.encode("image", values), expected)
    assert (encoder.embed_dim, encoder.modalities) == (24, ("image",))
    assert not any(p.requires_grad for p in encoder.parameters())


def test_an_open_clip_tower_is_saved_alone_and_comes_back(open_clip_folder, tmp_path):
    encoder = load_encoder(f"open_clip:local-dir:{open_clip_folder}")
    encoder.save_pretrained(tmp_path)
    again = load_encoder(tmp_path)
    assert isinstance(again, OpenClipEncoder)
    assert again.config.preprocess_cfg["mean"] == TINY_PREPROCESS["mean"]
    values = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.encode("image", values), encoder.encode("image", values))


def test_an_open_clip_architecture_with_a_weights_file(open_clip_folder, tmp_path, monkeypatch):
    import open_clip.factory

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY_OPEN_CLIP)
    encoder = load_encoder(f"open_clip:tiny/{open_clip_folder / 'open_clip_model.safetensors'}")
    assert encoder.encode("image", torch.zeros(1, 3, 32, 32)).shape == (1, 24)


def test_the_open_clip_tower_of_the_design_is_described_without_its_weights():
    config = encoder_config("open_clip:ViT-H-14/laion2b_s32b_b79k")
    assert config.embed_dim == 1024
    assert preprocessor_for(config).image(Image.new("RGB", (300, 200))).shape == (3, 224, 224)
    with torch.device("meta"):
        encoder = encoder_from_config(config)
    assert sum(p.numel() for p in encoder.parameters()) == 632_076_800


def test_open_clip_sources_that_cannot_be_loaded_are_named():
    with pytest.raises(ValueError, match="has no 'ViT-Z'"):
        encoder_config("open_clip:ViT-Z/tag")
    with pytest.raises(ValueError, match="open_clip:ViT-B-32/nonsense cannot be loaded"):
        load_encoder("open_clip:ViT-B-32/nonsense")


def test_an_open_clip_tower_takes_images_only(open_clip_folder):
    encoder = load_encoder(f"open_clip:local-dir:{open_clip_folder}")
    with pytest.raises(ValueError, match="'audio'.*image only"):
        encoder.encode("audio", torch.zeros(1))
    with pytest.raises(ValueError, match="takes image, not video"):
        encoder.preprocessor().video(np.zeros((1, 2, 2, 3), np.uint8), 4)
