"""Pictures by Stable Diffusion 1.x and 2.x. Knows how diffusers' pipeline is called; all else is in base.py."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from nextgpt.decoders.base import Decoder, Preview, encode_images, picture_size, small_pictures


class StableDiffusionDecoder(Decoder):
    """Conditioning: the CLIP text encoder's last hidden state, 77 × 768 (1.x) or 77 × 1024 (2.x)."""

    kind = "stable-diffusion"
    modality = "image"
    pipeline_class = "StableDiffusionPipeline"
    load_options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    defaults = {"num_inference_steps": 50, "guidance_scale": 7.5, "height": None, "width": None}

    def _run(
        self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict
    ) -> list[Image.Image]:
        def on_step_end(pipeline, index, timestep, tensors):
            # This callback comes at every evaluation of the UNet; second-order schedulers make two a step.
            after_step(index // pipeline.scheduler.order, tensors["latents"])
            return {}

        # Given only one of height and width, the pipeline would drop it: both are always given.
        options |= picture_size(pipeline, options)
        return pipeline(**arguments, **options, callback_on_step_end=on_step_end).images

    def _preview(self, pipeline, latents: torch.Tensor) -> Preview:
        return lambda: small_pictures(pipeline, latents)

    def _encode_media(self, pipeline, media: Sequence[Image.Image], options: dict) -> torch.Tensor:
        return encode_images(pipeline, media, options)
