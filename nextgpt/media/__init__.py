"""Reads media from files, addresses, data URIs and arrays, and writes them. Knows formats and limits, not models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nextgpt.errors import UserInputError, first_line
from nextgpt.media.kinds import guess_modality, has_usual_suffix, kind_of
from nextgpt.media.sources import open_source, shortened
from nextgpt.modalities import MODALITIES, Modality

__all__ = ["guess_modality", "has_usual_suffix", "load_any_media", "load_media", "save_media", "shortened"]


def load_media(modality: str, value: Any) -> Any:
    """A path, an address, raw bytes or ready-made media → `PIL.Image` (RGB), [`Audio`], [`Video`] or a plug-in's own.

    All of it as it is meant to be shown or heard: turned upright, with square pixels, laid on white where it is
    transparent, at a constant frame rate; channels of a sound are averaged.

    Args:
        modality: `image`, `audio`, `video` or a plug-in's. A file is read as what is asked for: an animated GIF as an image
            gives its first frame, a clip as an audio its sound. [`guess_modality`] says what a file is by itself.
        value: path, http(s) address or base64 `data:` URI; `bytes`; or what the loader returns itself; for audio also
            `(array, sampling_rate)`, integers or floats in -1..1, for video also `(frames uint8 [T, H, W, 3], fps)`.

    Raises:
        UserInputError: the thing is missing, empty, broken, too large, not finite, or of another kind; the message
            names it.
    """
    row = MODALITIES[modality]
    if isinstance(value, (str, os.PathLike, bytes)):
        with open_source(value, modality) as (file, name):
            return _read(row.read, row, file, name)
    return _read(lambda given, _: row.ready(given), row, value, f"the {modality} given")


def load_any_media(value: str | os.PathLike | bytes) -> tuple[str, Any]:
    """What a path, an address, a `data:` URI or bytes hold, and its kind as [`guess_modality`] has it; opened once.

    Raises:
        UserInputError: as `load_media`, or it is of no kind that is known.
    """
    with open_source(value) as (file, name):
        row = MODALITIES[kind_of(file, name)]
        return row.name, _read(row.read, row, file, name)


def save_media(media: Any, path: str | os.PathLike) -> None:
    """Writes media as its path says: each modality has one kind of file that is written (PNG, WAV, MP4).

    Raises:
        ValueError: the suffix is none of theirs.
    """
    for row in MODALITIES.values():
        if Path(path).suffix.lower() == row.suffix:
            row.save(media, Path(path))
            return
    known = ", ".join(row.suffix for row in MODALITIES.values())
    raise ValueError(f"{path}: no media are written to a file with this suffix; name one that ends in {known}")


def _read(reader: Callable, row: Modality, source: Any, name: str) -> Any:
    try:
        return reader(source, name)
    except (UserInputError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they like on broken files
        raise UserInputError(
            f"{name}: not a readable {row.name} ({first_line(error)}): check that the file is complete "
            f"and really is {row.article}"
        ) from error
