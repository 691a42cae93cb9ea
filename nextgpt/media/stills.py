"""A picture that stands for a medium where there is no room for the medium itself: in a printed chat."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from nextgpt.decoders import Audio, Video

PICTURE, STRIP, FRAMES = 160, 640, 4  # height and greatest width of a picture; frames of a clip
WAVE = (59, 130, 246)


def picture(image: Image.Image) -> Image.Image:
    """A picture, not larger than there is room for."""
    return ImageOps.contain(image.convert("RGB"), (STRIP, PICTURE), Image.Resampling.BICUBIC)


def strip(video: Video) -> Image.Image:
    """A few frames of a clip from beginning to end, side by side with white between them."""
    moments = np.linspace(0, len(video.frames) - 1, FRAMES).round().astype(int)
    spaced = np.pad(video.frames[moments], ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=255)
    return picture(Image.fromarray(np.concatenate(spaced, axis=1)))


def wave(audio: Audio) -> Image.Image:
    """How far a sound swings: from left to right the greatest swing in each column's stretch of time."""
    middle = PICTURE // 4
    drawn = Image.new("RGB", (STRIP, 2 * middle), "white")
    draw = ImageDraw.Draw(drawn)
    for x, stretch in enumerate(np.array_split(audio.array, STRIP)):
        swing = middle * min(np.abs(stretch).max(initial=0.0), 1.0)
        draw.line((x, middle - swing, x, middle + swing), fill=WAVE)
    return drawn
