"""Clips by Zeroscope and its like."""

import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image

from nextgpt.decoders.base import Decoder
from nextgpt.decoders.contract import Preview, Size, multiples
from nextgpt.decoders.media import Video, as_videos, check_equal_lengths, scale_factor
from nextgpt.decoders.pictures import decode_small, encode_images


class TextToVideoDecoder(Decoder):
    """Conditioning: `prompt_embeds`, the CLIP text encoder's last hidden state, 77 × 1024 for Zeroscope.

    The pipeline hands the scheduler all frames of a batch as one, with one generator for each item: only schedulers
    that draw no noise of their own (DDIM, DPM-Solver++, ...) serve batches.
    """

    kind = "text-to-video"
    modality = "video"
    pipeline_class = "TextToVideoSDPipeline"
    # The size of Zeroscope v2 576w; steps, guidance and 8 frames per second as diffusers' pipeline has them.
    defaults = {
        "num_inference_steps": 50,
        "guidance_scale": 9.0,
        "height": 320,
        "width": 576,
        "num_frames": 24,
        "fps": 8,
    }

    def _read_sizes(self) -> dict[str, Size]:
        step = math.lcm(8, scale_factor(self._config("vae")))  # the pipeline takes multiples of 8, whatever the autoencoder
        return {"height": multiples(step), "width": multiples(step), "num_frames": multiples(1)}

    def _run(self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict) -> list[Video]:
        fps = options.pop("fps")
        clips = pipeline(**arguments, **options, callback=lambda index, _, latents: after_step(index, latents)).frames
        return as_videos(clips, fps)

    def _preview(self, pipeline, latents: torch.Tensor) -> Preview:
        middle = latents[:, :, latents.shape[2] // 2]  # [N, channels, frames, h, w] -> [N, channels, h, w]
        return lambda: decode_small(pipeline.vae, middle)

    def _encode_media(self, pipeline, media: Sequence[Video], options: dict) -> torch.Tensor:
        check_equal_lengths(media)
        size = {name: options[name] for name in ("height", "width")}
        clips = [[Image.fromarray(frame) for frame in video.frames] for video in media]
        latents = torch.stack([encode_images(pipeline, clip, **size) for clip in clips])
        return latents.transpose(1, 2)  # [N, T, channels, h, w] -> [N, channels, T, h, w]
