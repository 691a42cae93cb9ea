"""Pictures of unusual kinds come in with their own colours, upright and on white."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextgpt.errors import UserInputError
from nextgpt.media import load_media

COLOURS = np.zeros((24, 32, 3), np.uint8) + 255
COLOURS[:12, :16], COLOURS[:12, 16:], COLOURS[12:, :16] = (200, 30, 30), (30, 160, 30), (30, 30, 200)
PICTURE = Image.fromarray(COLOURS)


def saved(image: Image.Image, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def read(data: bytes) -> np.ndarray:
    return np.asarray(load_media("image", data)).astype(int)


def test_a_16_bit_picture_keeps_its_greys():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).repeat(4).reshape(-1, 4)
    for file_format in ("PNG", "TIFF"):
        pixels = read(saved(Image.fromarray(ramp), file_format))
        assert pixels.shape == (256, 4, 3) and np.abs(pixels[:, 0, 0] - np.arange(256)).max() <= 1


def test_transparency_falls_on_white():
    assert load_media("image", Image.new("RGBA", (4, 4), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_photo_is_upright(orientation, file_format):
    """Exif 2.3: 6 is a camera held upright, its top at the right of what is stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = PICTURE.transpose(ORIENTATIONS[orientation])
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(file_format, {})
    pixels = read(saved(stored, file_format, exif=exif, **options))
    assert pixels.shape == COLOURS.shape and np.abs(pixels - COLOURS).max() < 20


CUT_OUT = PICTURE.copy().convert("RGBA")
CUT_OUT.putalpha(Image.fromarray(np.where(np.arange(32) < 16, 255, 0).astype(np.uint8)[None].repeat(24, 0)))
ON_WHITE = np.where(np.arange(32)[None, :, None] < 16, COLOURS, 255)

MODES = {
    "palette": (saved(PICTURE.quantize(8), "PNG"), COLOURS),
    "palette gif": (saved(PICTURE.quantize(8), "GIF"), COLOURS),
    "palette with transparency": (saved(CUT_OUT.quantize(8), "PNG"), ON_WHITE),
    "gif with transparency": (saved(CUT_OUT, "GIF"), ON_WHITE),
    "webp with transparency": (saved(CUT_OUT, "WEBP", lossless=True), ON_WHITE),
    "avif with transparency": (saved(CUT_OUT, "AVIF", quality=100, subsampling="4:4:4"), ON_WHITE),
    "one colour transparent": (
        saved(PICTURE, "PNG", transparency=(30, 160, 30)),
        np.where((COLOURS == (30, 160, 30)).all(-1)[..., None], 255, COLOURS),
    ),
    "cmyk jpeg": (saved(PICTURE.convert("CMYK"), "JPEG", quality=98, subsampling=0), COLOURS),
    "cmyk tiff": (saved(PICTURE.convert("CMYK"), "TIFF"), COLOURS),
    "grey jpeg": (saved(PICTURE.convert("L"), "JPEG", quality=98), np.asarray(PICTURE.convert("L").convert("RGB"))),
    "grey with alpha": (
        saved(CUT_OUT.convert("LA"), "PNG"),
        np.where(np.arange(32)[None, :, None] < 16, np.asarray(PICTURE.convert("L").convert("RGB")), 255),
    ),
    "one bit": (saved(Image.fromarray(COLOURS[..., 1] > 100), "PNG"), np.where(COLOURS[..., 1:2] > 100, 255, 0)),
    "jpeg in tiff": (saved(PICTURE, "TIFF", compression="jpeg", quality=98), COLOURS),
    "jpeg 2000": (saved(PICTURE, "JPEG2000"), COLOURS),
    "icon": (saved(PICTURE.resize((32, 32)), "ICO", sizes=[(32, 32)]), np.asarray(PICTURE.resize((32, 32)))),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_keeps_its_colours(name):
    data, expected = MODES[name]
    pixels = read(data)
    expected = np.broadcast_to(expected, pixels.shape)
    assert np.abs(pixels - expected).mean() < 3


def test_two_views_in_one_photo_are_one_picture(tmp_path):
    """What many phones write: a JPEG with a second one behind it (MPO)."""
    PICTURE.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[PICTURE.rotate(180)], quality=98)
    assert np.abs(np.asarray(load_media("image", tmp_path / "phone.jpg")).astype(int) - COLOURS).mean() < 5


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "BMP"])
def test_a_picture_that_breaks_off_is_refused(tmp_path, file_format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))
    data = saved(noise, file_format)
    path = Path(tmp_path / "half.bin")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserInputError, match=r"half\.bin: .*(truncated|not a (readable )?(image|picture))") as caught:
        load_media("image", path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("modality", "value"), [("audio", (np.zeros(10, np.float32), None)), ("video", ("no", 3)), ("image", 7)]
)
def test_things_that_are_no_media_are_named(modality, value):
    with pytest.raises(UserInputError, match=modality):
        load_media(modality, value)


def test_an_address_that_is_none_is_named():
    with pytest.raises(UserInputError, match="localhost:abc"):
        load_media("image", "http://localhost:abc/x.png")
