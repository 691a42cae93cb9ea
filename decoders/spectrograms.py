"""Sounds by a Stable Diffusion 3 that draws their spectrograms, as Riffusion does (Forsgren and Martiros 2022)."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from nextgpt.decoders.audioldm import log_mel_spectrogram
from nextgpt.decoders.contract import Preview, Size, at_step_end
from nextgpt.decoders.media import Audio, decode_latents, encode_pixels, fit_waveform, scale_factor
from nextgpt.decoders.sources import LOADING, local_folder
from nextgpt.decoders.stable_diffusion_3 import StableDiffusion3Decoder


class SpectrogramDecoder(StableDiffusion3Decoder):
    """Conditioning: as of Stable Diffusion 3.

    Its pictures have one channel, a log-mel spectrogram: time downwards, one pixel a frame, and pitch to the right. The
    folder's `vocoder/` makes waveforms of them. A spectrogram is as long as the transformer's patches are made for: a
    sound may be shorter, never longer.
    """

    kind = "stable-diffusion-3-spectrograms"
    modality = "audio"
    autoencoder_files = (*StableDiffusion3Decoder.autoencoder_files, "vocoder/config.json")
    defaults = {"num_inference_steps": 28, "guidance_scale": 7.0, "duration": None}

    @property
    def sampling_rate(self) -> int:
        """Samples per second, from the vocoder's configuration."""
        return self._config("vocoder")["sampling_rate"]

    @property
    def _hop_length(self) -> int:
        return math.prod(self._config("vocoder")["upsample_rates"])

    @property
    def _bands(self) -> int:
        return self._config("vocoder")["model_in_dim"]

    @property
    def _frames(self) -> int:
        return self._side(scale_factor(self._config("vae")), self._config("transformer"))[1]

    def _read_sizes(self) -> dict[str, Size]:
        step, _ = self._side(scale_factor(self._config("vae")), self._config("transformer"))
        if self._bands % step:
            raise ValueError(
                f"{self.source}: its vocoder takes {self._bands} mel bands, its transformer draws multiples of {step}. "
                "They belong to different models."
            )
        second = self.sampling_rate / self._hop_length  # in frames
        return {"duration": Size(least=1 / second, most=self._frames / second, default=self._frames / second)}

    @cached_property
    def vocoder(self) -> torch.nn.Module:
        """The frozen vocoder; the first use loads it."""
        from transformers import SpeechT5HifiGan

        from nextgpt.decoders.vocoder import GriffinLimVocoder

        folder = local_folder(self.source)
        config = self._config("vocoder")
        is_griffin_lim = config["model_type"] == GriffinLimVocoder.config_class.model_type
        kind, dtype = (GriffinLimVocoder, torch.float32) if is_griffin_lim else (SpeechT5HifiGan, self.dtype)
        place = {"subfolder": "vocoder", "revision": self.revision} if folder is None else {}
        with LOADING:
            vocoder = kind.from_pretrained(self.source if folder is None else folder / "vocoder", dtype=dtype, **place)
        return vocoder.to(self.device).requires_grad_(False).eval()

    def _run(self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict) -> list[Audio]:
        duration = options.pop("duration")
        latents = pipeline(
            **arguments,
            **options,
            height=self._frames,
            width=self._bands,
            output_type="latent",
            **at_step_end(after_step, pipeline),
        ).images
        spectrograms = decode_latents(pipeline.vae, latents)[:, 0]  # [N, frames, bands]
        waveforms = self.vocoder(spectrograms.to(self.vocoder.dtype)).float().cpu()
        samples = waveforms.shape[1] if duration is None else round(duration * self.sampling_rate)
        return [Audio(waveform[:samples].numpy(), self.sampling_rate) for waveform in waveforms]

    def _preview(self, pipeline, latents: torch.Tensor) -> Preview | None:
        return None

    def _encode_media(self, pipeline, media: Sequence[Audio], options: dict) -> torch.Tensor:
        waveforms = [fit_waveform(audio, self.sampling_rate, self._frames * self._hop_length) for audio in media]
        spectrograms = log_mel_spectrogram(torch.stack(waveforms), self.sampling_rate, self._hop_length, self._bands)
        return encode_pixels(pipeline.vae, spectrograms[:, None, : self._frames])
