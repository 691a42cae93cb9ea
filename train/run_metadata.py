"""The metadata of a training run, `run.json` in its folder: settings, data, versions, hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from nextgpt.adapters import folder_name, weights_file
from nextgpt.checkpoint import TRAINED_FILE
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.hub.fingerprints import file_hash
from nextgpt.hub.parts import preset_names
from nextgpt.report.info import RUN_FILE, describe_environment
from nextgpt.train.config import TrainingConfig
from nextgpt.train.data.dataset import ChatDataset
from nextgpt.train.data.files import json_line, whole_file
from nextgpt.train.data.hashes import FileHashes
from nextgpt.train.data.store import SKIPPED_FILE, Skipped

OF_THE_OPTIMIZER = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "max_grad_norm", "bf16", "fp16"),
)
# Left out of an identity where nothing was chosen.
CHOICES = ("trains", "decoders", "input_bridge", "adapter", "lora", "rope_parameters", "sliding_window", "learning_rates")
ARGUMENTS_OF_CHOICES = ("optim_args", "lr_scheduler_kwargs")  # likewise
WEIGHT_FILES = ("*.json", "*.model", "*.safetensors", "*.bin", "*.pth", "*/*.json", "*/*.safetensors")


def run_identity(
    stage: str, config: TrainingConfig, arguments: TrainingArguments, dataset: ChatDataset, model_fingerprint: str
) -> dict[str, Any]:
    """What two runs must share to go through the same sequence of steps: the identity that checkpoints carry.

    How many steps there are is no part of it: a run may go on for longer than it was meant to.
    """
    step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    chosen = {name: getattr(config, name) for name in CHOICES if getattr(config, name)}
    chosen |= {name: str(getattr(arguments, name)) for name in ARGUMENTS_OF_CHOICES if getattr(arguments, name)}
    chosen |= {name: getattr(config, name) for name in config.of_the_objective}
    return (
        chosen
        | {
            "stage": stage,
            "the starting model": model_fingerprint,
            "the data": dataset.fingerprint,
            "the media": dataset.media_fingerprint(denoising=config.denoising),
            "the number of conversations": len(dataset),
            "data_weights": config.data_weights,
            "loss_weights": config.loss_weights,
            "denoising": config.denoising,
            "dtype": config.dtype,
            "max_length": config.max_length,
            "seed": arguments.seed,
            "conversations per step": step,
            "train_sampling_strategy": str(arguments.train_sampling_strategy),
        }
        | {name: str(getattr(arguments, name)) for name in OF_THE_OPTIMIZER}
    )


def fingerprint_model(config: NextGPTConfig, hashes: FileHashes) -> str:
    """A hash of what a model is when training starts: its trained tensors and its frozen parts."""
    own = [TRAINED_FILE] + ([f"{folder_name(config.adapter)}/*.safetensors"] if config.adapter else [])
    found = [hashes.fingerprint(str(config.base_folder), None, own)]
    found += [
        hashes.fingerprint(config.location(name), part.revision, WEIGHT_FILES) for name, part in config.parts().items()
    ]
    return hashlib.sha256("".join(found).encode()).hexdigest()


def write_start(
    folder: str | Path,
    stage: str,
    config: TrainingConfig,
    arguments: TrainingArguments,
    dataset: ChatDataset,
    identity: dict[str, Any],
    resumed_from: str | None,
) -> None:
    """Writes the facts of a run as it starts; a run that is resumed keeps its earlier starts."""
    earlier = read_metadata(folder).get("starts", []) if resumed_from else []
    start = {
        "time": _now(),
        "resumed_from": resumed_from,
        "git_revision": git_revision(),
        "versions": dict(describe_environment()),
        "processes": arguments.world_size,
        "device": str(arguments.device),
    }
    metadata = {
        "stage": stage,
        "base_model": base_model(config.model),
        "configuration": dataclasses.asdict(config),
        "data": {
            "files": config.data,
            "fingerprint": dataset.fingerprint,
            "conversations": len(dataset),
            "tokens": int(dataset.lengths.sum()),
            "skipped": len(dataset.skipped),
        },
        "model_fingerprint": identity["the starting model"],
        "seed": arguments.seed,
        "starts": [*earlier, start],
    }
    write_metadata(folder, metadata)
    write_skipped(Path(folder) / SKIPPED_FILE, dataset.skipped)


def base_model(model: str) -> str:
    """The preset, repository or folder that the first of several trainings started from; `model`: where this one does."""
    if model in preset_names() or not Path(model).is_dir():
        return model
    for folder in (Path(model), Path(model).parent):  # the model may be a checkpoint in a run's folder
        if earlier := read_metadata(folder):
            return earlier.get("base_model") or base_model(earlier["configuration"]["model"])
    return Path(model).resolve().name


def finished_metadata(folder: str | Path, model: Path, config: NextGPTConfig, state: Any) -> dict[str, Any]:
    """The metadata of a run, with how it ended and the hashes of the trained weights in `model`."""
    files = [TRAINED_FILE] + ([weights_file(config.adapter)] if config.adapter else [])
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    finish = {"time": _now(), "steps": state.global_step, "epochs": state.epoch, "loss": losses[-1] if losses else None}
    hashes = {name: file_hash(model / name) for name in files if (model / name).is_file()}
    return read_metadata(folder) | {"finished": finish, "hashes": hashes}


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """The facts of a run; empty where there are none."""
    file = Path(folder) / RUN_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write_skipped(file: Path, skipped: Iterable[Skipped]) -> None:
    """One line of JSON for each item that was left out; no file where there was none."""
    lines = [json_line(item._asdict()) for item in skipped]
    if lines:
        file.write_bytes(b"".join(lines))
    else:
        file.unlink(missing_ok=True)


def git_revision() -> str | None:
    """The commit that this code is at, with `+changes` where it has more; None outside a checkout of it."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # else it is another project's checkout that we are installed in
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write_metadata(folder: str | Path, metadata: dict[str, Any]) -> None:
    """Writes the facts of a run, whole or not at all."""
    file = Path(folder) / RUN_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metadata, indent=2, ensure_ascii=False, default=str) + "\n"
    with whole_file(file) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
