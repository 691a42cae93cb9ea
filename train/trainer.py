"""transformers' `Trainer` with what these stages need: whole checkpoints, losses normalised over the step, clear errors.

Which parts are trained, and on what, `nextgpt.train.stages` decides.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from nextgpt.configuration_nextgpt import without_tensor
from nextgpt.errors import NextGPTError
from nextgpt.hardware import is_out_of_memory
from nextgpt.processing_nextgpt import IGNORED_LABEL, NextGPTProcessor
from nextgpt.train.checkpoints import IDENTITY_FILE, clear_unfinished, prune, publish, unfinished_folder


class TrainingStopped(NextGPTError):
    """Training cannot go on: the loss is not a number, or memory is out."""


class StageTrainer(Trainer):
    """A `Trainer` whose checkpoints are whole and hold only what is trained.

    Each part of the loss is a mean over the whole optimizer step (the text's over its tokens, the others over the media),
    whatever the numbers of processes and of batches it is made of.

    Args:
        processor: saved beside the model.
        sampler: the order of the conversations.
        identity: what a run must share with a checkpoint to go on from it.
        learning_rates: of single trained parts (`input_projection` …), where the arguments' own is not theirs.
    """

    def __init__(
        self,
        processor: NextGPTProcessor,
        sampler: Sampler,
        identity: dict[str, Any],
        learning_rates: dict[str, float] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.learning_rates = learning_rates or {}
        self.processor = processor  # not as `processing_class`: the Trainer would change the model's special tokens
        self.sampler, self.identity = sampler, identity
        self.loss_is_scaled_for_ga = True
        projections = self.model.output_projections.items()
        conditioning = [f"conditioning/{modality}/{name}" for modality, each in projections for name in each.shapes]
        self._part_names = ["text", *conditioning, *(f"denoising/{modality}" for modality, _ in projections)]
        self._meter = _Meter()
        self._saving = False
        self.add_callback(LogAtEnd())
        if self.pop_callback(ProgressCallback):
            self.add_callback(ProgressBar())

    # ------------------------------------------------------------------ loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return self.sampler

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As the `Trainer` makes it, with groups of their own for parts that have their own learning rate."""
        optimizer = super().create_optimizer(*args, **kwargs)
        for part, rate in self.learning_rates.items():
            own = {id(each) for each in self.model.group_parameters(part).values()}
            for group in list(optimizer.param_groups):
                moved = [each for each in group["params"] if id(each) in own]
                if moved:
                    group["params"] = [each for each in group["params"] if id(each) not in own]
                    optimizer.add_param_group({**group, "params": moved, "lr": rate})
        return optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, dict[str, float]]:
        """The batches of one step, and how many tokens or media each part of the loss has in it over all processes."""
        began = time.perf_counter()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self.prepared(batch) for batch in batches]
        counts = [self._counts(batch) for batch in batches]
        sums = [sum(count[name] for count in counts) for name in self._part_names]
        self._step_ids = [each for batch in batches for each in batch["ids"]]
        conversations = len(self._step_ids)
        totals = torch.tensor([*sums, conversations], dtype=torch.float32, device=device)
        *totals, conversations = self.accelerator.reduce(totals, "sum").tolist()
        totals = {name: total for name, total in zip(self._part_names, totals, strict=True) if total}
        self._meter.start_step(totals, conversations, time.perf_counter() - began)
        return batches, totals

    def prepared(self, batch: dict) -> dict:
        """What a step makes of a batch before anything of it is counted."""
        return batch

    def _counts(self, batch: dict) -> dict[str, int]:
        """Part of the loss → its tokens or media in this batch."""
        counts = dict.fromkeys(self._part_names, 0)
        counts["text"] = int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
        for modality, tensors in batch.get("conditioning_targets", {}).items():
            counts |= {f"conditioning/{modality}/{name}": len(rows) for name, rows in tensors.items()}
        counts |= {f"denoising/{modality}": len(rows) for modality, rows in batch.get("media_latents", {}).items()}
        return counts

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: dict[str, float] | None = None,
    ) -> Any:
        """This batch's share of the step's loss (see `get_batch_samples`), times the processes that it is averaged over.

        Raises:
            TrainingStopped: the loss is not a finite number.
        """
        ids = inputs.pop("ids")
        losses = self.losses_of(model, inputs)
        counts = self._counts(inputs)
        loss = torch.zeros((), device=self.args.device)
        for name, mean in losses.items():
            share = mean
            if num_items_in_batch is not None:
                share = mean * (counts[name] * self.args.world_size / max(num_items_in_batch.get(name, 0), 1))
                self._meter.parts[name] = self._meter.parts[name] + share.detach()
            loss = loss + self.weight_of(name) * share
        if not loss.requires_grad:  # a batch without anything of what is trained
            loss = loss + sum(each.sum() for each in model.parameters() if each.requires_grad) * 0.0
        if not torch.isfinite(loss):
            raise TrainingStopped(self._not_finite("loss", loss.item(), ids))
        return (loss, losses) if return_outputs else loss

    def losses_of(self, model: nn.Module, inputs: dict) -> dict[str, Tensor]:
        """The parts of a batch's loss, each a mean over what `_counts` counts of it."""
        return model(**inputs).losses

    def weight_of(self, name: str) -> float:
        """The weight of one part of the loss."""
        return self.model.config.loss_weight(name)

    def _not_finite(self, what: str, value: float, ids: list[str]) -> str:
        return (
            f"the {what} of step {self.state.global_step + 1} is {value}, in the batch of {', '.join(ids)}: look at "
            "these items, lower learning_rate, or leave bf16/fp16 out; the checkpoints before it are whole"
        )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As the `Trainer` has it.

        Raises:
            TrainingStopped: it is not a finite number; the optimizer's step would spoil the weights.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not self.args.fp16 and not math.isfinite(norm):  # fp16's scaler leaves such steps out
            raise TrainingStopped(self._not_finite("gradients' norm", float(norm), self._step_ids))
        return norm

    def training_step(self, model: nn.Module, inputs: dict, *args: Any, **kwargs: Any) -> Tensor:
        shape = tuple(inputs["input_ids"].shape)
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError among them
            if not is_out_of_memory(error):
                raise
            raise TrainingStopped(
                f"out of memory at step {self.state.global_step + 1}, in a batch of {shape[0]} conversations of up to "
                f"{shape[1]} tokens: lower per_device_train_batch_size (now {self.args.per_device_train_batch_size}) and "
                "raise gradient_accumulation_steps by as much, or set activation_checkpointing=true, a lower max_length, "
                "bf16=true, dtype=bfloat16"
            ) from error

    # ------------------------------------------------------------------ log

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the parts of the loss, conversations per second, and the share of the time that went into the input."""
        if "loss" in logs:
            sums = torch.stack([torch.as_tensor(self._meter.parts[n], device=self.args.device) for n in self._part_names])
            sums = self.accelerator.reduce(sums.float(), "mean").tolist()
            logs |= self._meter.read(dict(zip(self._part_names, sums, strict=True)))
            self._meter = _Meter()
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict) -> int:
        """Not counted: the `Trainer` would walk through all parameters at every step of a small model."""
        return 0

    # ------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Written to a folder beside, by all processes, then renamed by one."""
        run, name = Path(self.args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            clear_unfinished(run)
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = unfinished_folder(run) / name
            (folder / IDENTITY_FILE).write_text(json.dumps(self.identity, indent=2) + "\n", encoding="utf-8")
            publish(folder, run / name)
            prune(run, self.args.save_total_limit)

    def _get_output_dir(self, trial: Any) -> str:
        return str(unfinished_folder(self.args.output_dir)) if self._saving else self.args.output_dir

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder, run = Path(output_dir or self.args.output_dir), Path(self.args.output_dir)
        destination = run / folder.name if self._saving else run
        self.accelerator.unwrap_model(self.model).save_pretrained(folder, destination=destination)
        self.processor.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.accelerator.unwrap_model(model or self.model).load_trained(resume_from_checkpoint)


class _Meter:
    """What is measured between two lines of the log."""

    def __init__(self):
        self.parts: dict[str, Any] = defaultdict(float)  # part of the loss → sum over the steps
        self.steps: dict[str, int] = defaultdict(int)  # part of the loss → steps that had it
        self.conversations = self.input_seconds = 0.0
        self.started: float | None = None  # when the first batch was asked for

    def start_step(self, totals: dict[str, float], conversations: float, input_seconds: float) -> None:
        self.started = self.started or time.perf_counter() - input_seconds
        for name in totals:
            self.steps[name] += 1
        self.conversations += conversations
        self.input_seconds += input_seconds

    def read(self, sums: dict[str, float]) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        logs = _with_sums({name: sums[name] / steps for name, steps in self.steps.items()})
        return {f"loss/{name}": value for name, value in logs.items()} | {
            "samples_per_second": round(self.conversations / seconds, 3),
            "input_share": round(self.input_seconds / seconds, 4),
        }


def _with_sums(parts: dict[str, float]) -> dict[str, float]:
    """`conditioning/<modality>` is the sum over its decoder's tensors, which stand behind it where they are several."""
    tensors: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in parts.items():
        tensors[without_tensor(name)][name] = value
    logs = {}
    for name, own in tensors.items():
        logs |= {name: sum(own.values())} | (own if len(own) > 1 else {})
    return logs


class LogAtEnd(TrainerCallback):
    """Logs the last step too, however short a run is."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= state.global_step >= state.max_steps


class ProgressBar(ProgressCallback):
    """The `Trainer`'s bar, with the time left, and the loss and its parts behind it instead of between its lines."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            shown = {name: value for name, value in logs.items() if name.startswith("loss")}
            shown["samples/s"] = logs["samples_per_second"]
            self.training_bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})
