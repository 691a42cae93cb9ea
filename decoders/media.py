"""What decoders hand back, as arrays with their units."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


class Audio(NamedTuple):
    """One mono sound."""

    array: np.ndarray  # float32 [samples], nominally in [-1, 1]
    sampling_rate: int  # samples per second


class Video(NamedTuple):
    """One clip."""

    frames: np.ndarray  # uint8 [T, H, W, 3], RGB
    fps: float  # frames per second


def as_videos(clips: np.ndarray, fps: float) -> list[Video]:
    """Clips `[N, T, H, W, 3]` in [0, 1], as pipelines give them."""
    return [Video(np.rint(clip * 255).astype(np.uint8), fps) for clip in clips]


def check_equal_lengths(videos: Sequence[Video]) -> None:
    """Raises ValueError where clips of one batch differ in their number of frames."""
    lengths = {len(video.frames) for video in videos}
    if len(lengths) > 1:
        raise ValueError(f"Clips of {sorted(lengths)} frames do not fit in one batch: give each the same number.")


def fit_waveform(audio: Audio, sampling_rate: int, samples: int) -> torch.Tensor:
    """`audio` at `sampling_rate`, cut or padded with silence to exactly `samples`."""
    from torchaudio.functional import resample

    waveform = torch.from_numpy(np.asarray(audio.array, dtype=np.float32))
    waveform = resample(waveform, audio.sampling_rate, sampling_rate)[:samples]
    return F.pad(waveform, (0, samples - len(waveform)))
