"""Reads sounds. One rule for all: integers are scaled by their type, floats lie in -1..1, channels are averaged."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nextgpt.decoders import Audio
from nextgpt.errors import UserInputError
from nextgpt.media.images import describe
from nextgpt.media.kinds import declared_seconds, open_container, wrong_kind
from nextgpt.media.limits import check_duration, check_samples, check_whole
from nextgpt.modalities import MODALITIES

UNKNOWN_WAV_LENGTH = 0x7FFF0000  # programs that write to a pipe put such a number in place of the length
UNKNOWN_FRAMES = 2**62
BLOCK = 65_536  # samples of each channel that are read at once
# Beyond full scale: resampling leads a little there, a diffusion decoder further, a lossy codec (at a damaged place)
# anywhere. So much is clipped; what goes further was never in -1..1.
HIGHEST_FLOAT = 1.1
HIGHEST_MADE = 4.0
HIGHEST_DECODED = math.inf


def read_audio(file: BinaryIO, name: str) -> Audio:
    """A sound file, or the sound of a video → mono float32.

    Raises:
        UserInputError: it holds no sound, is broken or too long, or its samples are not finite or beyond full scale.
    """
    _check_wav_length(file, name)
    samples, sampling_rate = _read_libsndfile(file, name) or _read_stream(file, name)
    if not len(samples):
        raise UserInputError(f"{name}: the sound has no samples; record or export it again")
    return Audio(samples, int(sampling_rate))


def ready_audio(value: Any) -> Audio:
    """`(array, sampling_rate)`, `[samples]`, `[channels, samples]` or `[samples, channels]` → mono float32."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], np.ndarray):
        array, sampling_rate = value
        is_rate = isinstance(sampling_rate, (int, float, np.number)) and sampling_rate > 0 and math.isfinite(sampling_rate)
        if array.ndim in (1, 2) and array.size and array.dtype.kind in "iuf" and is_rate:
            samples = array.reshape(len(array), -1)
            if array.ndim == 2 and array.shape[0] < array.shape[1]:
                samples = array.T
            if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
                raise UserInputError(
                    f"audio array is {array.dtype}, a type that no sound has full scale in: expected int16, int32, uint8 or "
                    "floats in -1..1; convert it to the type that it was recorded in"
                )
            check_duration("audio", len(samples) / sampling_rate, "audio array")
            highest = HIGHEST_MADE if isinstance(value, Audio) else HIGHEST_FLOAT
            return Audio(_mono(scaled(samples), "audio array", highest), int(sampling_rate))
    raise UserInputError(f"audio given as {describe(value)}: expected a path, bytes or (array of samples, sampling_rate)")


def save_audio(audio: Audio, path: str | Path) -> None:
    """Writes a sound as WAV with 16 bits a sample."""
    import soundfile

    soundfile.write(path, audio.array, audio.sampling_rate, subtype="PCM_16")


def scaled(samples: np.ndarray) -> np.ndarray:
    """Samples of any type → floats, full scale of an integer type at -1..1; unsigned ones lie around the middle."""
    if samples.dtype.kind == "f":
        return samples
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    floats = samples.astype(np.float32 if samples.dtype.itemsize <= 2 else np.float64)
    return (floats - half if samples.dtype.kind == "u" else floats) / half


def _mono(samples: np.ndarray, name: str, highest: float) -> np.ndarray:
    """Float samples `[samples, channels]` → float32 `[samples]`, the mean of the channels, in -1..1.

    Args:
        highest: what is beyond full scale, but not beyond this, is clipped.
    """
    if not np.isfinite(samples).all():
        raise UserInputError(f"{name}: holds NaN or infinite samples; clean it or export it again")
    peak = float(np.abs(samples).max(initial=0))
    if peak > highest:
        raise UserInputError(
            f"{name}: holds float samples up to {peak:.4g}, expected -1 to 1; divide them by their full scale "
            "(16-bit values by 32768) or lower the level"
        )
    return np.ascontiguousarray(samples.mean(axis=1).clip(-1, 1), dtype=np.float32)


