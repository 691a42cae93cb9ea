"""Media of unusual kinds come in at their right level and length."""

import io

import numpy as np
import pytest
from PIL import Image

from nextgpt.errors import UserInputError
from nextgpt.media import load_media


@pytest.mark.parametrize("channels", [1, 2])
def test_integer_sound_is_scaled_to_one(channels):
    wave = (np.sin(np.linspace(0, 100, 4000)) * 16384).astype(np.int16)
    sound = load_media("audio", (np.stack([wave] * channels) if channels == 2 else wave, 8000))
    assert sound.array.dtype == np.float32 and sound.array.shape == (4000,)
    assert 0.45 < np.abs(sound.array).max() < 0.55


def test_a_16_bit_picture_keeps_its_greys():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).repeat(4).reshape(-1, 4)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    pixels = np.asarray(load_media("image", file.getvalue()))
    assert pixels.shape == (256, 4, 3) and np.abs(pixels[:, 0, 0].astype(int) - np.arange(256)).max() <= 1


def test_transparency_falls_on_white():
    assert load_media("image", Image.new("RGBA", (4, 4), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("modality", "value"), [("audio", (np.zeros(10, np.float32), None)), ("video", ("no", 3)), ("image", 7)]
)
def test_things_that_are_no_media_are_named(modality, value):
    with pytest.raises(UserInputError, match=modality):
        load_media(modality, value)


def test_an_address_that_is_none_is_named():
    with pytest.raises(UserInputError, match="localhost:abc"):
        load_media("image", "http://localhost:abc/x.png")
