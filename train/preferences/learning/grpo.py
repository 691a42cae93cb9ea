"""`nextgpt train rl --objective grpo`: a model answers each prompt several times, and learns what its rewards prefer.

It answers as ever, through the pipeline, media included; rewards are plain functions (`nextgpt.train.preferences.rewards`).
Words and kinds learn: what counts are the tokens that the model chose. (Shao et al. 2024, https://arxiv.org/abs/2402.03300)
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import UserInputError
from nextgpt.events import MAX_SEED, GenerationOptions, Reply
from nextgpt.hub.loading import load_frozen_decoder
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.multimodal.generation_modes import check_decoder_options
from nextgpt.pipeline import NextGPTPipeline
from nextgpt.processing_nextgpt import IGNORED_LABEL, NextGPTProcessor
from nextgpt.train.data.dataset import ChatCollator, TrainingFeatures
from nextgpt.train.preferences.collect.answers import SampledAnswers, read_prompts
from nextgpt.train.preferences.learning.data import PromptReader, Prompts
from nextgpt.train.preferences.learning.objectives import group_advantages, grpo_loss
from nextgpt.train.preferences.learning.policy import Reference, chosen_tokens, read_answers
from nextgpt.train.preferences.learning.settings import GRPOConfig
from nextgpt.train.preferences.learning.trainer import PolicyTrainer, check_one_process, check_policy
from nextgpt.train.preferences.media_fit import MediaEmbedder
from nextgpt.train.preferences.pairs import KINDS, places_by_kinds
from nextgpt.train.preferences.rewards import Reward, load_reward
from nextgpt.train.stages import STAGES, Stage, make_sampler, workers_for

logger = logging.getLogger(__name__)


class GRPOTrainer(PolicyTrainer):
    """A `PolicyTrainer` whose batches are prompts, and whose steps begin with answering them."""

    def __init__(
        self,
        *args: Any,
        settings: GRPOConfig,
        prompts: Prompts,
        features: TrainingFeatures,
        rewards: list[Reward],
        **kwargs: Any,
    ):
        super().__init__(*args, settings=settings, **kwargs)
        self.prompts, self.rewards = prompts, rewards
        self._part_names = ["policy"]
        self.collate = ChatCollator(self.processor.tokenizer.pad_token_id, features)
        self.reference = Reference(self.model) if settings.beta else None
        config, device = self.model.config, self.args.device
        decoders = {modality: load_frozen_decoder(config, modality, device) for modality in config.signal_tokens}
        for modality, options in settings.media.items():
            if modality not in decoders:
                raise UserInputError(f"media names {modality}, which this model's answers do not hold")
            check_decoder_options(decoders[modality], options)
        self.pipeline = NextGPTPipeline(self.model, self.processor, decoders)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            self.pipeline.close()

    # ------------------------------------------------------------------ answering

    def prepared(self, batch: dict) -> dict:
        """Prompts → what was answered to them, with the advantage of each answer; those to one prompt stand together."""
        rows = [self.prompts.rows[index] for index in batch["indices"] for _ in range(self._count)]
        self.model.eval()
        try:
            asked = [self.prompts.rows[index] for index in batch["indices"]]
            rounds = [self._answer(asked, self._seed(batch["indices"], number)) for number in range(self._count)]
        finally:
            self.model.train()
        replies = [reply for group in zip(*rounds, strict=True) for reply in group]
        rewards = self._reward(rows, replies)
        advantages = group_advantages(rewards, self._count)
        self._note(rewards, advantages, replies)
        examples = [self.prompts[index] for index in batch["indices"] for _ in range(self._count)]
        for example, reply in zip(examples, replies, strict=True):
            answer = torch.tensor(reply.token_ids, dtype=torch.long)
            ids = torch.cat([example["input_ids"], answer])
            spoken = torch.arange(len(ids)) >= len(example["input_ids"])
            counted = torch.from_numpy(chosen_tokens(ids.numpy(), spoken.numpy(), self.model.vocabulary))
            example |= {"input_ids": ids, "labels": ids.masked_fill(~counted, IGNORED_LABEL)}
        answered = self._prepare_inputs(self.collate(examples)) | {"advantages": advantages.to(self.args.device)}
        return answered | {"ids": batch["ids"]}

    @property
    def _count(self) -> int:
        return self.settings.num_generations

    def _seed(self, indices: list[int], number: int) -> int:
        """Of a batch's answers of one round: the same where a run goes on from a checkpoint as in a straight one.

        The generator of the training is no help: the trainer restores it after it has fetched the first batches.
        """
        return random.Random(f"{self.args.seed} {self.state.global_step} {indices} {number}").randrange(MAX_SEED)

    def _answer(self, rows: list[SampledAnswers], seed: int) -> list[Reply]:
        """A reply to each, those together that may hold the same kinds."""
        settings = self.settings
        options = {"max_new_tokens": settings.max_new_tokens, "temperature": settings.temperature, **settings.media}
        replies: dict[int, Reply] = {}
        for places in places_by_kinds([row.output_modalities for row in rows]):
            prompts, told = [rows[place].prompt for place in places], {KINDS: rows[places[0]].output_modalities}
            answered = self.pipeline(prompts, do_sample=True, seed=seed, **options | told)
            replies |= zip(places, answered, strict=True)
        return [replies[place] for place in range(len(rows))]

    def _reward(self, rows: list[SampledAnswers], replies: list[Reply]) -> Tensor:
        """The weighted sum of the rewards, NaN where none applies."""
        prompts, completions = [row.prompt for row in rows], [[reply.message] for reply in replies]
        names = dict.fromkeys(name for row in self.prompts.rows for name in row.columns)
        columns = {name: [row.columns.get(name) for row in rows] for name in names}
        found = []
        for reward in self.rewards:
            given = [torch.nan if each is None else each for each in reward(prompts, completions, **columns)]
            found.append(torch.tensor(given))
            self.noted[f"reward/{reward.__name__}"] += found[-1][found[-1].isfinite()].tolist()
        stacked = torch.stack(found)  # [rewards, answers]
        weights = torch.tensor(self.settings.reward_weights or [1.0] * len(found))
        total = (stacked * weights[:, None]).nansum(0)
        return total.masked_fill(stacked.isnan().all(0), torch.nan)

    def _note(self, rewards: Tensor, advantages: Tensor, replies: list[Reply]) -> None:
        self.noted["reward"] += rewards[rewards.isfinite()].tolist()
        self.noted["tokens"] += [float(len(reply.token_ids)) for reply in replies]
        self.noted["finished"] += [float(reply.finished) for reply in replies]
        self.noted["groups_alike"] += (~advantages.view(-1, self._count).any(1)).float().tolist()

    # ------------------------------------------------------------------ learning

    def _counts(self, batch: dict) -> dict[str, int]:
        tokens = int((batch["labels"] != IGNORED_LABEL).sum())
        return {"policy": tokens if self.settings.loss_type == "dapo" else len(batch["labels"])}

    def weight_of(self, name: str) -> float:
        return 1.0

    def losses_of(self, model: nn.Module, inputs: dict) -> dict[str, Tensor]:
        advantages = inputs.pop("advantages")
        given, settings = inputs | {"temperature": self.settings.temperature}, self.settings
        mask, reference = inputs["labels"] != IGNORED_LABEL, None
        with self.accelerator.autocast():
            if self.reference is not None:
                with self.reference.in_place():
                    reference = read_answers(model, **given).log_probabilities
            now = read_answers(model, **given).log_probabilities
        # Each answer is learned from once, so the policy that drew it is the present one, and nothing is clipped.
        loss = grpo_loss(now, now.detach(), advantages, mask, reference=reference, beta=settings.beta)
        if settings.loss_type == "dapo":
            return {"policy": loss.sum() / mask.sum().clamp(min=1)}
        return {"policy": (loss.sum(1) / mask.sum(1).clamp(min=1)).mean()}


class PromptCollator:
    """Prompts → their places in the data; they are answered before they are learned from."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"ids": [each["id"] for each in examples], "indices": [each["index"] for each in examples]}