def _check_wav_length(file: BinaryIO, name: str) -> None:
    """libsndfile reads what is left of a WAV file that was cut off; a user should know instead."""
    header = file.read(12)
    found = file.seek(0, os.SEEK_END)
    file.seek(0)
    if header[:4] != b"RIFF" or header[8:] != b"WAVE":
        return
    expected = int.from_bytes(header[4:8], "little") + 8
    if found < expected - 1 and expected < UNKNOWN_WAV_LENGTH:  # some writers leave out the last padding byte
        raise UserInputError(f"{name}: breaks off after {found:,} of {expected:,} bytes; copy or export it again")


def _decoded(container: Any, stream: Any) -> Iterator[tuple[np.ndarray, int]]:
    """The float32 samples of each frame, `[channels, samples]`, and the rate of all; the channels may change midway."""
    import av

    rate, form, resampler = 0, None, None
    for frame in _frames(container, stream):
        rate = rate or frame.sample_rate
        if form != (frame.format.name, frame.layout.name, frame.sample_rate):
            form = frame.format.name, frame.layout.name, frame.sample_rate
            resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
        for out in resampler.resample(frame):
            yield out.to_ndarray(), rate
    for out in resampler.resample(None) if resampler is not None else ():
        yield out.to_ndarray(), rate


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """The decoded frames of a stream. Of MP3 and AAC, which have no other frame around, broken ones are left out."""
    import av

    found, broken = 0, None
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            if container.format.name not in ("mp3", "aac"):
                raise
            broken = error
            continue
        found += len(frames)
        yield from frames
    if broken is not None and not found:
        raise broken


def _read_libsndfile(file: BinaryIO, name: str) -> tuple[np.ndarray, int] | None:
    """As `_read_stream`, what libsndfile reads; None for the rest.

    MP3 is left to FFmpeg: where no header says its length, libsndfile guesses it and reads no further. So is FLAC that
    was written to a pipe, which says none either.
    """
    import soundfile

    header = file.read(3)
    file.seek(0)
    if header == b"ID3" or header[:1] == b"\xff":
        return None
    try:
        with soundfile.SoundFile(file) as sound:
            if sound.format != "MP3" and sound.frames < UNKNOWN_FRAMES:
                check_duration("audio", sound.frames / sound.samplerate, name)
                check_samples(sound.frames, name)
                highest = HIGHEST_FLOAT if sound.subtype in ("FLOAT", "DOUBLE") else HIGHEST_DECODED
                blocks = sound.blocks(BLOCK, dtype="float32", always_2d=True)  # channels may be many: never all at once
                samples = np.concatenate([_mono(block, name, highest) for block in blocks] or [np.zeros(0, np.float32)])
                check_whole(len(samples) / sound.samplerate, sound.frames / sound.samplerate, name)
                return samples, sound.samplerate
    except soundfile.LibsndfileError:
        pass
    file.seek(0)
    return None


def _read_stream(file: BinaryIO, name: str) -> tuple[np.ndarray, int]:
    """Containers that libsndfile does not know (m4a, webm, the sound of a video), through FFmpeg.

    FFmpeg's own mixing to mono would weigh the channels by their place; the rule here is the plain mean.

    Returns:
        Mono float32 samples, and their rate.
    """
    import av

    try:
        with open_container(file) as container:
            if not container.streams.audio:
                raise UserInputError(f"{name}: holds no sound; give {MODALITIES['audio'].formats}")
            stream = container.streams.audio[0]
            highest = HIGHEST_FLOAT if stream.codec_context.name.startswith("pcm_f") else HIGHEST_DECODED
            rate, chunks, count, seconds = 0, [np.zeros(0, np.float32)], 0, 0.0
            for channels, rate in _decoded(container, stream):
                chunks.append(_mono(channels.T, name, highest))
                count += len(chunks[-1])
                seconds = count / rate
                check_duration("audio", seconds, name)
                check_samples(count, name)
            check_whole(seconds, declared_seconds(container, stream), name)
            return np.concatenate(chunks), rate or stream.rate
    except av.FFmpegError as error:
        raise wrong_kind(file, name, "audio", error.strerror) from None
