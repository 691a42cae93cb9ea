"""Frozen encoders: arrays in, one embedding per item out."""

from nextgpt.encoders.base import Encoder, EncoderPreprocessor
from nextgpt.encoders.imagebind import ImageBind, ImageBindConfig, imagebind_huge_config, load_imagebind_checkpoint
from nextgpt.encoders.loading import (
    encoder_config,
    encoder_from_config,
    keeps_own_cache,
    load_encoder,
    preprocessor_for,
    register_encoder,
)
from nextgpt.encoders.open_clip import OpenClipConfig, OpenClipEncoder
from nextgpt.encoders.siglip import SiglipEncoder, SiglipEncoderConfig

__all__ = [
    "Encoder",
    "EncoderPreprocessor",
    "ImageBind",
    "ImageBindConfig",
    "OpenClipConfig",
    "OpenClipEncoder",
    "SiglipEncoder",
    "SiglipEncoderConfig",
    "encoder_config",
    "encoder_from_config",
    "imagebind_huge_config",
    "keeps_own_cache",
    "load_encoder",
    "load_imagebind_checkpoint",
    "preprocessor_for",
    "register_encoder",
]
