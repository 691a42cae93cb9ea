"""What a trained model of a comparison is measured by: its loss, its memory, its seconds a step, rows of `evaluate`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from nextgpt.errors import NextGPTError
from nextgpt.processing_nextgpt import IGNORED_LABEL
from nextgpt.train.config import TrainingConfig
from nextgpt.train.data.dataset import ChatCollator
from nextgpt.train.stages import frozen_features, open_dataset, trained_groups
from nextgpt.train.start import load_for_training

STATE = "trainer_state.json"
FLOAT = 4  # bytes; trained parts are in fp32
MOMENTS = {"adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0, "adagrad": 1}  # optimizer → its numbers a parameter


def measure(run: Path, training: TrainingConfig, development: list[str], count: int) -> dict[str, Any]:
    """The loss on the development data, and the memory that a step of training takes beside the weights.

    Args:
        run: a trained model.
        training: the settings that it was trained with.
        count: at most so many conversations.

    Returns:
        `loss` and `text_loss`, means as in training; `trained`: parameters in all; `gradients` and `optimizer`: bytes,
        computed (the latter None where the optimizer is not a known one); `activations`: bytes, measured, that the first
        batch keeps for its backward pass; `seconds`: a step's, measured in training.
    """
    config = TrainingConfig.from_dict(
        {
            "model": str(run),
            "data": development,
            "output_dir": str(run),
            **{name: getattr(training, name) for name in ("features", "feature_batch_size", "max_length", "on_bad_item")},
            **{name: getattr(training, name) for name in ("dtype", "loss_weights", "tokenizing_workers")},
        },
        source=str(run),
    )
    arguments = training.training_arguments()
    model, processor = load_for_training(config)
    dataset = open_dataset("instruct", config, model.config, processor)
    features = frozen_features(config, model, processor, dataset, arguments.device)
    model.to(arguments.device).eval()
    collator = ChatCollator(processor.tokenizer.pad_token_id, features)
    size, chosen = arguments.per_device_train_batch_size, range(min(count, len(dataset)))
    batches = [[dataset[i] for i in chosen[start : start + size]] for start in range(0, len(chosen), size)]

    def prepared(examples: list) -> dict[str, Any]:
        batch = collator(examples)
        batch.pop("ids")
        return send_to_device(batch, arguments.device)

    sums, counts = defaultdict(float), defaultdict(int)
    for examples in batches:
        batch = prepared(examples)
        with torch.no_grad():
            losses = model(**batch).losses
        learned = {"text": int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())}
        targets = batch.get("conditioning_targets", {})
        learned |= {f"conditioning/{kind}/{name}": len(t) for kind, each in targets.items() for name, t in each.items()}
        for name, value in losses.items():
            sums[name] += value.item() * learned[name]
            counts[name] += learned[name]
    means = {name: sums[name] / max(counts[name], 1) for name in sums}
    model.train_only(trained_groups("instruct", training))
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    model.train()
    with torch.autocast(arguments.device.type, torch.bfloat16, enabled=arguments.bf16):
        activations = kept_for_backward(model, prepared(batches[0]))
    moments = MOMENTS.get(str(getattr(arguments.optim, "value", arguments.optim)))
    return {
        "loss": sum(model.config.loss_weight(name) * value for name, value in means.items()),
        "text_loss": means["text"],
        "adapter": sum(each.numel() for each in model.group_parameters("adapter").values()),
        "trained": trained,
        "gradients": FLOAT * trained,
        "optimizer": None if moments is None else FLOAT * moments * trained,
        "activations": activations,
        "seconds": seconds_a_step(run, size * arguments.gradient_accumulation_steps),
    }


def kept_for_backward(model: nn.Module, batch: dict[str, Any]) -> int:
    """Bytes of all tensors that a pass keeps for its backward pass, each storage once, the weights not among them."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    kept = []  # so that no storage is given back, and its place used twice, before all are counted

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    del loss
    return sum(found.values())


def seconds_a_step(run: Path, conversations: int) -> float:
    """The median over the log of a run of steps of so many conversations; its first line, with the warming up, left out."""
    history = json.loads((run / STATE).read_text(encoding="utf-8"))["log_history"]
    rates = [entry["samples_per_second"] for entry in history if "samples_per_second" in entry]
    return statistics.median(conversations / rate for rate in rates[1:] or rates)


def evaluate(run: Path, rows: list[str], split: str, quick: bool, log: Path) -> list[dict[str, Any]]:
    """The scores that `nextgpt evaluate` finds, as it prints them in JSON.

    Raises:
        NextGPTError: it failed.
    """
    command = [sys.executable, "-m", "nextgpt", "evaluate", str(run), "--json", "--split", split]
    command += [word for row in rows for word in ("--part", row)] + ["--quick"] * quick
    with log.open("ab") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise NextGPTError(f"{run}: its evaluation ended with code {done.returncode}; see {log}")
    return json.loads(done.stdout)
