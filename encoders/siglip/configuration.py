"""A SigLIP vision tower and its preprocessing, as transformers describes them."""

from huggingface_hub.dataclasses import strict
from transformers import SiglipVisionConfig


@strict
class SiglipEncoderConfig(SiglipVisionConfig):
    """transformers' `SiglipVisionConfig`, with what its image processor needs.

    - `image_mean`, `image_std`: per channel, for values in 0..1.
    """

    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def embed_dim(self) -> int:
        """Width of the one embedding that every picture gets."""
        return self.hidden_size

    @property
    def modalities(self) -> tuple[str, ...]:
        """What can be encoded: images only."""
        return ("image",)
