"""Configuration of an open_clip vision tower and of its preprocessing."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class OpenClipConfig(PreTrainedConfig):
    """The vision tower of an open_clip model, described completely: no name has to be looked up to build it.

    - `embed_dim`: width of the embedding.
    - `vision_cfg`, `quick_gelu`: as in open_clip's own model configurations.
    - `preprocess_cfg`: open_clip's `PreprocessCfg` as a dictionary (size, mean, std, interpolation, resize_mode, ...).
    """

    model_type = "open_clip_vision"

    embed_dim: int = 1024
    vision_cfg: dict[str, Any] | None = None
    quick_gelu: bool = False
    preprocess_cfg: dict[str, Any] | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """What can be encoded: images only."""
        return ("image",)
