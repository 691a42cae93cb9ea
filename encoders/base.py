"""The base class of frozen encoders: one embedding an item, its own preprocessing, and how it is found at a source.

A new encoder is one folder (configuration, modeling, processing) with an `Encoder`, and one line in `loading.ENCODERS`.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file


class EncoderPreprocessor:
    """Interface of a preprocessor. A modality that the encoder does not take raises ValueError."""

    def __init__(self, modalities: tuple[str, ...]):
        self.modalities = modalities

    def image(self, image: Image.Image) -> Tensor:
        """A picture of any size and mode -> [3, height, width]."""
        raise self._unknown("image")

    def audio(self, waveform: np.ndarray, sampling_rate: int) -> Tensor:
        """Float samples in -1..1, [samples] or [channels, samples] -> [clips, 1, mel bins, frames]."""
        raise self._unknown("audio")

    def video(self, frames: np.ndarray, fps: float) -> Tensor:
        """Uint8 frames [T, H, W, 3] at `fps` frames per second -> [views, 3, frames, height, width]."""
        raise self._unknown("video")

    def text(self, texts: list[str]) -> Tensor:
        """Texts -> token ids [N, context]."""
        raise self._unknown("text")

    def prepare(self, modality: str, media: Any) -> Tensor:
        """Any medium, by the method of its kind's name; a tuple (samples and their rate) goes in one by one."""
        method = getattr(self, modality, None)
        if modality not in self.modalities:
            raise self._unknown(modality)
        if method is None:
            raise ValueError(f"{type(self).__name__} has no method '{modality}', which its encoder's configuration names.")
        return method(*media) if isinstance(media, tuple) else method(media)

    def _unknown(self, modality: str) -> ValueError:
        return ValueError(f"This encoder takes {', '.join(self.modalities)}, not {modality}; choose another encoder.")


class Encoder(PreTrainedModel):
    """A frozen encoder. A kind names its configuration and its preprocessing, and encodes.

    Its configuration has `embed_dim`, the width of the one embedding of every item, and `modalities`, what it encodes.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    preprocessor_class: ClassVar[type[EncoderPreprocessor]]
    main_input_name = "image"

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.config.modalities

    def preprocessor(self) -> EncoderPreprocessor:
        """What turns pictures, waveforms, frames and texts into the tensors of `encode`."""
        return self.preprocessor_class(self.config)

    def encode(self, modality: str, values: Tensor) -> Tensor:
        """A batch as the preprocessor makes it, `[N, ...]` → `[N, embed_dim]`, without gradients, on any device.

        Raises:
            ValueError: another modality, or values of another shape.
        """
        raise NotImplementedError

    # How a kind is found at a source; what is written here fits folders and repositories of transformers ----------------

    @classmethod
    def model_types(cls) -> tuple[str, ...]:
        """The `model_type` of the configurations that it reads."""
        return (cls.config_class.model_type,)

    @classmethod
    def claims(cls, source: str) -> bool:
        """Whether a source is of this kind for another reason than its `config.json`."""
        return False

    @classmethod
    def keeps_own_cache(cls, source: str) -> bool:
        """Whether a source that it claims is fetched by its own library, not from a folder or the Hub's cache."""
        return False

    @classmethod
    def read_config(cls, source: str, revision: str | None, values: dict[str, Any]) -> PreTrainedConfig:
        """The configuration of a source; `values` are those of its `config.json`, empty for a source that it claims."""
        return cls.config_class.from_dict(values)

    @classmethod
    def read(
        cls, source: str, revision: str | None, config: PreTrainedConfig | None, dtype: torch.dtype | None
    ) -> "Encoder":
        """The encoder with its weights.

        Raises:
            OSError: there are no weights.
            ValueError: the weights are not exactly the configuration's; missing and unexpected ones are listed.
        """
        try:
            encoder, report = cls.from_pretrained(
                source,
                config=config,
                revision=revision,
                dtype=dtype or "auto",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported with the rest below, and refused
            )
        except SafetensorError as error:
            raise ValueError(f"The weights in {source} cannot be read ({error}). Get them anew.") from error
        problems = {what.removesuffix("_keys"): sorted(map(str, keys)) for what, keys in report.items() if keys}
        if problems:
            listed = "; ".join(f"{len(keys)} {what}: {', '.join(keys)}" for what, keys in problems.items())
            raise ValueError(f"The weights in {source} do not fit its configuration: {listed}. Check both.")
        return encoder


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode and no gradients: what every loaded encoder is."""
    return model.eval().requires_grad_(False)


def read_json(source: str, name: str, revision: str | None = None) -> dict[str, Any]:
    """A JSON file of a folder or a Hub repository. Raises OSError where there is none, ValueError where it is not JSON."""
    path = Path(source) / name if Path(source).is_dir() else Path(cached_file(source, name, revision=revision))
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON, expected an encoder's configuration. Get it anew. ({error})") from error
