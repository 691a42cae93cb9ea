"""Training of the output projections alone: what they read of a conversation is computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nextgpt.processing_nextgpt import IGNORED_LABEL
from nextgpt.train.trainer import StageTrainer

PROJECTIONS_ALONE = ("output_projections",)


class ProjectionTrainer(StageTrainer):
    """A `StageTrainer` for runs that train the output projections and nothing before them.

    The LLM says the same of a conversation each time, so it reads each one when it is met for the first time; from then on
    the projections learn from the kept signal states, `[signal_tokens, hidden]` a run in main memory. The text, of which
    nothing is learned, has no loss.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._kept: dict[str, dict[str, Tensor]] = {}  # conversation → modality → [runs, signal_tokens, hidden]

    def prepared(self, batch: dict) -> dict:
        """The conversations' signal states in place of their tokens."""
        rows = (batch["attention_mask"].sum(1) > 1).nonzero()[:, 0].tolist()  # a blank conversation has one token
        new = [row for row, name in zip(rows, batch["ids"], strict=True) if name not in self._kept]
        if new:
            self._read(batch, rows, new)
        kept = [self._kept[name] for name in batch["ids"]]
        states = {
            modality: torch.cat([each[modality] for each in kept]) for modality in batch.get("conditioning_targets", {})
        }
        others = {name: batch[name] for name in ("conditioning_targets", "media_latents") if name in batch}
        labels = torch.full_like(batch["labels"], IGNORED_LABEL)
        return {"ids": batch["ids"], "input_ids": batch["input_ids"], "labels": labels, "signal_states": states} | others

    @torch.no_grad()
    def _read(self, batch: dict, rows: list[int], new: list[int]) -> None:
        """Keeps what the LLM says of the conversations in the rows `new`; `rows` are those that `ids` names."""
        model, device = self.accelerator.unwrap_model(self.model), self.args.device
        ids = batch["input_ids"][new]
        given = {"input_ids": ids, "attention_mask": batch["attention_mask"][new]}
        if "media_features" in batch:
            media = batch["media_features"].split(model.get_placeholder_mask(batch["input_ids"]).sum(1).tolist())
            chosen = torch.cat([media[row] for row in new])
            given |= {"media_features": chosen} if len(chosen) else {}
        found: dict[str, Tensor] = {}

        def record(hidden_states: Tensor, embeddings: Tensor) -> None:
            for modality in model.output_projections:
                states = model.signal_states(modality, ids.to(hidden_states.device), hidden_states, embeddings)
                found[modality] = sum(states).cpu()

        was_training = model.training
        model.eval()  # no dropout in what is kept
        with self.accelerator.autocast():
            model(**{name: value.to(device) for name, value in given.items()}, logits_to_keep=1, signal_recorder=record)
        model.train(was_training)
        names = dict(zip(rows, batch["ids"], strict=True))
        for modality, states in found.items():
            counts = model.signal_mask(ids, modality).sum(1) // len(model.vocabulary.runs[modality])
            for row, own in zip(new, states.split(counts.tolist()), strict=True):
                self._kept.setdefault(names[row], {})[modality] = own.clone()

    def losses_of(self, model: Any, inputs: dict) -> dict[str, Tensor]:
        """The parts of a batch's loss on media."""
        given = {name: value for name, value in inputs.items() if name not in ("input_ids", "labels")}
        nothing = torch.zeros((), device=self.args.device)  # a projection reads the sum of states and embeddings
        states = {modality: (own, nothing) for modality, own in given.pop("signal_states").items()}
        return model(**given, signal_states=states).losses
