"""Frozen encoders: arrays in, one embedding per item out. Knows no files to decode, no language model, no training."""

from nextgpt.encoders.configuration import ImageBindConfig, OpenClipConfig, imagebind_huge_config
from nextgpt.encoders.imagebind import ImageBind, load_imagebind_checkpoint
from nextgpt.encoders.loading import encoder_config, encoder_from_config, load_encoder
from nextgpt.encoders.open_clip_encoder import OpenClipEncoder
from nextgpt.encoders.preprocessing import EncoderPreprocessor, preprocessor_for

__all__ = [
    "EncoderPreprocessor",
    "ImageBind",
    "ImageBindConfig",
    "OpenClipConfig",
    "OpenClipEncoder",
    "encoder_config",
    "encoder_from_config",
    "imagebind_huge_config",
    "load_encoder",
    "load_imagebind_checkpoint",
    "preprocessor_for",
]
