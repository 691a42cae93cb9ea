"""The encoder: a frozen linear layer over a curve's heights at eight even places."""

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from nextgpt.encoders import Encoder, EncoderPreprocessor

POINTS = 8


class CurveEncoderConfig(PreTrainedConfig):
    """The width of the embeddings; it takes curves only."""

    model_type = "toy-curve-encoder"
    embed_dim: int = 16

    @property
    def modalities(self) -> tuple[str, ...]:
        return ("curve",)


class CurvePreprocessor(EncoderPreprocessor):
    """Curves of any length → as many points as the encoder takes."""

    def __init__(self, config: CurveEncoderConfig):
        super().__init__(config.modalities)

    def curve(self, heights: np.ndarray, step: float) -> Tensor:
        places = np.linspace(0, len(heights) - 1, POINTS)
        return torch.from_numpy(np.interp(places, np.arange(len(heights)), heights)).float()


class CurveEncoder(Encoder):
    """[N, 8] → [N, embed_dim]."""

    config_class = CurveEncoderConfig
    preprocessor_class = CurvePreprocessor
    main_input_name = "curve"

    def __init__(self, config: CurveEncoderConfig):
        super().__init__(config)
        self.layer = nn.Linear(POINTS, config.embed_dim)
        self.post_init()

    @torch.no_grad()
    def encode(self, modality: str, values: Tensor) -> Tensor:
        return self.layer(values.to(self.layer.weight))
