"""Reads pictures, sounds and clips from files, addresses, data URIs and arrays, within limits."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from PIL import Image

from nextgpt.decoders import Audio, Video
from nextgpt.errors import UserInputError, first_line
from nextgpt.media.audio import read_audio, ready_audio
from nextgpt.media.images import read_image, ready_image
from nextgpt.media.kinds import guess_modality, has_usual_suffix, kind_of
from nextgpt.media.sources import ARTICLES, open_source, shortened
from nextgpt.media.video import read_video, ready_video

__all__ = ["guess_modality", "has_usual_suffix", "load_any_media", "load_media", "shortened"]

_LOADERS = {
    "image": (read_image, ready_image),
    "audio": (read_audio, ready_audio),
    "video": (read_video, ready_video),
}


def load_media(modality: str, value: Any) -> Image.Image | Audio | Video:
    """A path, an address, raw bytes or ready-made media → `PIL.Image` (RGB), [`Audio`] or [`Video`].

    All of it as it is meant to be shown or heard: turned upright, with square pixels, laid on white where it is
    transparent, at a constant frame rate; channels of a sound are averaged.

    Args:
        modality: `image`, `audio` or `video`. A file is read as what is asked for: an animated GIF as an image gives
            its first frame, a clip as an audio its sound. [`guess_modality`] says what a file is by itself.
        value: path, http(s) address or base64 `data:` URI; `bytes`; or what the loader returns itself; for audio also
            `(array, sampling_rate)`, integers or floats in -1..1, for video also `(frames uint8 [T, H, W, 3], fps)`.

    Raises:
        UserInputError: the thing is missing, empty, broken, too large, not finite, or of another kind; the message
            names it.
    """
    reader, ready = _LOADERS[modality]
    if isinstance(value, (str, os.PathLike, bytes)):
        with open_source(value, modality) as (file, name):
            return _read(reader, modality, file, name)
    return _read(lambda given, _: ready(given), modality, value, f"the {modality} given")


def load_any_media(value: str | os.PathLike | bytes) -> tuple[str, Image.Image | Audio | Video]:
    """What a path, an address, a `data:` URI or bytes hold, and its kind as [`guess_modality`] has it; opened once.

    Raises:
        UserInputError: as `load_media`, or it is of no kind that is known.
    """
    with open_source(value) as (file, name):
        modality = kind_of(file, name)
        return modality, _read(_LOADERS[modality][0], modality, file, name)


def _read(reader: Callable, modality: str, source: Any, name: str) -> Image.Image | Audio | Video:
    try:
        return reader(source, name)
    except (UserInputError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they like on broken files
        raise UserInputError(
            f"{name}: not a readable {modality} ({first_line(error)}): check that the file is complete "
            f"and really is {ARTICLES[modality]}"
        ) from error
