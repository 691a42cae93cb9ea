"""Clips by Wan."""

import math
import threading
from collections.abc import Callable, Sequence

import torch
from PIL import Image

from nextgpt.decoders.base import Decoder
from nextgpt.decoders.contract import Conditioning, ConditioningSpec, Size, TensorSpec, at_step_end, multiples
from nextgpt.decoders.media import Video, as_videos, check_equal_lengths, encode_pixels
from nextgpt.decoders.pictures import image_pixels
from nextgpt.decoders.sources import exceed, read_t5_shape

TEXT_LENGTH = 512  # at most: the pipeline's own default


class WanDecoder(Decoder):
    """Conditioning: `prompt_embeds`, UMT5's last hidden state, zeros where the caption has ended, 512 × 4096.

    Its autoencoder keeps state while it works: calls take turns.
    """

    kind = "wan"
    modality = "video"
    pipeline_class = "WanPipeline"
    denoiser = "transformer"
    batch_tensors = ("latents", "prompt_embeds", "negative_prompt_embeds")
    autoencoder_files = ("*.json", "vae/*", "transformer/config.json")
    # As diffusers' pipeline has them; 16 frames per second as Wan was trained.
    defaults = {
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "height": 480,
        "width": 832,
        "num_frames": 81,
        "fps": 16,
    }

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._one_at_a_time = threading.Lock()

    @classmethod
    def read_conditioning_spec(cls, source: str, revision: str | None = None) -> ConditioningSpec:
        """The configuration files of the text encoder and of its tokenizer."""
        return {"prompt_embeds": TensorSpec(read_t5_shape(source, revision, TEXT_LENGTH))}

    def _read_sizes(self) -> dict[str, Size]:
        vae, transformer = self._config("vae"), self._config("transformer")
        frames, *sides = transformer["patch_size"]
        positions, time = transformer["rope_max_seq_len"], vae["scale_factor_temporal"]
        pixels = [side * vae["scale_factor_spatial"] for side in sides]  # of a patch
        height, width = (multiples(math.lcm(16, side), most=positions * side) for side in pixels)
        most = (positions * frames - 1) * time + 1
        return {"height": height, "width": width, "num_frames": Size(least=1, step=time, most=most)}

    def _objective_kind(self) -> Callable:
        if (self._index.get("transformer_2") or [None])[-1] is not None or self._index.get("expand_timesteps"):
            raise ValueError(
                f"The decoder '{self.kind}' at {self.source} is a Wan 2.2 (two transformers, or a time for each frame), "
                "which has no denoising loss here. Train without the denoising loss, or name a folder of Wan 2.1."
            )
        return super()._objective_kind()

    def _read_weights(self):
        pipeline = super()._read_weights()
        pipeline.vae.to(torch.float32)  # as diffusers' example of the pipeline loads it; the transformer may be in half
        return pipeline

    def _encode(self, pipeline, captions: list[str]) -> Conditioning:
        length = self.conditioning_spec["prompt_embeds"].queries
        options = {"do_classifier_free_guidance": False, "max_sequence_length": length, "device": self.device}
        return {"prompt_embeds": pipeline.encode_prompt(captions, **options)[0]}

    def _cuts(self, pipeline, captions: list[str]) -> bool:
        return exceed(pipeline.tokenizer, captions, self.conditioning_spec["prompt_embeds"].queries)

    def _denoise(self, pipeline, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return pipeline.transformer(noisy, timesteps, encoder_hidden_states=conditioning["prompt_embeds"]).sample

    def _run(self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict) -> list[Video]:
        fps = options.pop("fps")
        with self._one_at_a_time:
            clips = pipeline(**arguments, **options, **at_step_end(after_step, pipeline)).frames
        return as_videos(clips, fps)

    def _encode_media(self, pipeline, media: Sequence[Video], options: dict) -> torch.Tensor:
        check_equal_lengths(media)
        time = pipeline.vae_scale_factor_temporal
        count = (len(media[0].frames) - 1) // time * time + 1  # what is over is cut off
        clips = [
            image_pixels([Image.fromarray(frame) for frame in video.frames[:count]], options["height"], options["width"])
            for video in media
        ]
        with self._one_at_a_time:
            return encode_pixels(pipeline.vae, torch.stack(clips).transpose(1, 2))  # [N, 3, T, height, width]
