"""Reads pictures, sounds and clips from files, addresses and arrays. Knows formats and limits, not models."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nextgpt.decoders import Audio, Video
from nextgpt.errors import UserInputError

SUFFIXES = {
    "image": ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"),
    "audio": ("wav", "mp3", "flac", "ogg", "opus", "m4a", "aac"),
    "video": ("mp4", "m4v", "mov", "webm", "mkv", "avi"),
}
# The containers that FFmpeg may open: playlists and text formats among its others would reach further than the file.
CONTAINERS = "mov,matroska,avi,gif,mpeg,mpegts,flv,asf,ogg,wav,aac,mp3,flac,aiff,amr"
UNKNOWN_WAV_LENGTH = 0x7FFF0000  # programs that write to a pipe put such a number in place of the length
MIN_DECODED = 0.9  # share of the frames that a video's header promises; edit lists may hide a few
MAX_PIXELS = 64_000_000
MAX_AUDIO_SECONDS = 600
MAX_VIDEO_SECONDS = 600
MAX_VIDEO_FRAMES = 2048
MAX_VIDEO_BYTES = 1_500_000_000
MAX_DOWNLOAD_BYTES = 200_000_000


def load_media(modality: str, value: Any) -> Image.Image | Audio | Video:
    """A path, an address, raw bytes or ready-made media → `PIL.Image` (RGB), [`Audio`] or [`Video`].

    Args:
        modality: `image`, `audio` or `video`.
        value: path or http(s) address; `bytes`; or what the loader returns itself; for audio also
            `(array, sampling_rate)`, for video also `(frames uint8 [T, H, W, 3], fps)`.

    Raises:
        UserInputError: the thing is missing, empty, broken, too large, or of another kind; the message names it.
    """
    reader, ready = _LOADERS[modality]
    if isinstance(value, (str, os.PathLike)):
        name = str(value)
        if name.startswith(("http://", "https://")):
            return _read(reader, modality, io.BytesIO(_download(name)), name)
        path = Path(os.path.expanduser(name))
        _check_file(path, modality)
        with path.open("rb") as file:
            return _read(reader, modality, file, name)
    if isinstance(value, bytes):
        return _read(reader, modality, io.BytesIO(value), f"{modality} of {len(value)} bytes")
    return _read(lambda given, _: ready(given), modality, value, f"the {modality} given")


def guess_modality(path: str | os.PathLike) -> str:
    """`image`, `audio` or `video`, by the file's suffix; whether it really is one, `load_media` finds out.

    Raises:
        UserInputError: the suffix names none of them.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    for modality, suffixes in SUFFIXES.items():
        if suffix in suffixes:
            return modality
    known = ", ".join(f"{modality} ({' '.join(suffixes)})" for modality, suffixes in SUFFIXES.items())
    raise UserInputError(f"{path}: its suffix does not say what it is; expected one of {known}")


