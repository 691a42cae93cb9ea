"""What a run starts from: a model as the settings change it, and its processor. Trains nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from nextgpt.adapters import check_settings, read_bridge, read_settings, title, weights_file
from nextgpt.checkpoint import TRAINED_FILE
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import ModelLoadError, UserInputError, first_line
from nextgpt.hub.parts import fetch_model
from nextgpt.media.text import listed
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import PROCESSOR_FILE, NextGPTProcessor
from nextgpt.train.config import TrainingConfig

logger = logging.getLogger(__name__)


def load_for_training(config: TrainingConfig) -> tuple[NextGPTForConditionalGeneration, NextGPTProcessor]:
    """The model that training starts from, its trained parts in fp32 whatever the dtype of the frozen ones."""
    location, model_config = read_model_config(config)
    model_config.loss_weights = model_config.loss_weights | config.loss_weights
    try:
        model_config.check_loss_weights()
    except ValueError as error:
        raise UserInputError(str(error)) from None
    keeps_adapter = _change_adapter(model_config, config.adapter_changes, location)
    model = NextGPTForConditionalGeneration.from_parts(model_config, dtype=getattr(torch, config.dtype))
    if (location / TRAINED_FILE).is_file():
        replaced = replaced_decoders(location, model_config)
        model.load_trained(location, adapter=keeps_adapter, widened=bool(config.adapter_changes), without=replaced)
    else:
        logger.info("%s holds no %s: the trained parts start afresh", location, TRAINED_FILE)
    model.get_base_model().config.use_cache = False  # nothing is generated here
    return model, load_processor(location, model_config)


def read_model_config(config: TrainingConfig) -> tuple[Path, NextGPTConfig]:
    """Where the model is that training starts from, and its configuration with the run's bridge, decoders and context.

    Raises:
        UserInputError: another bridge would drop what the model's has learned, a decoder is not one that the model can
            have, or the context cannot be as long.
    """
    location = fetch_model(config.model)
    model_config = NextGPTConfig.from_pretrained(location)
    bridge = model_config.input_bridge if config.input_bridge is None else read_bridge(config.input_bridge)
    if bridge != model_config.input_bridge and (location / TRAINED_FILE).is_file():
        raise UserInputError(
            f"input_bridge is {bridge}, and {location} has trained weights of {model_config.input_bridge}, which would be "
            "lost: start from a folder that holds its config.json alone"
        )
    model_config.input_bridge = bridge
    _change_decoders(model_config, config.decoders)
    if config.rope_parameters or config.sliding_window:
        model_config.lengthen(config.rope_parameters, config.sliding_window)
    return location, model_config


def _change_decoders(model_config: NextGPTConfig, changes: dict[str, dict[str, Any]]) -> None:
    """Puts other decoders in the place of a model's; local folders are read from where the command runs.

    Raises:
        UserInputError: the model makes no such modality, or what is given is no decoder of it.
    """
    for modality, given in changes.items():
        if modality not in model_config.decoders:
            raise UserInputError(
                f"decoders names {modality}, and this model makes {listed([*model_config.decoders])}: only a decoder that "
                "it has can be replaced by another"
            )
        own, location = model_config.decoders[modality], model_config.location(modality)
        spec = {"kind": own.get("kind")} | given
        if Path(spec["source"]).is_dir():
            spec["source"] = str(Path(spec["source"]).resolve())
        same = all(given.get(key, own.get(key)) == own.get(key) for key in ("kind", "revision"))
        if same and spec["source"] in (own["source"], location):
            spec = own | given | {"source": own["source"]}  # what else is known of it stays: its licence, its fingerprint
        model_config.decoders[modality] = spec
    if changes:
        try:
            _ = model_config.conditioning_shapes
        except (ModelLoadError, UserInputError, OSError) as error:
            raise UserInputError(f"decoders: {first_line(error)}") from None


def replaced_decoders(location: Path, model_config: NextGPTConfig) -> list[str]:
    """The modalities whose decoder is not that of the saved model: its output projection would not fit."""

    def decoder(config: NextGPTConfig, modality: str) -> tuple[str | None, ...]:
        part = config.part(modality)
        return part.kind, config.location(modality), part.revision

    saved = NextGPTConfig.from_pretrained(location)
    return [modality for modality in saved.decoders if decoder(model_config, modality) != decoder(saved, modality)]


def _change_adapter(model_config: NextGPTConfig, changes: dict[str, Any], location: Path) -> bool:
    """Changes a model's adapter as a run asks; whether what the model in `location` has of it is to be loaded.

    Raises:
        UserInputError: a setting is not peft's, or another type would drop what the model's adapter has learned.
    """
    old = model_config.adapter
    if not changes:
        return True
    is_trained = model_config.trained_groups is None or "adapter" in model_config.trained_groups
    if old and changes.get("peft_type", old["peft_type"]) == old["peft_type"]:
        check_settings(old | changes)
        model_config.adapter = old | changes
        return is_trained  # else it starts afresh, of another rank if asked for
    if old and is_trained and (location / weights_file(old)).is_file():
        raise UserInputError(
            f"adapter has peft_type {changes['peft_type']}, and {location} a trained {title(old)} adapter, which would be "
            "lost: start from a model whose adapter is not trained yet"
        )
    model_config.adapter = read_settings(changes)
    return False


def load_processor(location: Path, model_config: NextGPTConfig) -> NextGPTProcessor:
    """The processor that was saved with a model, or a new one for a model that was never trained."""
    if (location / PROCESSOR_FILE).is_file():
        return NextGPTProcessor.from_pretrained(location)
    return NextGPTProcessor.from_config(model_config)
