"""SigLIP's vision tower as the image encoder: whole models and towers are read, and agree with transformers' own."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipVisionModel

from nextgpt.encoders import Encoder, SiglipEncoder, encoder_config, load_encoder, preprocessor_for, register_encoder

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole tiny SigLIP, as it would stand on the Hub."""
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    config = SiglipConfig(text_config=SIZES | {"vocab_size": 99}, vision_config=SIZES | {"image_size": 32, "patch_size": 8})
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.2] * 3).save_pretrained(folder)
    return folder


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_whole_model_is_read_without_its_text_tower(folder):
    encoder = load_encoder(folder)
    assert isinstance(encoder, SiglipEncoder) and encoder.modalities == ("image",) and encoder.embed_dim == 32
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    assert not [name for name in encoder.state_dict() if "text" in name]


def test_pictures_are_prepared_as_by_transformers(folder, picture):
    config = encoder_config(folder)
    assert config.image_mean == (0.4, 0.4, 0.4)
    expected = SiglipImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(preprocessor_for(config).image(picture), expected, atol=0.03, rtol=0)


def test_embeddings_are_the_towers_pooled_output_at_unit_length(folder, picture):
    encoder = load_encoder(folder)
    values = encoder.preprocessor().image(picture)[None]
    with torch.no_grad():
        pooled = SiglipVisionModel.from_pretrained(folder).eval()(pixel_values=values).pooler_output
    expected = pooled / pooled.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(encoder.encode("image", values), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="'audio'.*image only"):
        encoder.encode("audio", values)


def test_it_saves_and_loads_by_itself(folder, tmp_path, picture):
    encoder = load_encoder(folder)
    encoder.save_pretrained(tmp_path / "tower")
    again = load_encoder(tmp_path / "tower")
    values = encoder.preprocessor().image(picture)[None]
    assert torch.equal(again.preprocessor().image(picture)[None], values)
    assert torch.equal(again.encode("image", values), encoder.encode("image", values))


def test_a_tower_that_transformers_saved_is_read_too(folder, tmp_path, picture):
    SiglipVisionModel.from_pretrained(folder).save_pretrained(tmp_path / "tower")
    values = load_encoder(folder).preprocessor().image(picture)[None]
    assert torch.equal(
        load_encoder(tmp_path / "tower").encode("image", values), load_encoder(folder).encode("image", values)
    )


def test_a_model_type_that_is_taken_is_refused_by_name():
    class Other(Encoder):
        @classmethod
        def model_types(cls):
            return ("siglip",)

    with pytest.raises(ValueError, match="'siglip'.*Other is taken by .*SiglipEncoder"):
        register_encoder(Other)
