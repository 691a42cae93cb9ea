"""Pixels and spectrograms to latents as the denoiser sees them, and back."""

from typing import Any

import torch


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