def open_prompts(
    stage: str, config: GRPOConfig, model_config: NextGPTConfig, processor: NextGPTProcessor, *, retry: bool = True
) -> Prompts:
    """The prompts that a run answers; UserInputError where a line is none, by file and line."""
    rows = [row for file in config.data for row in read_prompts(Path(file))]
    limit = config.max_length or model_config.max_positions
    reader = PromptReader(processor, max_length=limit and limit - 1)
    return Prompts(rows, config.data, reader, config.features, workers_for(config))


def make_trainer(
    stage: str,
    config: GRPOConfig,
    arguments: TrainingArguments,
    model: NextGPTForConditionalGeneration,
    processor: NextGPTProcessor,
    prompts: Prompts,
    features: TrainingFeatures,
    identity: dict[str, Any],
) -> GRPOTrainer:
    """The trainer of prompts."""
    check_one_process(arguments)
    check_policy(model)
    options = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
    GenerationOptions.from_keywords(options | config.media)
    embedder = MediaEmbedder(model.encoder, processor)
    return GRPOTrainer(
        processor,
        make_sampler(config, arguments, prompts.sources, prompts.lengths),
        identity,
        config.learning_rates,
        settings=config,
        prompts=prompts,
        features=features,
        rewards=[load_reward(name, embedder, str(arguments.device)) for name in config.reward],
        model=model,
        args=arguments,
        train_dataset=prompts,
        data_collator=PromptCollator(),
    )


PLAN = Stage(
    tuple(group for group in STAGES["instruct"].trains if group != "output_projections"),  # what media show is not learned
    needs=None,
    open_dataset=open_prompts,
    make_trainer=make_trainer,
    captions=False,
    keeps_encoder=True,
)
