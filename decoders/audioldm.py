"""Sounds by AudioLDM. Knows CLAP's conditioning and the vocoder's spectrogram; all else is in base.py."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from nextgpt.decoders.base import Decoder, encode_pixels, required_size
from nextgpt.decoders.media import Audio
from nextgpt.decoders.sources import read_json


class AudioLDMDecoder(Decoder):
    """Conditioning: the CLAP text embedding on the unit sphere, 1 × 512. Only its direction counts, not its length.

    The pipeline takes it without the query axis, [N, 512], and gives it to the UNet as class labels.
    """

    kind = "audioldm"
    modality = "audio"
    pipeline_class = "AudioLDMPipeline"
    defaults = {"num_inference_steps": 50, "guidance_scale": 2.5, "duration": None}

    def _read_weights(self):
        import nextgpt.decoders.vocoder  # noqa: F401  diffusers loads a vocoder of this kind only where it is imported

        return super()._read_weights()

    @classmethod
    def read_conditioning_shape(cls, source: str, revision: str | None = None) -> tuple[int, int]:
        """One query, as wide as CLAP's shared text and audio space."""
        return 1, required_size(read_json(source, "text_encoder/config.json", revision), "projection_dim", source)

    def _encode(self, pipeline, captions: list[str]) -> torch.Tensor:
        # The pipeline has no public way to encode only; this method L2-normalises as AudioLDM was trained.
        return pipeline._encode_prompt(captions, self.device, 1, False)[:, None]

    def _prompt_embeds(self, conditioning: torch.Tensor) -> torch.Tensor:
        return F.normalize(conditioning[:, 0].float(), dim=-1).to(self.device, self.dtype)

    def _denoise(self, unet, noisy: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        return unet(noisy, timesteps, encoder_hidden_states=None, class_labels=prompt_embeds).sample

    def _run(self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict) -> list[Audio]:
        duration = options.pop("duration")
        _check_duration(pipeline, duration)
        waveforms = pipeline(
            **arguments,
            **options,
            audio_length_in_s=duration,
            callback=lambda index, _, latents: after_step(index, latents),
        ).audios  # [N, samples]
        return [Audio(waveform, pipeline.vocoder.config.sampling_rate) for waveform in waveforms]

    def _encode_media(self, pipeline, media: Sequence[Audio], options: dict) -> torch.Tensor:
        vocoder = pipeline.vocoder.config
        hop_length = math.prod(vocoder.upsample_rates)
        frames = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        if options["duration"] is not None:
            _check_duration(pipeline, options["duration"])
            frames = int(options["duration"] * vocoder.sampling_rate / hop_length)
            frames = math.ceil(frames / pipeline.vae_scale_factor) * pipeline.vae_scale_factor
        waveforms = [_fit(audio, vocoder.sampling_rate, frames * hop_length) for audio in media]
        spectrograms = log_mel_spectrogram(torch.stack(waveforms), vocoder.sampling_rate, hop_length, vocoder.model_in_dim)
        return encode_pixels(pipeline.vae, spectrograms[:, None, :frames])


def log_mel_spectrogram(waveforms: torch.Tensor, sampling_rate: int, hop_length: int, num_mel_bins: int) -> torch.Tensor:
    """The log-mel spectrogram of HiFi-GAN vocoders, as AudioLDM computes it (audio processing of its reference code).

    Magnitude, not power; Slaney's mel scale and normalisation from 0 Hz to half the sampling rate; natural logarithm,
    floored at 1e-5. The window is four hops, rounded up to a power of two: 1024 samples for AudioLDM's hop of 160.

    Args:
        waveforms: float [N, samples], longer than half a window.

    Returns:
        [N, samples // hop_length + 1, num_mel_bins]
    """
    from torchaudio.transforms import MelSpectrogram

    transform = MelSpectrogram(
        sampling_rate,
        n_fft=2 ** math.ceil(math.log2(4 * hop_length)),
        hop_length=hop_length,
        n_mels=num_mel_bins,
        power=1.0,
        norm="slaney",
        mel_scale="slaney",
    ).to(waveforms.device)
    return transform(waveforms).clamp(min=1e-5).log().transpose(1, 2)


def _fit(audio: Audio, sampling_rate: int, samples: int) -> torch.Tensor:
    """`audio` at `sampling_rate`, cut or padded with silence to exactly `samples`."""
    from torchaudio.functional import resample

    waveform = torch.from_numpy(np.asarray(audio.array, dtype=np.float32))
    waveform = resample(waveform, audio.sampling_rate, sampling_rate)[:samples]
    return F.pad(waveform, (0, samples - len(waveform)))


def _check_duration(pipeline, duration: float | None) -> None:
    vocoder = pipeline.vocoder.config
    shortest = pipeline.vae_scale_factor * math.prod(vocoder.upsample_rates) / vocoder.sampling_rate
    if duration is not None and duration < shortest:
        raise ValueError(f"duration={duration} seconds is too short for this decoder: give at least {shortest:g}.")
