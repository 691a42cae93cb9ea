"""The vision tower of a SigLIP model as the image encoder; the tower's own code is transformers'."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextgpt.encoders.base import Encoder, read_json
from nextgpt.encoders.siglip.configuration import SiglipEncoderConfig
from nextgpt.encoders.siglip.processing import SiglipPreprocessor


class SiglipEncoder(Encoder):
    """SigLIP (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"): pooled, L2-normalised pictures.

    It reads whole SigLIP models, whose text tower is left out, and vision towers by themselves.
    """

    config_class = SiglipEncoderConfig
    preprocessor_class = SiglipPreprocessor
    base_model_prefix = "vision_model"
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^logit_(scale|bias)$"]

    def __init__(self, config: SiglipEncoderConfig):
        from transformers import SiglipVisionModel  # it brings sound libraries along

        super().__init__(config)
        self.vision_model = SiglipVisionModel(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The tower initialises itself."""

    @classmethod
    def model_types(cls) -> tuple[str, ...]:
        """Whole models and vision towers."""
        return ("siglip", "siglip_vision_model")

    @classmethod
    def read_config(cls, source: str, revision: str | None, values: dict[str, Any]) -> SiglipEncoderConfig:
        """The vision tower's numbers, and those of `preprocessor_config.json` where there is one."""
        config = cls.config_class.from_dict(values.get("vision_config", values))
        try:
            preprocessing = read_json(source, "preprocessor_config.json", revision)
        except OSError:
            return config
        for name in ("image_mean", "image_std"):
            setattr(config, name, tuple(preprocessing.get(name, getattr(config, name))))
        return config

    @torch.no_grad()
    def encode(self, modality: str, values: Tensor) -> Tensor:
        """Encode a batch of pictures, [N, 3, H, W] -> [N, embed_dim]; any other modality raises ValueError."""
        if modality not in self.modalities:
            raise ValueError(f"modality is {modality!r}, a SigLIP vision tower knows image only.")
        return self(values.to(self.device, self.dtype))

    def forward(self, image: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, embed_dim], L2-normalised."""
        return F.normalize(self.vision_model(pixel_values=image).pooler_output, dim=-1)
