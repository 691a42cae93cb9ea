"""Any open_clip vision tower as the image encoder. The tower's own code is open_clip's."""

from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextgpt.encoders.base import Encoder, read_json
from nextgpt.encoders.open_clip.configuration import OpenClipConfig
from nextgpt.encoders.open_clip.processing import OpenClipPreprocessor

PREFIX = "open_clip:"
CONFIG_FILE = "open_clip_config.json"


class OpenClipEncoder(Encoder):
    """The vision tower of an open_clip model (github.com/mlfoundations/open_clip), L2-normalised.

    Saved and loaded like any transformers model, without the text tower.
    """

    config_class = OpenClipConfig
    preprocessor_class = OpenClipPreprocessor

    def __init__(self, config: OpenClipConfig, visual: nn.Module | None = None):
        super().__init__(config)
        self.visual = visual if visual is not None else _vision_tower(config)
        self.post_init()

    @classmethod
    def claims(cls, source: str) -> bool:
        """`open_clip:…`, as open_clip names its models."""
        return source.startswith(PREFIX)

    @classmethod
    def keeps_own_cache(cls, source: str) -> bool:
        """open_clip fetches what it names into a cache of its own."""
        return cls.claims(source)

    @classmethod
    def read_config(cls, source: str, revision: str | None, values: dict[str, Any]) -> OpenClipConfig:
        """From open_clip's own tables, or of a saved encoder."""
        return cls.config_class.from_dict(values) if values else open_clip_config(source)

    @classmethod
    def read(
        cls, source: str, revision: str | None, config: OpenClipConfig | None, dtype: torch.dtype | None
    ) -> "OpenClipEncoder":
        """Through open_clip, or as any saved encoder."""
        return load_open_clip(source, dtype) if cls.claims(source) else super().read(source, revision, config, dtype)

    def _init_weights(self, module: nn.Module) -> None:
        """open_clip's towers initialise themselves."""

    def forward(self, image: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, embed_dim], L2-normalised."""
        return F.normalize(self.visual(image), dim=-1)

    @torch.no_grad()
    def encode(self, modality: str, values: Tensor) -> Tensor:
        """Encode a batch of pictures, [N, 3, H, W] -> [N, embed_dim]; any other modality raises ValueError."""
        if modality not in self.modalities:
            raise ValueError(f"modality is {modality!r}, an open_clip vision tower knows image only.")
        return self(values.to(self.device, self.dtype))


def open_clip_config(source: str) -> OpenClipConfig:
    """Describe the vision tower that a source names; weights are not read.

    Args:
        source: `open_clip:ARCHITECTURE/PRETRAINED` (PRETRAINED: one of open_clip's tags, or a weights file),
            `open_clip:local-dir:FOLDER` or `open_clip:hf-hub:REPOSITORY`.

    Raises:
        ValueError: for an architecture that open_clip does not know.
        OSError: for a folder or repository without an `open_clip_config.json`.
    """
    import open_clip

    architecture, pretrained = _split(source)
    model_config = open_clip.get_model_config(architecture)
    if model_config is None:
        raise ValueError(f"{source}: open_clip has no {architecture!r}; expected a name of open_clip.list_models().")
    vision_config = model_config["vision_cfg"]
    return OpenClipConfig(
        embed_dim=model_config["embed_dim"],
        vision_cfg=vision_config,
        quick_gelu=model_config.get("quick_gelu", False),
        preprocess_cfg=_preprocess_config(architecture, pretrained) | {"size": vision_config["image_size"]},
    )


def load_open_clip(source: str, dtype: torch.dtype | None = None) -> OpenClipEncoder:
    """Load the vision tower that a source names, as `open_clip_config` reads it.

    Raises:
        ValueError: for a source without weights, or weights that do not fit or cannot be had.
        OSError: for a folder without an `open_clip_config.json`.
    """
    import open_clip

    config = open_clip_config(source)
    architecture, pretrained = _split(source)
    try:
        model = open_clip.create_model(architecture, pretrained=pretrained, require_pretrained=True)
    except RuntimeError as error:
        raise ValueError(f"{source} cannot be loaded: {error} Name a pretrained tag or a weights file.") from error
    encoder = OpenClipEncoder(config, model.visual)
    return encoder if dtype is None else encoder.to(dtype)


def _split(source: str) -> tuple[str, str | None]:
    """`open_clip:ViT-B-32/openai` -> ("ViT-B-32", "openai"); a folder or repository is its own architecture."""
    name = source.removeprefix(PREFIX)
    if name.startswith(("local-dir:", "hf-hub:")):
        return name, None
    architecture, _, pretrained = name.partition("/")
    return architecture, pretrained or None


def _preprocess_config(architecture: str, pretrained: str | None) -> dict[str, Any]:
    """What open_clip records about the pictures that the weights were trained on; its defaults where it is silent."""
    import open_clip
    from open_clip.transform import PreprocessCfg

    scheme, _, place = architecture.partition(":")
    if scheme in ("local-dir", "hf-hub"):
        recorded = read_json(place, CONFIG_FILE).get("preprocess_cfg", {})
    else:
        recorded = (open_clip.get_pretrained_cfg(architecture, pretrained) or {}) if pretrained else {}
    known = asdict(PreprocessCfg())
    return known | {name: value for name, value in recorded.items() if name in known}


def _vision_tower(config: OpenClipConfig) -> nn.Module:
    from open_clip.model import _build_vision_tower  # the one builder that makes no text tower beside it

    return _build_vision_tower(config.embed_dim, dict(config.vision_cfg), config.quick_gelu)
