"""What decoders hand back. Knows arrays and their units; does not know files, codecs or models."""

from typing import NamedTuple

import numpy as np


class Audio(NamedTuple):
    """One mono sound."""

    array: np.ndarray  # float32 [samples], nominally in [-1, 1]
    sampling_rate: int  # samples per second


class Video(NamedTuple):
    """One clip."""

    frames: np.ndarray  # uint8 [T, H, W, 3], RGB
    fps: float  # frames per second
