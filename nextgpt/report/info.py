"""What is installed here, and what a model is made of. It reads metadata and configuration files, never weights."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from nextgpt import __version__
from nextgpt.adapters import describe, describe_bridge, title, weights_file
from nextgpt.checkpoint import TRAINED_FILE
from nextgpt.context.settings import describe_rope
from nextgpt.errors import ModelLoadError
from nextgpt.hardware import resolve_device, resolve_dtype
from nextgpt.hub.parts import FrozenPart, fetch_model, preset_names, resolve_model

if TYPE_CHECKING:  # it takes seconds to import; a look at the environment does not need it
    from nextgpt.configuration_nextgpt import NextGPTConfig

RUN_FILE = "run.json"  # the metadata of a training run, in its folder
KNOWN_FILE = "known_world.json"  # what a model of one closed world can do, where it lists that
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
    from nextgpt.configuration_nextgpt import NextGPTConfig

    location = fetch_model(name_or_path, patterns=["*.json"])
    config = NextGPTConfig.from_pretrained(location)
    rows = [("model", f"{name_or_path} ({location})")]
    rows += [(_part_name(config, name), _describe_part(part, config)) for name, part in config.parts().items()]
    if prefixes := describe_bridge(config.input_bridge):
        rows.append(("input bridge", prefixes))
    rows.append(("adapter", f"{title(config.adapter)}, {describe(config.adapter)}" if config.adapter else "none"))
    if config.rope_parameters:
        rows.append(("positions", describe_rope(config.rope_parameters)))
    if config.sliding_window:
        rows.append(("sliding window", f"{config.sliding_window:,} tokens"))
    rows.append(("trained", _describe_trained(location, config)))
    rows.append(("takes", ", ".join(["text", *config.input_modalities])))
    rows.append(("gives", ", ".join(["text", *(f"{m} ({n} signal tokens)" for m, n in config.signal_tokens.items())])))
    return rows


def known_world(model_folder_or_name: str | os.PathLike) -> dict[str, list[str]] | None:
    """What a model of one closed world knows, as its folder lists it in `known_world.json`.

    Args:
        model_folder_or_name: a preset or a folder; of a Hub repository, what its copy on this machine says.

    Returns:
        Heading → names, in the order to show them: for nano `things`, `styles`, `backgrounds`, `sizes`, `sounds`,
        `sounds without pitch`, `registers`, `figures`, `filmed things` and `motions`. None where the folder lists nothing.

    Raises:
        ModelLoadError: there is no such model, or its list is damaged.
    """
    location = resolve_model(model_folder_or_name)
    if not Path(location).is_dir():
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(location, KNOWN_FILE)
        file = Path(file) if isinstance(file, str) else None
    else:
        file = Path(location) / KNOWN_FILE
    if file is None or not file.is_file():
        return None
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{file} is damaged (no JSON: {error}): copy it again") from None
    lists = known.values() if isinstance(known, dict) else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise ModelLoadError(f"{file} is damaged: expected an object with lists of names; copy it again")
    return known


def describe_run(folder: str | os.PathLike) -> list[tuple[str, str]]:
    """The metadata of a training run, as (what, value); empty where the folder is none.

    Raises:
        ModelLoadError: the metadata are damaged.
    """
    file = Path(folder) / RUN_FILE
    if not file.is_file():
        return []
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        data, settings, finished = metadata["data"], metadata["configuration"], metadata.get("finished")
        rows = [("stage", metadata["stage"])]
        for start in metadata["starts"]:
            code = start["git_revision"] or f"nextgpt {start['versions']['nextgpt']}, no git checkout"
            origin = f"from {start['resumed_from']}" if start["resumed_from"] else f"from {settings['model']}"
            rows.append(("started", f"{start['time']} {origin}, {start['processes']} × {start['device']}, {code}"))
        versions = metadata["starts"][-1]["versions"]
        rows.append(("finished", f"{finished['time']} at step {finished['steps']}" if finished else "not yet"))
        rows.append(("versions", ", ".join(f"{name} {versions[name]}" for name in ("python", *LIBRARIES))))
        rows.append(("data", ", ".join(data["files"])))
        rows.append(("", f"{data['conversations']:,} conversations, {data['tokens']:,} tokens, {data['skipped']} skipped"))
        rows.append(("data fingerprint", data["fingerprint"]))
        rows.append(("model fingerprint", metadata["model_fingerprint"]))
        rows.append(("seed", str(metadata["seed"])))
        arguments = settings.pop("arguments")
        rows += [(name, str(value)) for name, value in {**settings, **arguments}.items() if name not in ("model", "data")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{file} is damaged ({type(error).__name__}: {error}): it cannot be shown") from None
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


def _describe_trained(folder: Path, config: NextGPTConfig) -> str:
    names = [TRAINED_FILE, weights_file(config.adapter)] if config.adapter else [TRAINED_FILE]
    files = [folder / name for name in names if (folder / name).is_file()]
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
