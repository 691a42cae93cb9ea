"""What decoders of pictures share: one call, one size, previews."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from nextgpt.decoders.base import Decoder
from nextgpt.decoders.contract import Preview, Size, at_step_end, multiples
from nextgpt.decoders.media import decode_latents, encode_pixels, scale_factor

PREVIEW_LATENTS = 32  # a preview decodes at most so many latents a side: 256 pixels, a quarter of the work at 512


class PictureDecoder(Decoder):
    """A pipeline that is called with a height and a width and gives pictures.

    A subclass names its pipeline and its conditioning.
    """

    modality = "image"
    batch_tensors = ("latents", "prompt_embeds")

    def _read_sizes(self) -> dict[str, Size]:
        config = self._config(self.denoiser)
        factor = scale_factor(self._config("vae"))
        step, most = self._side(factor, config)
        sides = config["sample_size"]
        height, width = (sides, sides) if isinstance(sides, int) else sides
        return {"height": multiples(step, height * factor, most), "width": multiples(step, width * factor, most)}

    def _side(self, factor: int, config: dict) -> tuple[int, int | None]:
        """What a side must be a multiple of, and at most, in pixels; `config` of the denoiser."""
        return math.lcm(8, factor), None  # Stable Diffusion's pipelines take multiples of 8, whatever the autoencoder

    def _run(
        self, pipeline, after_step: Callable[[int, torch.Tensor], None], options: dict, arguments: dict
    ) -> list[Image.Image]:
        # Given only one of height and width, the pipeline would drop it: both are always given.
        options |= self._picture_size(options)
        return pipeline(**arguments, **options, **at_step_end(after_step, pipeline)).images

    def _picture_size(self, options: dict) -> dict[str, int]:
        """`height` and `width` in pixels, each the one that the weights were made for where `options` say None."""
        return {name: options[name] or int(self.sizes[name].default) for name in ("height", "width")}

    def _preview(self, pipeline, latents: torch.Tensor) -> Preview:
        return lambda: decode_small(pipeline.vae, latents)

    def _encode_media(self, pipeline, media: Sequence[Image.Image], options: dict) -> torch.Tensor:
        return encode_images(pipeline, media, **self._picture_size(options))


@torch.no_grad()
def decode_small(vae: torch.nn.Module, latents: torch.Tensor) -> list[Image.Image]:
    """Pictures of latents `[N, channels, h, w]`, decoded small for a preview."""
    from diffusers.image_processor import VaeImageProcessor

    height, width = latents.shape[-2:]
    shrink = min(1.0, PREVIEW_LATENTS / max(height, width))
    small = F.interpolate(latents, size=(max(1, int(height * shrink)), max(1, int(width * shrink))), mode="area")
    return VaeImageProcessor().postprocess(decode_latents(vae, small), output_type="pil")


def image_pixels(images: Sequence[Image.Image], height: int, width: int) -> torch.Tensor:
    """Pictures, scaled and centre-cropped to a size: `[N, 3, height, width]` in [-1, 1]."""
    from diffusers.image_processor import VaeImageProcessor

    processor = VaeImageProcessor(vae_scale_factor=1)
    return processor.preprocess([image.convert("RGB") for image in images], resize_mode="crop", height=height, width=width)


def encode_images(pipeline: Any, images: Sequence[Image.Image], height: int, width: int) -> torch.Tensor:
    """Latents `[N, channels, h, w]` of pictures, scaled and centre-cropped to a size."""
    return encode_pixels(pipeline.vae, image_pixels(images, height, width))
