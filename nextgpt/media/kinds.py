"""What kind of thing a file is, by what it holds: its streams and the number of its frames, never its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from nextgpt.errors import UserInputError
from nextgpt.media.limits import CONTAINERS, MAX_PIXELS
from nextgpt.media.sources import open_source
from nextgpt.media.text import listed
from nextgpt.modalities import MODALITIES

# Pillow also opens formats that are no pictures (MPEG, HDF5) or programs (EPS). HEIF is there once a plug-in brings it.
PICTURES = ("PNG", "JPEG", "MPO", "JPEG2000", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "ICO", "PPM", "QOI", "HEIF")
MOVING = ("GIF", "WEBP", "PNG", "AVIF")  # several frames of others are pages, sizes or views
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def guess_modality(value: str | os.PathLike | bytes) -> str:
    """The modality of what a file, an address, a data: URI or bytes hold: `image`, `audio`, `video` or a plug-in's.

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
        for modality, row in MODALITIES.items():
            file.seek(0)
            if row.recognizes is not None and row.recognizes(file, name):
                return modality
    finally:
        file.seek(0)
    nouns = [row.described.split(" ", 1)[-1] for row in MODALITIES.values()]
    raise UserInputError(
        f"{name}: not a {listed(nouns, 'or')} that can be read; check that the file is complete, or give one of "
        + ", ".join(f"{modality} ({' '.join(row.suffixes)})" for modality, row in MODALITIES.items())
    )


def wrong_kind(file: BinaryIO, name: str, expected: str, reason: str = "") -> UserInputError:
    """The error for an open file that cannot be read as the kind expected; it says what the file is, if it is another."""
    row = MODALITIES[expected]
    try:
        found = kind_of(file, name)
    except UserInputError:
        found = expected
    if found != expected:
        return UserInputError(f"{name}: not {row.described} but {MODALITIES[found].described}; give it as {found}")
    reason = f" ({reason})" if reason else ""
    return UserInputError(f"{name}: not {row.described} that can be read{reason}; give {row.formats}")


def has_usual_suffix(path: str | os.PathLike, modality: str) -> bool:
    """Whether a file's name says what it is, so that programs that go by names (browsers) show it."""
    return modality in MODALITIES and Path(path).suffix.lower().removeprefix(".") in MODALITIES[modality].suffixes


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
    except Image.DecompressionBombError:
        raise UserInputError(
            f"{name}: the picture has far more than {MAX_PIXELS:,} pixels, the most that are taken; make it smaller"
        ) from None
    except (OSError, ValueError, SyntaxError):  # what is no picture, and what Pillow cannot unpack
        return None
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


def is_picture(file: BinaryIO, name: str) -> bool:
    """Whether an open file is a picture that does not move."""
    image = open_picture(file, name)
    return is_heic(file) if image is None else not is_animated(image)


def is_clip(file: BinaryIO, name: str) -> bool:
    """Whether an open file holds moving pictures."""
    image = open_picture(file, name)
    return _streams(file)[0] if image is None else is_animated(image)


def is_sound(file: BinaryIO, name: str) -> bool:
    """Whether an open file holds a sound and no moving pictures."""
    import soundfile

    has_pictures, has_sound = _streams(file)
    if has_pictures or has_sound:
        return not has_pictures
    file.seek(0)
    try:
        with soundfile.SoundFile(file):
            return True
    except soundfile.LibsndfileError:
        return False


def open_container(file: BinaryIO) -> Any:
    """A file as FFmpeg reads it (`av.container.InputContainer`); a tag that is not UTF-8 does not matter.

    Raises:
        av.FFmpegError: it is of no kind that may be opened.
    """
    import av

    return av.open(file, options={"format_whitelist": CONTAINERS}, metadata_errors="replace")


def _streams(file: BinaryIO) -> tuple[bool, bool]:
    """Whether FFmpeg finds moving pictures in a file, and whether it finds sound."""
    import av

    try:
        with open_container(file) as container:
            return moving_pictures(container) is not None, bool(container.streams.audio)
    except av.FFmpegError:
        return False, False
