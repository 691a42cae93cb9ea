"""From a source to an encoder or its configuration; each kind of encoder recognises its own sources."""

from pathlib import Path

import torch
from transformers import PreTrainedConfig

from nextgpt.encoders.base import Encoder, EncoderPreprocessor, freeze, read_json
from nextgpt.encoders.imagebind import ImageBind
from nextgpt.encoders.imagebind.modeling import OFFICIAL_FILE
from nextgpt.encoders.open_clip import OpenClipEncoder
from nextgpt.encoders.siglip import SiglipEncoder

ENCODERS: dict[str, type[Encoder]] = {
    model_type: encoder for encoder in (ImageBind, OpenClipEncoder, SiglipEncoder) for model_type in encoder.model_types()
}


def register_encoder(encoder: type[Encoder]) -> type[Encoder]:
    """Adds an encoder of one's own; may stand above its class as a decorator.

    Raises:
        ValueError: one of its model types is taken by another class.
    """
    for model_type in encoder.model_types():
        taken = ENCODERS.setdefault(model_type, encoder)
        if taken is not encoder:
            raise ValueError(
                f"The model_type '{model_type}' of {encoder.__module__}.{encoder.__name__} is taken by "
                f"{taken.__module__}.{taken.__name__}. Choose another."
            )
    return encoder


def encoder_config(source: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """Read an encoder's configuration; its weights are not read.

    Args:
        source: a folder or Hub repository with a `config.json`, the official `imagebind_huge.pth` or a folder with
            it, or `open_clip:ARCHITECTURE/PRETRAINED`.
        revision: of the Hub repository.

    Raises:
        OSError: when there is no configuration at the source.
        ValueError: when it is not an encoder's.
    """
    source = str(source)
    if claiming := _claiming(source):
        return claiming.read_config(source, revision, {})
    values = _read_config(source, revision)
    kind = values.get("model_type")
    if kind not in ENCODERS:
        raise ValueError(
            f"{source} has model_type {kind!r}, expected one of {', '.join(ENCODERS)}. Name an encoder; a program that "
            "brings another calls nextgpt.register_encoder first."
        )
    return ENCODERS[kind].read_config(source, revision, values)


def load_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    config: PreTrainedConfig | None = None,
) -> Encoder:
    """Load an encoder, frozen: evaluation mode, no gradients.

    Args:
        source: as for `encoder_config`.
        revision: of the Hub repository.
        dtype: type of the loaded weights; as stored by default.
        config: for a source that holds weights only.

    Raises:
        OSError: when there are no weights at the source.
        ValueError: when the weights are not exactly the configuration's; missing and unexpected ones are listed.
    """
    source = str(source)
    if claiming := _claiming(source):
        return freeze(claiming.read(source, revision, config, dtype))
    config = config or encoder_config(source, revision)
    return freeze(ENCODERS[config.model_type].read(source, revision, config, dtype))


def encoder_from_config(config: PreTrainedConfig) -> Encoder:
    """A randomly initialised, frozen encoder; allocates nothing under `torch.device("meta")`."""
    return freeze(ENCODERS[config.model_type](config))


def preprocessor_for(config: PreTrainedConfig) -> EncoderPreprocessor:
    """The preprocessor of an encoder, from its configuration alone."""
    return ENCODERS[config.model_type].preprocessor_class(config)


def keeps_own_cache(source: str | Path) -> bool:
    """Whether a source is fetched by a library of its own, so that it is no folder and no repository to ask for."""
    claiming = _claiming(str(source))
    return claiming is not None and claiming.keeps_own_cache(str(source))


def _claiming(source: str) -> type[Encoder] | None:
    return next((encoder for encoder in ENCODERS.values() if encoder.claims(source)), None)


def _read_config(source: str, revision: str | None) -> dict:
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(
            f"{Path(source) / 'config.json'} is missing; expected an encoder folder, or one with {OFFICIAL_FILE}."
        )
    return read_json(source, "config.json", revision)
