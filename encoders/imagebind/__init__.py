"""ImageBind, any size."""

from nextgpt.encoders.imagebind.checkpoint import load_imagebind_checkpoint
from nextgpt.encoders.imagebind.configuration import ImageBindConfig, imagebind_huge_config
from nextgpt.encoders.imagebind.modeling import ImageBind
from nextgpt.encoders.imagebind.processing import ImageBindPreprocessor

__all__ = ["ImageBind", "ImageBindConfig", "ImageBindPreprocessor", "imagebind_huge_config", "load_imagebind_checkpoint"]
