"""Reads pictures: any mode, upright, on white; of one that moves, its frames."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from nextgpt.errors import UserInputError
from nextgpt.media.kinds import is_heic, open_picture, wrong_kind
from nextgpt.media.limits import check_pixels

SHORTEST_DELAY = 10  # milliseconds; browsers show a frame with a shorter one for a tenth of a second
USUAL_DELAY = 100
MIN_PIXELS = 8  # a side, of a picture that something can be learned from


def read_image(file: BinaryIO, name: str) -> Image.Image:
    """A picture file → RGB; the first frame of one that moves.

    Raises:
        UserInputError: it is not a picture, or too large.
    """
    image = open_picture(file, name)
    if image is None and is_heic(file):
        raise UserInputError(f"{name}: a HEIC picture, which cannot be read here; export it as JPEG or PNG")
    if image is None:
        raise wrong_kind(file, name, "image")
    return as_rgb(image, name)


def ready_image(value: Any) -> Image.Image:
    """A PIL image or a uint8 array `[height, width, 3]` → RGB."""
    if isinstance(value, Image.Image):
        return as_rgb(value, "image")
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3:
        return as_rgb(Image.fromarray(value), "image")
    raise UserInputError(
        f"image given as {describe(value)}: expected a path, bytes, a PIL image or a uint8 array [height, width, 3]"
    )


def animation_frames(image: Image.Image, name: str) -> Iterator[tuple[Image.Image, float]]:
    """The frames of a picture that moves, RGB, and how long each is shown, in seconds."""
    for frame in ImageSequence.Iterator(image):
        frame.load()  # only now is its delay known
        delay = float(frame.info.get("duration") or 0)
        yield as_rgb(frame, name), (delay if delay > SHORTEST_DELAY else USUAL_DELAY) / 1000


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """A picture of any mode → RGB: turned as its EXIF data say, deep values scaled, laid on white where transparent."""
    check_pixels(*image.size, name)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # 16 bits or floats: convert() would clip, not scale
        values = np.asarray(image, dtype=np.float32)
        if not np.isfinite(values).all():
            raise UserInputError(f"{name}: holds NaN or infinite pixels; export it again with finite ones")
        top = max(float(values.max()), 1e-6) if image.mode == "F" else 65535.0
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def save_image(image: Image.Image, path: str | Path) -> None:
    """Writes a picture, as PNG or whatever format its path says."""
    image.save(path)


def png_data_url(image: Image.Image) -> str:
    """A picture as a `data:` URL, as browsers and clients show it without fetching anything."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def too_few_pixels(image: Image.Image) -> str | None:
    """The size of a picture, where that is too small to learn from."""
    return f"{image.width} × {image.height} pixels; use a larger picture" if min(image.size) < MIN_PIXELS else None


def describe(value: Any) -> str:
    """The type of a thing, for a message; of an array also its shape, of a pair both, of a number its value."""
    if isinstance(value, np.ndarray):
        return f"array of shape {list(value.shape)} and type {value.dtype}"
    if isinstance(value, tuple) and len(value) == 2:
        return f"({describe(value[0])}, {describe(value[1])})"
    return f"{value}" if isinstance(value, (int, float)) else type(value).__name__
