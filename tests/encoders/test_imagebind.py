"""The ImageBind model: equal to the reference implementation, any size, official checkpoints key for key."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nextgpt.encoders import (
    ImageBind,
    ImageBindConfig,
    encoder_from_config,
    imagebind_huge_config,
    load_imagebind_checkpoint,
)
from tiny_encoders import tiny_imagebind, tiny_imagebind_config

PARITY = Path(__file__).parent.parent / "fixtures" / "parity" / "imagebind_tiny.safetensors"
MODALITIES = ("image", "video", "text", "audio", "depth", "thermal", "imu")


@pytest.fixture(scope="module")
def reference():
    with safe_open(PARITY, "pt") as file:
        yield file


@pytest.fixture(scope="module")
def reference_config(reference):
    return ImageBindConfig(**json.loads(reference.metadata()["config"]))


@pytest.fixture(scope="module")
def reference_weights(reference):
    prefix = "weights."
    return {k.removeprefix(prefix): reference.get_tensor(k).float() for k in reference.keys() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def loaded(reference_weights, reference_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "imagebind_tiny.pth"
    torch.save(reference_weights, path)
    return load_imagebind_checkpoint(path, reference_config)


@pytest.mark.parametrize("modality", MODALITIES)
def test_outputs_equal_the_reference_implementation(loaded, reference, modality):
    """github.com/facebookresearch/ImageBind's own outputs, for its own random weights."""
    embeddings = loaded.encode(modality, reference.get_tensor(f"inputs.{modality}"))
    torch.testing.assert_close(embeddings, reference.get_tensor(f"outputs.{modality}"), atol=1e-4, rtol=0)


def test_the_huge_model_has_1_2_billion_parameters_and_allocates_none():
    with torch.device("meta"):
        model = encoder_from_config(imagebind_huge_config())
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == 1_200_781_057
    assert all(p.is_meta and not p.requires_grad for p in parameters)


def test_a_loaded_checkpoint_is_frozen(loaded):
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_checkpoint_with_other_keys_or_shapes_is_refused_by_name(reference_weights, reference_config, tmp_path):
    weights = dict(reference_weights)
    weights["decoder.weight"] = weights.pop("modality_heads.audio.2.weight")
    weights["modality_heads.imu.0.bias"] = torch.zeros(3)
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(ValueError) as error:
        load_imagebind_checkpoint(tmp_path / "other.pth", reference_config)
    text = str(error.value)
    assert "other.pth" in text
    assert "1 missing: modality_heads.audio.2.weight" in text
    assert "1 unexpected: decoder.weight" in text
    assert "modality_heads.imu.0.bias [3] instead of [16]" in text


def test_a_checkpoint_with_code_in_it_is_never_executed(tmp_path):
    marker = tmp_path / "executed"

    class Code:
        def __reduce__(self):
            return Path.touch, (marker,)

    torch.save({"weights": Code()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="code.pth cannot be read"):
        load_imagebind_checkpoint(tmp_path / "code.pth")
    assert not marker.exists()


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_missing_or_broken_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "imagebind_huge.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match="imagebind_huge.pth"):
        load_imagebind_checkpoint(path)


def test_a_tower_that_is_left_out_has_no_weights_and_no_modality():
    model = tiny_imagebind(towers=["vision"])
    assert model.modalities == ("image", "video")
    assert not [name for name, _ in model.named_parameters() if ".text." in name or ".audio." in name]
    with pytest.raises(ValueError, match="'audio'.*image, video"):
        model.encode("audio", torch.zeros(1, 2, 1, 16, 96))


def test_an_image_is_a_video_that_stands_still():
    model = tiny_imagebind(video_frames=4, kernel_size=[4, 8, 8])
    image = torch.randn(2, 3, 16, 16)
    still = image[:, None, :, None].expand(2, 1, 3, 4, 16, 16)
    torch.testing.assert_close(model.encode("image", image), model.encode("video", still))


def test_values_of_another_shape_are_refused_with_the_shape_expected():
    with pytest.raises(ValueError, match=r"\[1, 3, 8, 8\], expected \[N, 3, 16, 16\]"):
        tiny_imagebind().encode("image", torch.zeros(1, 3, 8, 8))


def test_training_reaches_every_weight_of_a_tower():
    model = ImageBind(tiny_imagebind_config(towers=["vision", "text"]))
    ids = torch.randint(1, 49408, (2, 20))
    outputs = model({"image": torch.randn(2, 3, 16, 16), "text": ids})
    torch.nn.functional.cross_entropy(outputs["image"] @ outputs["text"].T, torch.arange(2)).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_half_precision_stays_close():
    model = tiny_imagebind()
    image = torch.randn(2, 3, 16, 16)
    full = model.encode("image", image)
    half = model.to(torch.bfloat16).encode("image", image)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("towers", ["vision", "smell"], "smell"),
        ("vision_num_heads", 3, "vision_embed_dim is 16"),
        ("kernel_size", [2, 7, 7], "kernel_size"),
        ("video_crops", 2, "video_crops is 2"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(field, value, message):
    with pytest.raises(Exception, match=message):
        tiny_imagebind_config(**{field: value})
