"""From a source to an encoder or its configuration. Knows where encoders live, not how they work."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.utils import cached_file

from nextgpt.encoders.configuration import ImageBindConfig, OpenClipConfig, imagebind_huge_config
from nextgpt.encoders.imagebind import ImageBind, freeze, load_imagebind_checkpoint
from nextgpt.encoders.open_clip_encoder import PREFIX, OpenClipEncoder, load_open_clip, open_clip_config

Encoder = ImageBind | OpenClipEncoder
EncoderConfig = ImageBindConfig | OpenClipConfig

ENCODERS: dict[str, type[Encoder]] = {cls.config_class.model_type: cls for cls in (ImageBind, OpenClipEncoder)}
OFFICIAL_FILE = "imagebind_huge.pth"


def encoder_config(source: str | Path, revision: str | None = None) -> EncoderConfig:
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
    if source.startswith(PREFIX):
        return open_clip_config(source)
    if _official_checkpoint(source):
        return imagebind_huge_config()
    path = _config_file(source, revision)
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON, expected an encoder's configuration. Get it anew. ({error})") from error
    kind = values.get("model_type")
    if kind not in ENCODERS:
        raise ValueError(f"{path} has model_type {kind!r}, expected one of {', '.join(ENCODERS)}. Name an encoder.")
    return ENCODERS[kind].config_class.from_dict(values)


def load_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    config: EncoderConfig | None = None,
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
    if source.startswith(PREFIX):
        return freeze(load_open_clip(source, dtype))
    if checkpoint := _official_checkpoint(source):
        return load_imagebind_checkpoint(checkpoint, config, dtype)
    config = config or encoder_config(source, revision)
    try:
        encoder, report = ENCODERS[config.model_type].from_pretrained(
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
    return freeze(encoder)


def encoder_from_config(config: EncoderConfig) -> Encoder:
    """A randomly initialised, frozen encoder; allocates nothing under `torch.device("meta")`."""
    return freeze(ENCODERS[config.model_type](config))


def _config_file(source: str, revision: str | None) -> Path:
    if not Path(source).is_dir():
        return Path(cached_file(source, "config.json", revision=revision))
    path = Path(source) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected an encoder folder, or one with {OFFICIAL_FILE}.")
    return path


def _official_checkpoint(source: str) -> Path | None:
    """The reference implementation's checkpoint at the source, if that is what stands there."""
    path = Path(source)
    if path.suffix == ".pth":
        return path
    inside = path / OFFICIAL_FILE
    return inside if inside.is_file() and not (path / "model.safetensors").exists() else None
