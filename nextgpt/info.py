"""What is installed here, and what a model is made of. It reads metadata and configuration files, never weights."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from nextgpt import __version__
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import ModelLoadError
from nextgpt.hardware import resolve_device, resolve_dtype
from nextgpt.modeling_nextgpt import LORA_FOLDER, TRAINED_FILE
from nextgpt.parts import FrozenPart, preset_names, resolve_model

LIBRARIES = ("torch", "transformers", "diffusers", "peft", "gradio", "accelerate", "bitsandbytes")


def describe_environment() -> list[tuple[str, str]]:
    """Versions and devices, as (what, value)."""
    device = resolve_device("auto")
    return [
        ("nextgpt", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((library, _installed(library)) for library in LIBRARIES),
        ("device", f"{device}, {str(resolve_dtype('auto', device)).removeprefix('torch.')} by default"),
        ("threads", str(torch.get_num_threads())),
        ("presets", ", ".join(preset_names())),
    ]


def describe_model(name_or_path: str | os.PathLike) -> list[tuple[str, str]]:
    """The parts of a model, where they come from and whether they are here, as (what, value).

    Raises:
        ModelLoadError: there is no such model.
    """
    location = resolve_model(name_or_path)
    config = NextGPTConfig.from_pretrained(name_or_path)
    rows = [("model", f"{name_or_path} ({location})")]
    rows += [(_part_name(config, name), _describe_part(part, config)) for name, part in config.parts().items()]
    rows.append(("trained", _describe_trained(Path(location))))
    rows.append(("takes", ", ".join(["text", *config.input_modalities])))
    rows.append(("gives", ", ".join(["text", *(f"{m} ({n} signal tokens)" for m, n in config.signal_tokens.items())])))
    return rows


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def _part_name(config: NextGPTConfig, name: str) -> str:
    return f"{name} decoder" if name in config.decoders else name.replace("_", " ")


def _describe_part(part: FrozenPart, config: NextGPTConfig) -> str:
    size = f", {part.size / 1e9:.1f} GB" if part.size else ""
    present = "present" if part.is_available(config.base_folder) else f"missing{size}"
    return f"{part.source} ({present})" + (f", {part.license}" if part.license else "")


def _describe_trained(folder: Path) -> str:
    files = [file for file in (folder / TRAINED_FILE, folder / LORA_FOLDER / "adapter_model.safetensors") if file.is_file()]
    if not files:
        return "no trained weights here"
    tensors = parameters = 0
    for file in files:
        try:
            with safe_open(file, "pt") as content:
                shapes = [content.get_slice(name).get_shape() for name in content.keys()]
        except SafetensorError:
            raise ModelLoadError(f"{file} is damaged: copy it again") from None
        tensors += len(shapes)
        parameters += sum(torch.Size(shape).numel() for shape in shapes)
    return f"{tensors} tensors, {parameters:,} parameters in {' and '.join(file.name for file in files)}"
