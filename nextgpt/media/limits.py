"""How large media may be, and which containers are opened at all."""

from __future__ import annotations

from nextgpt.errors import UserInputError

# The containers that FFmpeg may open: playlists and text formats among its others would reach further than the file.
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,flv,asf,ogg,wav,aac,mp3,flac,aiff,amr"
MAX_PIXELS = 64_000_000  # of a picture, and of one frame
MAX_SECONDS = {"audio": 600, "video": 600}
MIN_DECODED = 0.9  # share of what a header promises; edit lists may hide a little
MAX_VIDEO_FRAMES = 2048
MAX_VIDEO_BYTES = 1_500_000_000
MAX_REPEATED_BYTES = 400_000_000  # of a clip in which frames stand several times, because they are shown longer


def check_duration(modality: str, seconds: float, name: str) -> None:
    """Refuses a sound or a clip that is too long.

    Raises:
        UserInputError: it is.
    """
    if seconds > MAX_SECONDS[modality]:
        raise UserInputError(f"{name}: {seconds:.0f} s long, at most {MAX_SECONDS[modality]} s are taken; cut it")


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
