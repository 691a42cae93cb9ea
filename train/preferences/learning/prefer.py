"""`nextgpt train prefer`: learns from pairs of answers, on top of what a checkpoint has learned.

Words and kinds learn by DPO or KTO on the tokens that the model chose, what a medium shows by Diffusion-DPO. The reference
is the checkpoint that the run began from: a frozen copy of its adapter, projections and signal rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.events import MAX_SEED
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import IGNORED_LABEL, NextGPTProcessor
from nextgpt.train.data.dataset import TrainingFeatures
from nextgpt.train.preferences.learning.data import (
    AnswerReader,
    PairCollator,
    PairConversations,
    Pairs,
    check_something_differs,
)
from nextgpt.train.preferences.learning.diffusion_dpo import denoising_errors
from nextgpt.train.preferences.learning.objectives import (
    diffusion_margins,
    dpo_loss,
    kto_divergence,
    kto_loss,
    margins,
)
from nextgpt.train.preferences.learning.policy import Reference, read_answers
from nextgpt.train.preferences.learning.settings import PreferenceConfig
from nextgpt.train.preferences.learning.trainer import PolicyTrainer, check_one_process, check_policy
from nextgpt.train.preferences.pairs import read_pairs
from nextgpt.train.stages import STAGES, Stage, make_sampler, workers_for


class Answers(NamedTuple):
    """What a model says of the answers of a batch, chosen ones first.

    Args:
        words: `[2 × pairs]`, log-probability of each one's tokens.
        elsewhere: `[2 × pairs]`, of each answer behind the prompt of another one; for KTO.
        errors: modality → `[2, media]`, denoising errors.
    """

    words: Tensor
    elsewhere: Tensor | None
    errors: dict[str, Tensor]


class PreferenceTrainer(PolicyTrainer):
    """A `PolicyTrainer` whose parts of the loss are `words`, `sft` and, for each kind of media, `media/<modality>`."""

    def __init__(self, *args: Any, settings: PreferenceConfig, **kwargs: Any):
        super().__init__(*args, settings=settings, **kwargs)
        self._part_names = ["words", *(["sft"] if settings.sft_weight else [])]
        self._part_names += [f"media/{modality}" for modality in self.model.decoders]
        self.reference = Reference(self.model)

    def _counts(self, batch: dict) -> dict[str, int]:
        rows = len(batch["input_ids"])
        counts = dict.fromkeys(self._part_names, 0) | {"words": rows if self.settings.objective == "kto" else rows // 2}
        if "sft" in counts:
            counts["sft"] = int((batch["labels"][: rows // 2] != IGNORED_LABEL).sum())
        return counts | {f"media/{modality}": given["places"].shape[1] for modality, given in batch["media"].items()}

    def weight_of(self, name: str) -> float:
        if name == "words":
            return 1.0
        return self.settings.sft_weight if name == "sft" else self.settings.media_weight

    def losses_of(self, model: nn.Module, inputs: dict) -> dict[str, Tensor]:
        settings, seed = self.settings, int(torch.randint(MAX_SEED, ()))
        if settings.objective == "kto":
            given = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
            inputs = inputs | {"elsewhere": _elsewhere(*given, self.model.config.max_positions)}
        with self.accelerator.autocast():
            with self.reference.in_place():  # first: a graph must not see the weights change
                then = self._answers(model, inputs, seed)
            now = self._answers(model, inputs, seed)
        pairs = len(now.words) // 2
        sides = [*now.words.chunk(2), *then.words.chunk(2)]
        self._note("words", settings.beta * margins(*sides))
        if settings.objective == "kto":
            ratios, desirable = now.words - then.words, torch.arange(2 * pairs, device=now.words.device) < pairs
            # A batch of one pair has no other prompt; its answers count by themselves.
            divergence = kto_divergence(now.elsewhere - then.elsewhere) if pairs > 1 else ratios.new_zeros(())
            weights = settings.desirable_weight, settings.undesirable_weight
            losses = {"words": kto_loss(ratios, desirable, divergence, settings.beta, *weights).mean()}
        else:
            losses = {"words": dpo_loss(margins(*sides), settings.beta).mean()}
        if settings.sft_weight:
            losses["sft"] = -sides[0].sum() / max(int((inputs["labels"][:pairs] != IGNORED_LABEL).sum()), 1)
        for modality, errors in now.errors.items():
            found = diffusion_margins(*errors, *then.errors[modality])
            self._note(f"media/{modality}", settings.media_beta * found)
            losses[f"media/{modality}"] = dpo_loss(found, settings.media_beta).mean()
        return losses

    def _answers(self, model: nn.Module, inputs: dict, seed: int) -> Answers:
        given = {name: inputs[name] for name in ("attention_mask", "media_features") if name in inputs}
        reading = read_answers(model, inputs["input_ids"], labels=inputs["labels"], **given)
        elsewhere = None
        if "elsewhere" in inputs:
            with torch.no_grad():
                ids, mask, labels = inputs["elsewhere"]
                elsewhere = read_answers(model, ids, mask, labels, inputs.get("media_features")).log_probabilities.sum(1)
        errors = {
            modality: denoising_errors(self.model, modality, reading, **media, seed=seed)
            for modality, media in inputs["media"].items()
        }
        return Answers(reading.log_probabilities.sum(1), elsewhere, errors)

    def _note(self, name: str, found: Tensor) -> None:
        """Notes, for the log, the margins of a part; pairs that do not differ in it count as undecided."""
        found = found.detach()
        self.noted[f"margin/{name}"] += found.tolist()
        self.noted[f"accuracy/{name}"] += [0.5 if each == 0 else float(each > 0) for each in found.tolist()]


def _elsewhere(ids: Tensor, mask: Tensor, labels: Tensor, limit: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The answers of a batch, each behind the prompt of the next row, as trl has it: ids, mask and labels.

    A row's prompt ends where its answer's tokens begin; prompts keep their order, and so do the media in them. What is
    longer than `limit`, the LLM's positions, ends there.
    """
    starts = (labels != IGNORED_LABEL).int().argmax(1).tolist()
    ends = mask.sum(1).tolist()
    rows = []
    for row, start in enumerate(starts):
        answer = slice(starts[row - 1], ends[row - 1])
        own = torch.full((start,), IGNORED_LABEL, device=ids.device)
        joined = torch.cat([ids[row, :start], ids[row - 1, answer]]), torch.cat([own, labels[row - 1, answer]])
        rows.append(tuple(each[:limit] for each in joined))
    length = max(len(row) for row, _ in rows)
    new_ids, new_mask = ids.new_zeros(len(rows), length), mask.new_zeros(len(rows), length)
    new_labels = labels.new_full((len(rows), length), IGNORED_LABEL)
    for number, (row, own) in enumerate(rows):
        new_ids[number, : len(row)], new_mask[number, : len(row)], new_labels[number, : len(row)] = row, 1, own
    return new_ids, new_mask, new_labels


