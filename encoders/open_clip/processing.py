"""The image transform of an open_clip model."""

from PIL import Image
from torch import Tensor

from nextgpt.encoders.base import EncoderPreprocessor
from nextgpt.encoders.open_clip.configuration import OpenClipConfig


class OpenClipPreprocessor(EncoderPreprocessor):
    """The image transform that an open_clip model was made with."""

    def __init__(self, config: OpenClipConfig):
        super().__init__(config.modalities)
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self._transform = image_transform_v2(PreprocessCfg(**(config.preprocess_cfg or {})), is_train=False)

    def image(self, image: Image.Image) -> Tensor:
        """A picture of any size and mode -> [3, height, width]."""
        return self._transform(image.convert("RGB"))
