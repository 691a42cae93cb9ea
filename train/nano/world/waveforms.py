"""Waveforms as they are stored: 16-bit integers, and Ogg Opus in a package."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

OPUS = 0.92  # how much is left out in a package, 0..1: 7 kB a sound remain, and the classifier hears no difference


def as_floats(waveforms: np.ndarray) -> Tensor:
    """Waveforms int16 → float32 in -1..1."""
    return torch.from_numpy(waveforms.astype(np.float32)) / 32768


def in_parts(compute: Callable[[Tensor], Tensor], waveforms: np.ndarray, size: int = 64) -> Tensor:
    """`compute` of waveforms int16 `[N, samples]` as floats, so many at once: thousands as floats are gigabytes."""
    return torch.cat([compute(as_floats(waveforms[start : start + size])) for start in range(0, len(waveforms), size)])


def as_integers(waveforms: Sequence[np.ndarray]) -> np.ndarray:
    """Waveforms in -1..1 of one length → int16 `[N, samples]`."""
    return (np.stack(waveforms) * 32767).round().astype(np.int16)


def as_opus(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """A waveform int16 `[samples]` as an Ogg Opus file; samples a second."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, waveform, sampling_rate, format="OGG", subtype="OPUS", compression_level=OPUS)
    return file.getvalue()


def from_opus(file: bytes) -> np.ndarray:
    """The waveform int16 `[samples]` of a mono Ogg Opus file."""
    import soundfile

    return soundfile.read(io.BytesIO(file), dtype="int16")[0]
