"""Any open_clip vision tower."""

from nextgpt.encoders.open_clip.configuration import OpenClipConfig
from nextgpt.encoders.open_clip.modeling import OpenClipEncoder
from nextgpt.encoders.open_clip.processing import OpenClipPreprocessor

__all__ = ["OpenClipConfig", "OpenClipEncoder", "OpenClipPreprocessor"]
