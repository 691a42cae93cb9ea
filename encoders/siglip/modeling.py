"""The vision tower of a SigLIP model as the image encoder; the tower's own code is transformers'."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SiglipVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from nextgpt.encoders.base import Encoder, read_json
from nextgpt.encoders.siglip.configuration import SiglipEncoderConfig
from nextgpt.encoders.siglip.processing import SiglipPreprocessor


class SiglipEncoder(SiglipVisionModel, Encoder):
    """SigLIP (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"): pooled, L2-normalised pictures.

    It reads whole SigLIP models, whose text tower is left out, and vision towers by themselves.
    """

    config_class = SiglipEncoderConfig
    preprocessor_class = SiglipPreprocessor
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^logit_(scale|bias)$"]

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
        output: BaseModelOutputWithPooling = self(pixel_values=values.to(self.device, self.dtype))
        return F.normalize(output.pooler_output, dim=-1)
