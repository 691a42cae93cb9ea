"""How large media may be, and which containers are opened at all."""

from __future__ import annotations

from nextgpt.errors import UserInputError
from nextgpt.modalities import MODALITIES

# The containers that FFmpeg may open: playlists and text formats among its others would reach further than the file.
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,flv,asf,ogg,wav,aac,mp3,flac,aiff,amr"
MAX_PIXELS = 64_000_000  # of a picture, and of one frame
MIN_SECONDS = 0.1  # of a sound or a clip that something can be learned from
MIN_DECODED = 0.9  # share of what a header promises; edit lists may hide a little
MAX_SAMPLES = 120_000_000  # of a sound, in each channel: ten minutes at 192 kHz
MAX_VIDEO_FRAMES = 2048
MAX_VIDEO_BYTES = 1_500_000_000
MAX_REPEATED_BYTES = 400_000_000  # of a clip in which frames stand several times, because they are shown longer


def check_duration(modality: str, seconds: float, name: str) -> None:
    """Refuses what is longer than its kind may be.

    Raises:
        UserInputError: it is.
    """
    most = MODALITIES[modality].max_seconds
    if most is not None and seconds > most:
        raise UserInputError(f"{name}: {seconds:.0f} s long, at most {most:g} s are taken; cut it")


def check_samples(count: int, name: str) -> None:
    """Refuses a sound of too many samples: a small file may hold silence at any rate.

    Raises:
        UserInputError: it is one.
    """
    if count > MAX_SAMPLES:
        raise UserInputError(f"{name}: {count:,} samples, at most {MAX_SAMPLES:,} are taken; export it at a lower rate")


def too_short(medium: tuple) -> str | None:
    """How long a sound or a clip, `(samples or frames, rate)`, is, where that is too short to learn from."""
    seconds = len(medium[0]) / medium[1]
    return f"{seconds:.3f} s; use a longer one" if seconds < MIN_SECONDS else None


def check_whole(found: float, declared: float | None, name: str) -> None:
    """Refuses what is much shorter, in seconds, than its header declares; None where that cannot be relied on.

    Raises:
        UserInputError: it is.
    """
    if declared and found < MIN_DECODED * declared:
        raise UserInputError(f"{name}: breaks off after {found:.1f} of {declared:.1f} s; copy or export it again")


def check_pixels(width: int, height: int, name: str) -> None:
    """Refuses a picture that is too large.

    Raises:
        UserInputError: it is.
    """
    if width * height > MAX_PIXELS:
        raise UserInputError(f"{name}: {width} x {height} pixels, at most {MAX_PIXELS:,} are taken; make it smaller")
