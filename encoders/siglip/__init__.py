"""The vision tower of SigLIP, from transformers."""

from nextgpt.encoders.siglip.configuration import SiglipEncoderConfig
from nextgpt.encoders.siglip.modeling import SiglipEncoder
from nextgpt.encoders.siglip.processing import SiglipPreprocessor

__all__ = ["SiglipEncoder", "SiglipEncoderConfig", "SiglipPreprocessor"]
