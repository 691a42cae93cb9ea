"""Counts a model's parameters part by part, from its configuration files alone.

Every part is really instantiated, on torch's meta device: no weights are read, no memory is taken, no network is
needed where the configuration files are local.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from nextgpt.adapters import describe, describe_bridge, title
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders import DECODERS, describe_shapes
from nextgpt.decoders.sources import capture_log_messages, local_folder, part_class, read_json, shared_components
from nextgpt.errors import ModelLoadError
from nextgpt.hub.parts import fetch_model
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration

NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)


@dataclass
class PartCount:
    """One line of the table.

    Args:
        name: of the part, e.g. `image decoder`.
        description: which model it is, or what it connects.
        parameters: how many numbers it has.
        trained: whether NExT-GPT trains it.
        license: of the published weights; None for what is trained here.
        breakdown: name → parameters of what it is made of.
    """

    name: str
    description: str
    parameters: int
    trained: bool
    license: str | None = None
    breakdown: dict[str, int] = field(default_factory=dict)

    @property
    def is_non_commercial(self) -> bool:
        """Whether the licence of the weights rules commercial use out."""
        return self.license is not None and NON_COMMERCIAL.search(self.license) is not None


@dataclass
class ParameterTable:
    """All parts of a model.

    Args:
        model: the name or path that was asked for.
        parts: in the order data pass through them.
    """

    model: str
    parts: list[PartCount]

    @property
    def total(self) -> int:
        """Parameters of all parts."""
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        """Parameters that NExT-GPT trains."""
        return sum(part.parameters for part in self.parts if part.trained)

    @property
    def trained_share(self) -> float:
        """Trained parameters over all parameters."""
        return self.trained / self.total

    def to_dict(self) -> dict:
        """The table as plain data, for JSON."""
        totals = {"total": self.total, "trained": self.trained, "trained_share": self.trained_share}
        return {"model": self.model, "parts": [asdict(part) for part in self.parts], **totals}


def count_parameters(name_or_path: str | os.PathLike) -> ParameterTable:
    """Builds every part of a model on the meta device and counts it.

    Args:
        name_or_path: a preset (`7b`, `nano`), a folder with a `config.json`, or a Hub repository.

    Raises:
        ModelLoadError: a configuration file is missing or does not describe a model.
    """
    try:
        config = NextGPTConfig.from_pretrained(fetch_model(name_or_path, patterns=["*.json"]))
        with torch.device("meta"):
            model = NextGPTForConditionalGeneration(config)
        decoders = [_decoder_count(config, modality) for modality in config.signal_tokens]
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ModelLoadError):
            raise
        raise ModelLoadError(f"{name_or_path}: no part can be built from its configuration files ({error})") from error
    return ParameterTable(str(name_or_path), [*_model_counts(model), *decoders])


def _model_counts(model: NextGPTForConditionalGeneration) -> list[PartCount]:
    config, hidden_size = model.config, model.config.text_config.hidden_size
    prefixes = f" and {prefixes}" if (prefixes := describe_bridge(config.input_bridge)) else ""
    adapter = model.group_parameters("adapter").values()
    counts = [
        _frozen(config, "encoder", "encoder", _towers(model.encoder)),
        _trained(
            "input projection",
            f"Linear {model.encoder.embed_dim} → {hidden_size}{prefixes}, shared by {', '.join(config.input_modalities)}",
            model.input_projection.parameters(),
        ),
        _frozen(config, "language_model", "LLM", _language_model(model, adapter={id(parameter) for parameter in adapter})),
    ]
    if config.adapter:
        counts.append(_trained(title(config.adapter), describe(config.adapter), adapter))
    rows = f"embedding and head rows of {model.vocabulary.num_signals} signal tokens"
    counts.append(_trained("signal rows", rows, model.signal_rows.parameters()))
    for modality, projection in model.output_projections.items():
        shapes = describe_shapes(projection.shapes.values())
        described = f"transformer, {config.signal_tokens[modality]} signal tokens → {shapes}"
        counts.append(_trained(f"{modality} output projection", described, projection.parameters()))
    if model.value_heads is not None:
        described = "Q of every token (two, and their target networks) and V, of ILQL"
        counts.append(_trained("value heads", described, model.value_heads.parameters()))
    return counts


def _decoder_count(config: NextGPTConfig, modality: str) -> PartCount:
    """A frozen diffusers pipeline: every model that its `model_index.json` names and the decoder loads.

    A model that it shares with another decoder is counted where it lies.
    """
    part = config.part(modality)
    location, revision = part.config_location(config.base_folder), part.revision
    components = read_json(location, "model_index.json", revision)
    left_out = DECODERS[part.kind].load_options
    folder = local_folder(location)
    shared = shared_components(folder) if folder else {}
    counted = {Path(config.part(other).config_location(config.base_folder)).resolve() for other in config.decoders}
    breakdown = {}
    for name, entry in components.items():
        if name in left_out or not isinstance(entry, list) or entry[-1] is None:
            continue
        if name in shared and shared[name].parent in counted:
            continue  # it is the other decoder's
        where = (str(shared[name]), "") if name in shared else (location, name)
        module = _meta_component(*entry, *where, revision)
        if module is not None:
            breakdown[name] = _size(module.parameters())
    return _frozen(config, modality, f"{modality} decoder", breakdown)


def _meta_component(library: str, class_name: str, location: str, subfolder: str, revision: str | None) -> nn.Module | None:
    """A component of a pipeline on the meta device; None for schedulers and tokenizers, which have no parameters."""
    component_class = part_class(library, class_name)
    if not issubclass(component_class, nn.Module):
        return None
    where = {"subfolder": subfolder, "revision": revision}
    with torch.device("meta"):
        if hasattr(component_class, "load_config"):  # diffusers
            # As its pipeline reads it.
            with capture_log_messages("diffusers.configuration_utils", f"were passed to {class_name}"):
                return component_class.from_config(component_class.load_config(location, **where))
        return component_class(component_class.config_class.from_pretrained(location, **where))


def _frozen(config: NextGPTConfig, part: str, name: str, breakdown: dict[str, int]) -> PartCount:
    named = config.parts().get(part)
    source, license = (named.source, named.license) if named else ("random weights", None)
    return PartCount(name, source, sum(breakdown.values()), trained=False, license=license, breakdown=breakdown)


def _trained(name: str, description: str, parameters: Iterable[Tensor]) -> PartCount:
    return PartCount(name, description, _size(parameters), trained=True)


def _towers(encoder: nn.Module) -> dict[str, int]:
    """Parameters by modality where the encoder has towers (`modality_trunks.vision.…`), else by module."""
    sizes = Counter()
    for name, parameter in encoder.named_parameters():
        path = name.split(".")
        sizes[path[1] if path[0].startswith("modality_") else path[0]] += parameter.numel()
    return dict(sizes)


def _language_model(model: NextGPTForConditionalGeneration, adapter: set[int]) -> dict[str, int]:
    """The LLM's own parameters, by what they are, without the adapter's."""
    ends = {id(model.get_input_embeddings().weight): "embedding", id(model.get_output_embeddings().weight): "head"}
    sizes = Counter()
    for parameter in model.language_model.parameters():
        if id(parameter) not in adapter:
            sizes[ends.get(id(parameter), "layers")] += parameter.numel()
    return dict(sizes)


def _size(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
