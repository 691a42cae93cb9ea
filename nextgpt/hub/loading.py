"""Loads the frozen parts that a configuration names; what goes wrong is one line that names the part."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from nextgpt import encoders as encoder_room
from nextgpt.adapters import folder_name
from nextgpt.checkpoint import TRAINED_FILE
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders import Decoder, load_decoder
from nextgpt.decoders.sources import LOADING
from nextgpt.errors import ModelLoadError, UserInputError, first_line
from nextgpt.hub.parts import FrozenPart, is_repository_name

# What transformers' Auto classes and pipelines hand to every model's `from_pretrained`; none changes what is loaded here.
AUTO_CLASS_KEYWORDS = (
    *("adapter_kwargs", "cache_dir", "code_revision", "force_download", "local_files_only", "proxies", "token"),
    *("low_cpu_mem_usage", "subfolder", "trust_remote_code", "use_safetensors", "weights_only"),
)


def _load_part(name: str, config: NextGPTConfig, load: Callable):
    """Runs `load(source, part)`, turning what goes wrong into one line that names the part."""
    part = config.part(name)
    try:
        with LOADING:
            return load(config.location(name), part)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelLoadError(
            f"the frozen {name.replace('_', ' ')} could not be loaded from {part.source}: {first_line(error)}"
        ) from error


def check_keywords(keywords: Iterable[str]) -> None:
    """Refuses arguments of `from_pretrained` that would be lost, `load_in_4bit` for one.

    Raises:
        UserInputError: names the first.
    """
    for name in sorted(set(keywords) - set(AUTO_CLASS_KEYWORDS)):
        raise UserInputError(
            f"from_pretrained got {name!r}, which is not known: it takes config, dtype, device_map, quantization_config, "
            "attn_implementation and revision"
        )


def load_frozen_encoder(config: NextGPTConfig, dtype: torch.dtype | str) -> nn.Module:
    """The encoder that `config` names, without the rest of the model.

    Raises:
        ModelLoadError: it is missing or unreadable.
    """
    dtype = None if dtype == "auto" else dtype

    def load(source: str, part: FrozenPart) -> nn.Module:
        return encoder_room.load_encoder(source, revision=part.revision, dtype=dtype, config=config.encoder_config)

    return _load_part("encoder", config, load)


def load_language_model(
    config: NextGPTConfig, dtype: torch.dtype | str, device_map: str | dict | None, quantization_config: object | None
) -> PreTrainedModel:
    """The LLM that `config` names, without its adapter.

    Raises:
        ModelLoadError: it is missing or unreadable.
    """
    options = {
        "device_map": device_map,
        "quantization_config": quantization_config,
        "attn_implementation": config._attn_implementation,  # as given to the Auto classes, which put it there
    }
    options = {name: value for name, value in options.items() if value is not None}

    config.language_model_config()  # a context that does not fit is refused in its own words
    longer = config.rope_parameters or config.sliding_window

    def load(source: str, part: FrozenPart) -> PreTrainedModel:
        if longer:
            options["config"] = config.language_model_config(AutoConfig.from_pretrained(source, revision=part.revision))
        return AutoModelForCausalLM.from_pretrained(source, revision=part.revision, dtype=dtype, **options)

    return _load_part("language_model", config, load)


def load_frozen_decoder(
    config: NextGPTConfig, modality: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> Decoder:
    """A decoder that `config` names; its weights load on first use. Raises ModelLoadError."""
    part = config.part(modality)
    try:
        return load_decoder(part.kind, config.location(modality), revision=part.revision, device=device, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"the {modality} decoder: {first_line(error)}") from error


def replace_parts(config: NextGPTConfig, parts: dict[str, str]) -> None:
    """Points frozen parts elsewhere; what was said of the replaced ones (sizes, configuration) goes with them."""
    known = config.part_specs()
    for name, source in parts.items():
        if name not in known:
            raise UserInputError(f"parts names {name!r}: this model's parts are {', '.join(known)}")
        spec = known[name]
        folder = os.path.expanduser(str(source))
        for key in ("revision", "config", "size", "license", "fingerprint"):
            spec.pop(key, None)
        spec["source"] = os.path.abspath(folder) if os.path.isdir(folder) else str(source)


def check_parts(config: NextGPTConfig, location: str, name: str) -> None:
    """Everything that is missing, in one error."""
    missing = [
        _missing_line(part_name, part)
        for part_name, part in config.parts().items()
        if not part.is_available(config.base_folder)
    ]
    if not os.path.isfile(os.path.join(location, TRAINED_FILE)):
        files = f"{TRAINED_FILE} and {folder_name(config.adapter)}/" if config.adapter else TRAINED_FILE
        missing.append(f"the trained weights ({files}): train them, or put them into {location}")
    if missing:
        listed = "\n  - ".join(missing)
        raise ModelLoadError(
            f"{name} needs parts that are not on this machine:\n  - {listed}\n"
            f"`nextgpt download {name}` fetches what is on the Hub, sizes first; or give local folders with "
            "from_pretrained(..., parts={'part': folder}) or in config.json."
        )


def _missing_line(name: str, part: FrozenPart) -> str:
    size = f" ({part.size / 1e9:.1f} GB)" if part.size else ""
    if is_repository_name(part.source):
        return f"{name}{size}: {part.source} on the Hub"
    return f"{name}{size}: no folder {part.source}"


def read_quantization(quantization: str | None, dtype: torch.dtype) -> object | None:
    """transformers' configuration of `4bit` or `8bit`; None for None."""
    if quantization is None:
        return None
    if quantization not in ("4bit", "8bit"):
        raise UserInputError(f"quantization is {quantization!r}: expected 4bit or 8bit")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ModelLoadError("quantization needs bitsandbytes: pip install 'nextgpt[quantized]'") from None
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
