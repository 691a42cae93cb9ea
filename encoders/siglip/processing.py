"""The image transform of a SigLIP model: the whole picture, squeezed into a square."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nextgpt.encoders.base import EncoderPreprocessor
from nextgpt.encoders.siglip.configuration import SiglipEncoderConfig


class SiglipPreprocessor(EncoderPreprocessor):
    """What transformers' `SiglipImageProcessor` does by default: bicubic to a square, then mean and deviation."""

    def __init__(self, config: SiglipEncoderConfig):
        super().__init__(config.modalities)
        self.config = config

    def image(self, image: Image.Image) -> Tensor:
        """A picture of any size and mode -> [3, height, width]."""
        side = self.config.image_size
        pixels = np.array(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        values = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (self.config.image_mean, self.config.image_std))
        return (values - mean) / std
