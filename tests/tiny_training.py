"""Tiny worlds to train in: a model's frozen parts, pictures, data for each stage, and a configuration to run them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nextgpt.train.config import TrainingConfig
from tiny_models import tiny_config

REPOSITORY = Path(__file__).resolve().parents[1]
COLOURS = ("red", "green", "blue", "yellow")


def naming(colour: str) -> dict:
    question = [{"type": "image", "path": f"pictures/{colour}.png"}, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"A {colour} one."}]}


def drawing(colour: str) -> dict:
    picture = {"type": "image", "caption": f"a {colour} square", "path": f"pictures/{colour}.png"}
    return {
        "messages": [
            {"role": "user", "content": f"draw {colour}"},
            {"role": "assistant", "content": [{"type": "text", "text": "Here: "}, picture]},
        ]
    }


def write_lines(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def make_responsive(file: Path) -> None:
    """Random weights of the usual scale hardly pass on what they are shown; a projection can teach larger ones."""
    scaled = {name: tensor * 8 if tensor.ndim == 2 else tensor for name, tensor in load_file(file).items()}
    save_file(scaled, file, metadata={"format": "pt"})


def build_world(folder: Path) -> Path:
    """A folder with a model's configuration and frozen parts, four pictures, and data for each stage."""
    tiny_config(folder / "parts").save_pretrained(folder / "model")
    written = folder / "model" / "config.json"  # names the parts by relative paths, as a folder that may move does
    written.write_text(written.read_text().replace(str(folder / "parts"), "../parts"))
    make_responsive(folder / "parts" / "language_model" / "model.safetensors")
    (folder / "pictures").mkdir()
    for colour in COLOURS:
        Image.new("RGB", (32, 32), colour).save(folder / "pictures" / f"{colour}.png")
    write_lines(folder / "align_encoders.jsonl", [naming(colour) for colour in COLOURS])
    write_lines(folder / "align_decoders.jsonl", [drawing(colour) for colour in COLOURS])
    write_lines(folder / "instruct.jsonl", [make(colour) for colour in COLOURS for make in (naming, drawing)])
    return folder


def settings(world: Path, stage: str, output: Path, **changes) -> dict:
    """What a training file says."""
    values = {
        "model": str(world / "model"),
        "data": [str(world / f"{stage}.jsonl")],
        "output_dir": str(output),
        "features": str(world / "features"),
        "learning_rate": 1e-2,
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "logging_steps": 2,
        "save_steps": 6,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "sample_steps": 0,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return values | changes


def config_for(world: Path, stage: str, output: Path, **changes) -> TrainingConfig:
    return TrainingConfig.from_dict(settings(world, stage, output, **changes))


def log_of(folder: Path) -> list[dict]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def checkpoint_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors") | load_file(folder / "lora" / "adapter_model.safetensors")
