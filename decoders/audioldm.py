"""Sounds by AudioLDM: CLAP's embedding in, the vocoder's spectrogram out."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from nextgpt.decoders.base import Decoder
from nextgpt.decoders.contract import Conditioning, ConditioningSpec, Size, TensorSpec
from nextgpt.decoders.media import Audio, encode_pixels, fit_waveform, scale_factor
from nextgpt.decoders.sources import read_config, required_size


class AudioLDMDecoder(Decoder):
    """Conditioning: `prompt_embeds`, the CLAP text embedding on the unit sphere, 512. Only its direction counts.

    The pipeline gives it to the UNet as class labels.
    """

    kind = "audioldm"
    modality = "audio"
    pipeline_class = "AudioLDMPipeline"
    autoencoder_files = (*Decoder.autoencoder_files, "vocoder/config.json")
    defaults = {"num_inference_steps": 50, "guidance_scale": 2.5, "duration": None}

    def _read_weights(self):
        import nextgpt.decoders.vocoder  # noqa: F401  diffusers loads a vocoder of this kind only where it is imported

        return super()._read_weights()

    @classmethod
    def read_conditioning_spec(cls, source: str, revision: str | None = None) -> ConditioningSpec:
        """One vector, as wide as CLAP's shared text and audio space."""
        config = read_config(source, "text_encoder", revision)
        return {"prompt_embeds": TensorSpec((required_size(config, "projection_dim", source),))}

    @property
    def sampling_rate(self) -> int:
        """Samples per second, from the vocoder's configuration."""
        return self._config("vocoder")["sampling_rate"]

    def _read_sizes(self) -> dict[str, Size]:
        vocoder, factor = self._config("vocoder"), scale_factor(self._config("vae"))
        seconds = factor * math.prod(vocoder["upsample_rates"]) / self.sampling_rate  # of a row of latents
        sample_size = self._config("unet")["sample_size"]
        return {"duration": Size(least=seconds, default=sample_size * seconds)}

    def _encode(self, pipeline, captions: list[str]) -> Conditioning:
        # The pipeline has no public way to encode only; this method L2-normalises as AudioLDM was trained.
        return {"prompt_embeds": pipeline._encode_prompt(captions, self.device, 1, False)}

    def _prepare(self, conditioning: Conditioning) -> Conditioning:
        embeds = F.normalize(conditioning["prompt_embeds"].float(), dim=-1)
        return super()._prepare({"prompt_embeds": embeds})

    def _denoise(self, pipeline, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        labels = conditioning["prompt_embeds"]
        return pipeline.unet(noisy, timesteps, encoder_hidden_states=None, class_labels=labels).sample

    def _run(self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict) -> list[Audio]:
        waveforms = pipeline(
            **arguments,
            audio_length_in_s=options.pop("duration"),
            **options,
            callback=lambda index, _, latents: after_step(index, latents),
        ).audios  # [N, samples]
        return [Audio(waveform, self.sampling_rate) for waveform in waveforms]

    def _encode_media(self, pipeline, media: Sequence[Audio], options: dict) -> torch.Tensor:
        vocoder = pipeline.vocoder.config
        hop_length = math.prod(vocoder.upsample_rates)
        frames = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        if options["duration"] is not None:
            frames = int(options["duration"] * vocoder.sampling_rate / hop_length)
            frames = math.ceil(frames / pipeline.vae_scale_factor) * pipeline.vae_scale_factor
        waveforms = torch.stack([fit_waveform(audio, vocoder.sampling_rate, frames * hop_length) for audio in media])
        spectrograms = log_mel_spectrogram(waveforms, vocoder.sampling_rate, hop_length, vocoder.model_in_dim)
        return encode_pixels(pipeline.vae, spectrograms[:, None, :frames])


def window_size(hop_length: int) -> int:
    """Samples of a spectrogram's window: four hops, rounded up to a power of two; 1024 for AudioLDM's hop of 160."""
    return 2 ** math.ceil(math.log2(4 * hop_length))


def log_mel_spectrogram(waveforms: torch.Tensor, sampling_rate: int, hop_length: int, num_mel_bins: int) -> torch.Tensor:
    """The log-mel spectrogram of HiFi-GAN vocoders, as AudioLDM computes it (audio processing of its reference code).

    Magnitude, not power; Slaney's mel scale and normalisation from 0 Hz to half the sampling rate; natural logarithm,
    floored at 1e-5. The window is `window_size`.

    Args:
        waveforms: float [N, samples], longer than half a window.

    Returns:
        [N, samples // hop_length + 1, num_mel_bins]
    """
    from torchaudio.transforms import MelSpectrogram

    transform = MelSpectrogram(
        sampling_rate,
        n_fft=window_size(hop_length),
        hop_length=hop_length,
        n_mels=num_mel_bins,
        power=1.0,
        norm="slaney",
        mel_scale="slaney",
    ).to(waveforms.device)
    return transform(waveforms).clamp(min=1e-5).log().transpose(1, 2)
