"""True media there and back through a decoder's frozen parts, without any denoising: what no denoiser can do better than."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.decoders import Audio, Decoder, Video
from nextgpt.decoders.audioldm import log_mel_spectrogram
from nextgpt.decoders.media import scale_factor
from nextgpt.events import Media

BATCH = 16


def vocoder_of(decoder: Decoder) -> nn.Module:
    """The vocoder of a sound decoder: beside its pipeline, or a part of it."""
    return getattr(decoder, "vocoder", None) or decoder.pipeline.vocoder


@torch.no_grad()
def reconstruct(media: Sequence[Media], autoencoder: nn.Module | None, vocoder: nn.Module | None = None) -> list[Media]:
    """Media through an autoencoder and back; sounds through a vocoder too.

    Args:
        media: pictures, sounds or clips, all of one kind and of the size that the decoder makes.
        autoencoder: None for sounds that go through the vocoder alone.
    """
    again: list[Media] = []
    for start in range(0, len(media), BATCH):
        some = media[start : start + BATCH]
        if isinstance(some[0], Audio):
            again += _sounds(some, autoencoder, vocoder)
        else:
            again += [_clip_or_picture(autoencoder, medium) for medium in some]
    return again


def _clip_or_picture(vae: nn.Module, medium: Media) -> Media:
    frames = np.asarray(medium.frames if isinstance(medium, Video) else medium)
    pixels = torch.from_numpy(frames.copy()).view(-1, *frames.shape[-3:]).permute(0, 3, 1, 2)  # [T, 3, H, W]
    decoded = _through(vae, pixels.float() / 127.5 - 1)
    pixels = ((decoded + 1) * 127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()
    return Video(pixels, medium.fps) if isinstance(medium, Video) else Image.fromarray(pixels[0])


def _sounds(sounds: Sequence[Audio], autoencoder: nn.Module | None, vocoder: nn.Module) -> list[Audio]:
    config = vocoder.config
    hop = math.prod(config.upsample_rates)
    waveforms = torch.stack([torch.from_numpy(np.asarray(sound.array, np.float32)) for sound in sounds])
    factor = scale_factor(autoencoder.config) if autoencoder is not None else 1
    frames = math.ceil(math.ceil(waveforms.shape[1] / hop) / factor) * factor
    padded = F.pad(waveforms, (0, frames * hop - waveforms.shape[1]))
    mels = log_mel_spectrogram(padded, config.sampling_rate, hop, config.model_in_dim)[:, :frames]
    if autoencoder is not None:
        mels = _through(autoencoder, mels[:, None])[:, 0]
    again = vocoder(mels.to(vocoder.device, vocoder.dtype)).float().cpu()[:, : waveforms.shape[1]]
    return [Audio(waveform.numpy(), config.sampling_rate) for waveform in again]


def _through(vae: nn.Module, pixels: Tensor) -> Tensor:
    """Pixels `[N, C, H, W]` in -1..1, or spectrograms, to latents and back: the mode, where there is a distribution."""
    encoded = vae.encode(pixels.to(vae.device, vae.dtype))
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    return vae.decode(latents).sample.float().cpu()
