"""The frozen parts of a model with random weights, from their configuration files alone: the real sizes, no download."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.encoders import encoder_from_config
from nextgpt.hub.loading import replace_parts
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import NextGPTProcessor
from tiny_text_encoders import tiny_clip_tokenizer, tiny_roberta_tokenizer

# A diffusion pipeline's tokenizer's class → one with a small vocabulary, which any text encoder has rows for.
TOKENIZERS = {"CLIPTokenizer": tiny_clip_tokenizer, "RobertaTokenizer": tiny_roberta_tokenizer}


def save_random_model(name: str, tokenizer: Path, folder: Path, device: torch.device, dtype: torch.dtype) -> Path:
    """Draws every part of a preset or checkpoint anew and starts what is trained afresh; the model's folder.

    Args:
        name: whose configuration files say what it is made of; no weights of it are read.
        tokenizer: folder of one for the LLM, in place of its own.
        folder: to write into; as much space as the weights take.
        device: to draw on.
        dtype: of the weights.
    """
    from transformers import AutoModelForCausalLM

    config = NextGPTConfig.from_pretrained(name)
    parts = {part: folder / part for part in config.part_specs()}
    with _drawing(device, dtype):
        language_model = AutoModelForCausalLM.from_config(config.text_config, dtype=dtype)
    language_model.save_pretrained(parts["language_model"])
    for file in tokenizer.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, parts["language_model"] / file.name)
    del language_model
    with _drawing(device, dtype):
        encoder = encoder_from_config(config.encoder_config)
    encoder.save_pretrained(parts["encoder"])
    del encoder
    for modality in config.signal_tokens:
        configs = Path(config.part(modality).config_location(config.base_folder))
        _save_random_pipeline(configs, parts[modality], device, dtype)
    replace_parts(config, {part: str(path) for part, path in parts.items()})
    model = NextGPTForConditionalGeneration.from_parts(config, dtype=dtype)
    model.save_pretrained(folder / "model")
    NextGPTProcessor.from_config(config).save_pretrained(folder / "model")
    return folder / "model"


def _save_random_pipeline(configs: Path, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Every component of a diffusers pipeline, drawn from its configuration file, in a folder laid out the same way."""
    import diffusers
    import transformers

    index = json.loads((configs / "model_index.json").read_text(encoding="utf-8"))
    for name, entry in index.items():
        if not isinstance(entry, list) or entry[1] is None:
            continue
        library, class_name = entry
        if name == "tokenizer":
            described = json.loads((configs / name / "tokenizer_config.json").read_text(encoding="utf-8"))
            TOKENIZERS[class_name](described["model_max_length"]).save_pretrained(folder / name)
        elif name == "scheduler":
            shutil.copytree(configs / name, folder / name)
        else:
            with _drawing(device, dtype):
                if library == "transformers":
                    part_class = getattr(transformers, class_name)
                    part = part_class(part_class.config_class.from_pretrained(configs / name))
                else:
                    part_class = getattr(diffusers, class_name)
                    part = part_class.from_config(part_class.load_config(configs / name))
            part.save_pretrained(folder / name)
    for file in configs.glob("*.json"):
        shutil.copy(file, folder / file.name)


@contextmanager
def _drawing(device: torch.device, dtype: torch.dtype):
    """Models are built on the device, by their own initialisation, in the precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)
