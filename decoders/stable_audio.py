"""Sounds by Stable Audio."""

import math
from collections.abc import Callable, Sequence

import torch

from nextgpt.decoders.base import Decoder
from nextgpt.decoders.contract import Conditioning, ConditioningSpec, Size, TensorSpec
from nextgpt.decoders.media import Audio, encode_pixels, fit_waveform
from nextgpt.decoders.sources import read_config, read_t5_shape


class StableAudioDecoder(Decoder):
    """Conditioning: `prompt_embeds`, T5's last hidden state, zeros where the caption has ended, 128 × 768.

    The pipeline itself adds the duration, and makes what guidance goes against: zeros. Stereo comes out as the mean of its
    two channels. The published weights name a scheduler that needs the package torchsde.
    """

    kind = "stable-audio"
    modality = "audio"
    pipeline_class = "StableAudioPipeline"
    denoiser = "transformer"
    text_encoder_files = (*Decoder.text_encoder_files, "projection_model/*")
    autoencoder_files = ("*.json", "vae/*", "transformer/config.json")
    defaults = {"num_inference_steps": 100, "guidance_scale": 7.0, "duration": None}

    @classmethod
    def read_conditioning_spec(cls, source: str, revision: str | None = None) -> ConditioningSpec:
        """The configuration files of the text encoder, its tokenizer and the projection model.

        Raises:
            ValueError: the projection model changes the text's states, which the pipeline would do to ours once more.
        """
        projection = read_config(source, "projection_model", revision)
        length, width = read_t5_shape(source, revision)
        if (projection.get("text_encoder_dim"), projection.get("conditioning_dim")) != (width, width):
            raise ValueError(
                f"{source}: its projection_model takes states of {projection.get('text_encoder_dim')} to "
                f"{projection.get('conditioning_dim')}; expected {width} to {width}, as its text encoder gives them."
            )
        return {"prompt_embeds": TensorSpec((length, width))}

    @property
    def sampling_rate(self) -> int:
        """Samples per second, from the autoencoder's configuration."""
        return self._config("vae")["sampling_rate"]

    def _read_sizes(self) -> dict[str, Size]:
        vae = self._config("vae")
        seconds = math.prod(vae["downsampling_ratios"]) / self.sampling_rate  # of a latent
        longest = self._config("transformer")["sample_size"] * seconds
        return {"duration": Size(least=seconds, most=longest, default=longest)}

    def _encode(self, pipeline, captions: list[str]) -> Conditioning:
        return {"prompt_embeds": pipeline.encode_prompt(captions, self.device, False)}

    def _encode_empty(self, pipeline) -> None:
        return None

    def _denoise(self, pipeline, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        duration = self.generation_defaults["duration"] or self.sizes["duration"].default
        start, end = pipeline.encode_duration(0.0, duration, noisy.device, False, len(noisy))
        length = noisy.shape[-1] + 1  # one more for the durations, which the transformer puts before the latents
        rotary = get_1d_rotary_pos_embed(pipeline.rotary_embed_dim, length, use_real=True, repeat_interleave_real=False)
        return pipeline.transformer(
            noisy,
            timesteps,
            encoder_hidden_states=torch.cat([conditioning["prompt_embeds"], start, end], dim=1),
            global_hidden_states=torch.cat([start, end], dim=2),
            rotary_embedding=rotary,
        ).sample

    def _run(self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict) -> list[Audio]:
        waveforms = pipeline(
            **arguments,
            audio_end_in_s=options.pop("duration"),
            **options,
            callback=lambda index, _, latents: after_step(index, latents),
        ).audios  # [N, channels, samples]
        return [Audio(each.mean(0).float().cpu().numpy(), self.sampling_rate) for each in waveforms]

    def _encode_media(self, pipeline, media: Sequence[Audio], options: dict) -> torch.Tensor:
        vae = pipeline.vae
        samples = pipeline.transformer.config.sample_size * vae.hop_length  # always the whole window, silence at its end
        waveforms = torch.stack([fit_waveform(audio, vae.config.sampling_rate, samples) for audio in media])
        return encode_pixels(vae, waveforms[:, None].expand(-1, vae.config.audio_channels, -1))
