"""What decoders hand back, as arrays with their units; pixels and spectrograms to latents, and back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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


def scale_factor(config: dict) -> int:
    """Pixels (or rows and columns of a spectrogram) for each latent, by the configuration of an autoencoder."""
    channels = config.get("block_out_channels") or config["encoder_block_out_channels"]  # the latter: `AutoencoderDC`
    return 2 ** (len(channels) - 1)


def encode_pixels(vae: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Latents of `pixels` (in [-1, 1], or a spectrogram or waveform), scaled as the denoiser sees them.

    Of a distribution it is the mode.
    """
    encoded = vae.encode(pixels.to(vae.device, vae.dtype))
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    offset, scale = _offset_and_scale(vae.config, latents)
    return (latents - offset) * scale


def decode_latents(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """The inverse: latents as the denoiser sees them → pixels."""
    offset, scale = _offset_and_scale(vae.config, latents)
    return vae.decode((latents / scale + offset).to(vae.dtype)).sample


def _offset_and_scale(config: Any, latents: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """What is taken off the autoencoder's latents, and then multiplied: for all at once or for each channel (SDXL, Wan)."""
    offset, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shape = (-1, *[1] * (latents.ndim - 2))  # [channels, 1, …]
        mean, deviation = (torch.tensor(config[name]).to(latents).view(shape) for name in ("latents_mean", "latents_std"))
        return mean, scale / deviation
    return offset, scale