def _read(reader: Callable, modality: str, file: io.IOBase, name: str):
    try:
        return reader(file, name)
    except (UserInputError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they like on broken files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserInputError(
            f"{name}: not a readable {modality} ({reason}): check that the file is complete "
            f"and really is {_ARTICLES[modality]}"
        ) from error


def _check_file(path: Path, modality: str) -> None:
    if not os.path.exists(path):  # unlike `path.exists()`, False for names that no file can have
        raise UserInputError(f"{path}: no such file; check the path of the {modality}")
    if path.is_dir():
        raise UserInputError(f"{path}: is a folder, expected {_ARTICLES[modality]} file; name a file in it")
    if path.stat().st_size == 0:
        raise UserInputError(f"{path}: the file is empty, expected {_ARTICLES[modality]}; export or copy it again")
    if not os.access(path, os.R_OK):
        raise UserInputError(f"{path}: no permission to read the file; change its permissions")


def _download(address: str) -> bytes:
    import httpx

    try:
        with httpx.stream("GET", address, follow_redirects=True, timeout=30) as response:
            response.raise_for_status()
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_DOWNLOAD_BYTES:
                    raise UserInputError(f"{address}: larger than {MAX_DOWNLOAD_BYTES // 10**6} MB; download it and cut it")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserInputError(f"{address}: could not be fetched ({error}); check the address or give a file") from error
    return bytes(data)


# ---------------------------------------------------------------------- pictures


def _read_image(file: io.IOBase, name: str) -> Image.Image:
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        raise UserInputError(f"{name}: not a picture that can be read; give a PNG, JPEG, WebP, GIF or BMP file") from None
    except Image.DecompressionBombError:
        raise UserInputError(
            f"{name}: the picture has far more than {MAX_PIXELS:,} pixels, the most that are taken; make it smaller"
        ) from None
    return _as_rgb(image, name)


def _as_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserInputError(f"{name}: {width} x {height} pixels, at most {MAX_PIXELS:,} are taken; make it smaller")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # 16 bits or floats: convert() would clip, not scale
        values = np.asarray(image, dtype=np.float32)
        top = max(float(values.max()), 1e-6) if image.mode == "F" else 65535.0
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _ready_image(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return _as_rgb(value)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3:
        return _as_rgb(Image.fromarray(value))
    raise UserInputError(
        f"image given as {_describe(value)}: expected a path, bytes, a PIL image or a uint8 array [height, width, 3]"
    )


# ---------------------------------------------------------------------- sounds


def _read_audio(file: io.IOBase, name: str) -> Audio:
    import soundfile

    _check_wav_length(file, name)
    try:
        with soundfile.SoundFile(file) as sound:
            _check_duration(sound.frames / sound.samplerate, MAX_AUDIO_SECONDS, name)
            array, sampling_rate = sound.read(dtype="float32", always_2d=True).mean(axis=1), sound.samplerate
    except soundfile.LibsndfileError:
        file.seek(0)
        array, sampling_rate = _decode_audio_stream(file, name)
    if not len(array):
        raise UserInputError(f"{name}: the sound has no samples; record or export it again")
    return Audio(np.ascontiguousarray(array, dtype=np.float32), int(sampling_rate))


def _check_wav_length(file: io.IOBase, name: str) -> None:
    """libsndfile reads what is left of a WAV file that was cut off; a user should know instead."""
    header = file.read(12)
    found = file.seek(0, os.SEEK_END)
    file.seek(0)
    if header[:4] != b"RIFF" or header[8:] != b"WAVE":
        return
    expected = int.from_bytes(header[4:8], "little") + 8
    if found < expected - 1 and expected < UNKNOWN_WAV_LENGTH:  # some writers leave out the last padding byte
        raise UserInputError(f"{name}: breaks off after {found:,} of {expected:,} bytes; copy or export it again")


def _decode_audio_stream(file: io.IOBase, name: str) -> tuple[np.ndarray, int]:
    """Containers that libsndfile does not know (m4a, webm, the sound of a video), through FFmpeg."""
    import av

    try:
        with av.open(file, options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.audio:
                raise UserInputError(f"{name}: holds no sound; give a WAV, FLAC, OGG, MP3 or M4A file")
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="flt", layout="mono", rate=stream.rate)
            chunks, samples = [], 0
            for frame in container.decode(stream):
                for out in resampler.resample(frame):
                    chunks.append(out.to_ndarray()[0])
                    samples += out.samples
                _check_duration(samples / stream.rate, MAX_AUDIO_SECONDS, name)
            return np.concatenate(chunks) if chunks else np.zeros(0, np.float32), stream.rate
    except av.FFmpegError as error:
        raise UserInputError(
            f"{name}: not a sound that can be read ({error.strerror}); give a WAV, FLAC, OGG, MP3 or M4A file"
        ) from None


def _ready_audio(value: Any) -> Audio:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], np.ndarray):
        array, sampling_rate = value
        if np.issubdtype(array.dtype, np.integer):
            array = array / float(np.iinfo(array.dtype).max)
        if array.ndim == 2:
            array = array.mean(axis=0 if array.shape[0] < array.shape[1] else 1)
        if array.size and sampling_rate > 0:
            if not np.isfinite(array).all():
                raise UserInputError("audio array holds NaN or infinite samples: clean it first")
            _check_duration(len(array) / sampling_rate, MAX_AUDIO_SECONDS, "audio array")
            return Audio(array.astype(np.float32), int(sampling_rate))
    raise UserInputError(f"audio given as {_describe(value)}: expected a path, bytes or (array of samples, sampling_rate)")


# ---------------------------------------------------------------------- clips


def _read_video(file: io.IOBase, name: str) -> Video:
    import av

    try:
        with av.open(file, options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.video:
                raise UserInputError(f"{name}: holds no pictures; give an MP4, MOV, WebM, AVI or GIF file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            seconds = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / av.time_base
            _check_duration(float(seconds), MAX_VIDEO_SECONDS, name)
            frames, stride, decoded = [], 1, 0
            for i, frame in enumerate(container.decode(stream)):
                decoded = i + 1
                _check_duration(frame.time or 0.0, MAX_VIDEO_SECONDS, name)  # recordings may not know their length
                if i % stride:
                    continue
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) > MAX_VIDEO_FRAMES or len(frames) * frames[0].nbytes > MAX_VIDEO_BYTES:
                    frames, stride = frames[::2], stride * 2  # keeps the whole length, at half the rate
            fps /= stride
            if decoded < MIN_DECODED * stream.frames:
                raise UserInputError(f"{name}: breaks off after {decoded} of {stream.frames} frames; copy it again")
    except av.FFmpegError as error:
        raise UserInputError(
            f"{name}: not a video that can be read ({error.strerror}); give an MP4, MOV, WebM, AVI or GIF file"
        ) from None
    if not frames:
        raise UserInputError(f"{name}: the video has no frames; record or export it again")
    return Video(np.stack(frames), fps or 1.0)


def _ready_video(value: Any) -> Video:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], np.ndarray):
        frames, fps = value
        if frames.ndim == 4 and frames.shape[-1] == 3 and frames.dtype == np.uint8 and len(frames) and fps > 0:
            return Video(frames, float(fps))
    raise UserInputError(
        f"video given as {_describe(value)}: expected a path, bytes or (uint8 frames [time, height, width, 3], fps)"
    )


def _check_duration(seconds: float, limit: int, name: str) -> None:
    if seconds > limit:
        raise UserInputError(f"{name}: {seconds:.0f} s long, at most {limit} s are taken; cut it")


def _describe(value: Any) -> str:
    shape = f" of shape {list(value.shape)} and type {value.dtype}" if isinstance(value, np.ndarray) else ""
    return type(value).__name__ + shape


_ARTICLES = {"image": "an image", "audio": "a sound", "video": "a video"}
_LOADERS = {
    "image": (_read_image, _ready_image),
    "audio": (_read_audio, _ready_audio),
    "video": (_read_video, _ready_video),
}