def open_pairs(
    stage: str, config: PreferenceConfig, model_config: NextGPTConfig, processor: NextGPTProcessor, *, retry: bool = True
) -> PairConversations:
    """The pairs that a run learns from.

    Raises:
        UserInputError: a pair cannot be learned from; it names the file and the line.
    """
    pairs = read_pairs(config.data, heldout=read_pairs(config.heldout) if config.heldout else ())
    reader = AnswerReader(processor, max_length=config.max_length or model_config.max_positions)
    conversations = PairConversations(pairs, config.data, reader, config.features, workers_for(config))
    check_something_differs(conversations, media=config.denoising)
    return conversations


def make_trainer(
    stage: str,
    config: PreferenceConfig,
    arguments: TrainingArguments,
    model: NextGPTForConditionalGeneration,
    processor: NextGPTProcessor,
    conversations: PairConversations,
    features: TrainingFeatures,
    identity: dict[str, Any],
) -> PreferenceTrainer:
    """The trainer of pairs."""
    check_one_process(arguments)
    check_policy(model)
    pairs = Pairs(conversations)
    return PreferenceTrainer(
        processor,
        make_sampler(config, arguments, pairs.sources, pairs.lengths),
        identity,
        config.learning_rates,
        settings=config,
        model=model,
        args=arguments,
        train_dataset=pairs,
        data_collator=PairCollator(processor.tokenizer.pad_token_id, features, processor.vocabulary),
    )


PLAN = Stage(STAGES["instruct"].trains, needs=None, open_dataset=open_pairs, make_trainer=make_trainer, captions=False)
