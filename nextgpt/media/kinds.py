"""What kind of thing a file is, by what it holds: its streams and the number of its frames, never its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from nextgpt.errors import UserInputError
from nextgpt.media.limits import CONTAINERS, MAX_PIXELS
from nextgpt.media.sources import open_source

SUFFIXES = {
    "image": ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"),
    "audio": ("wav", "mp3", "flac", "ogg", "opus", "m4a", "aac"),
    "video": ("mp4", "m4v", "mov", "webm", "mkv", "avi"),
}
# Pillow also opens formats that are no pictures (MPEG, HDF5) or programs (EPS). HEIF is there once a plug-in brings it.
PICTURES = ("PNG", "JPEG", "MPO", "JPEG2000", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "ICO", "PPM", "QOI", "HEIF")
MOVING = ("GIF", "WEBP", "PNG", "AVIF")  # several frames of others are pages, sizes or views
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
NAMES = {"image": "a picture", "audio": "a sound", "video": "a video"}
TO_GIVE = {
    "image": "a PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF file",
    "audio": "a WAV, FLAC, OGG, MP3 or M4A file",
    "video": "an MP4, MOV, WebM, AVI or GIF file",
}


def guess_modality(value: str | os.PathLike | bytes) -> str:
    """`image`, `audio` or `video`: what a file, an address, a data: URI or bytes hold.

    A picture that moves (GIF, WebP, PNG, AVIF) is a video; a recording without pictures is an audio, whatever its
    container; so is a sound that brings the picture of its cover. Whether it is whole, `load_media` finds out.

    Raises:
        UserInputError: it cannot be opened, or is none of them.
    """
    with open_source(value) as (file, name):
        return kind_of(file, name)


def kind_of(file: BinaryIO, name: str) -> str:
    """As [`guess_modality`], of an open file, which is left at its beginning.

    Raises:
        UserInputError: it is none of them; the message calls it `name`.
    """
    try:
        kind = _picture_kind(file, name) or _stream_kind(file)
    finally:
        file.seek(0)
    if kind is None:
        raise UserInputError(
            f"{name}: not a picture, sound or video that can be read; check that the file is complete, or give one of "
            + ", ".join(f"{modality} ({' '.join(suffixes)})" for modality, suffixes in SUFFIXES.items())
        )
    return kind


def wrong_kind(file: BinaryIO, name: str, expected: str, reason: str = "") -> UserInputError:
    """The error for an open file that cannot be read as the kind expected; it says what the file is, if it is another."""
    file.seek(0)
    try:
        found = kind_of(file, name)
    except UserInputError:
        found = expected
    if found != expected:
        return UserInputError(f"{name}: not {NAMES[expected]} but {NAMES[found]}; give it as {found}")
    reason = f" ({reason})" if reason else ""
    return UserInputError(f"{name}: not {NAMES[expected]} that can be read{reason}; give {TO_GIVE[expected]}")


def has_usual_suffix(path: str | os.PathLike, modality: str) -> bool:
    """Whether a file's name says what it is, so that programs that go by names (browsers) show it."""
    return Path(path).suffix.lower().removeprefix(".") in SUFFIXES.get(modality, ())


def moving_pictures(container: Any) -> Any | None:
    """The video stream of an open FFmpeg container; None where there is none but the cover or one still of a sound."""
    from av.stream import Disposition

    for stream in container.streams.video:
        is_cover = stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)
        if not is_cover and not (stream.frames == 1 and container.streams.audio):
            return stream
    return None


def declared_seconds(container: Any, stream: Any) -> float | None:
    """How long a stream of an open FFmpeg container is by its header; None where FFmpeg would have to guess it."""
    if "matroska" in container.format.name:  # says the length of the longest stream
        return container.duration / 1_000_000 if container.duration and len(container.streams) == 1 else None
    if "mp4" in container.format.name:
        return float(stream.duration * stream.time_base) if stream.duration else None
    return None


def open_picture(file: BinaryIO, name: str) -> Image.Image | None:
    """A picture whose pixels are not read yet; None for what is none."""
    Image.init()
    try:
        return Image.open(file, formats=[each for each in PICTURES if each in Image.OPEN])
    except UnidentifiedImageError:
        return None
    except Image.DecompressionBombError:
        raise UserInputError(
            f"{name}: the picture has far more than {MAX_PIXELS:,} pixels, the most that are taken; make it smaller"
        ) from None
    finally:
        file.seek(0)


def is_animated(image: Image.Image) -> bool:
    """Whether a picture moves: an animated GIF, WebP, PNG or AVIF."""
    return image.format in MOVING and getattr(image, "is_animated", False)


def is_heic(file: BinaryIO) -> bool:
    """Whether a file is a HEIC or HEIF picture, by its brand."""
    header = file.read(12)
    file.seek(0)
    return header[4:8] == b"ftyp" and header[8:] in HEIC_BRANDS


def _picture_kind(file: BinaryIO, name: str) -> str | None:
    image = open_picture(file, name)
    if image is None:
        return "image" if is_heic(file) else None
    return "video" if is_animated(image) else "image"


def _stream_kind(file: BinaryIO) -> str | None:
    import av
    import soundfile

    file.seek(0)
    try:
        with av.open(file, options={"format_whitelist": CONTAINERS}) as container:
            if moving_pictures(container) is not None:
                return "video"
            if container.streams.audio:
                return "audio"
    except av.FFmpegError:
        pass
    file.seek(0)
    try:
        with soundfile.SoundFile(file):
            return "audio"
    except soundfile.LibsndfileError:
        return None
