"""`nextgpt train rl --objective ilql`: implicit language Q-learning (Snell et al. 2022, https://arxiv.org/abs/2206.11871).

From conversations that somebody had, with a reward for each answer, it learns the value of a token: Q by temporal
differences, V as an expectile of Q over what was said, and a policy that clones. Decoding adds the advantage to the policy,
so that the best parts of several conversations come together in one that nobody had. One conversation a line:

    {"messages": [user, assistant, user, assistant …], "rewards": [0.0, 1.0 …]}

and `"output_modalities": ["text", "image"]` where the answers could not hold every kind.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainingArguments

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import UserInputError
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import IGNORED_LABEL, NextGPTProcessor
from nextgpt.train.data.dataset import ChatCollator, ChatDataset, OutputMedia, TrainingFeatures
from nextgpt.train.data.lines import Line
from nextgpt.train.data.store import Example
from nextgpt.train.preferences.learning.data import KindsReader
from nextgpt.train.preferences.learning.policy import read_answers
from nextgpt.train.preferences.learning.settings import ILQLConfig
from nextgpt.train.preferences.learning.trainer import check_one_process
from nextgpt.train.preferences.pairs import KINDS
from nextgpt.train.stages import Stage, make_sampler, workers_for
from nextgpt.train.trainer import StageTrainer

TRAINS = ("input_projection", "signal_rows", "value_heads", "adapter")


def expectile_loss(errors: Tensor, expectile: float) -> Tensor:
    """Squares that weigh `expectile` above 0 and the rest below (Kostrikov et al. 2021, equation 5)."""
    return torch.where(errors > 0, expectile, 1 - expectile) * errors.square()


@dataclass
class TrajectoryReader(KindsReader):
    """Learns all tokens that the assistant chose; the reward of an answer stands at its last one."""

    def _read(self, line: Line) -> Example:
        example = super()._read(line)
        rewards = json.loads(line.content).get("rewards")
        spoken = example.loss_mask
        signals = np.isin(example.ids, [token for run in self.processor.vocabulary.runs.values() for token in run[1:]])
        ends = np.flatnonzero(spoken & ~np.append(spoken[1:], False))  # of the answers
        numbers = isinstance(rewards, list) and all(type(each) in (int, float) and math.isfinite(each) for each in rewards)
        if not numbers or len(rewards) != len(ends):
            raise UserInputError(f"rewards is {json.dumps(rewards)[:60]}, expected a number for each of {len(ends)} answers")
        learned = spoken & ~signals
        places = [int(np.flatnonzero(learned[: end + 1])[-1]) for end in ends]
        record = example.record | {"rewards": list(zip(places, map(float, rewards), strict=True))}
        return example._replace(loss_mask=learned, record=record)

    def outputs(self, messages: list[dict]) -> list[OutputMedia]:
        return []  # what media show has no reward of its own


class Trajectories(ChatDataset):
    """Conversations with the rewards of their answers."""

    kind = ("trajectories", KINDS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As `ChatDataset` has it, and `rewards` `[length]`."""
        example = super().__getitem__(index)
        rewards = torch.zeros(len(example["input_ids"]))
        for place, reward in self.store.record(index)["rewards"]:
            rewards[place] = reward
        return example | {"rewards": rewards}


class TrajectoryCollator(ChatCollator):
    """As `ChatCollator`, and `rewards` `[rows, length]`."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rewards = [example["rewards"] for example in examples]
        return super().__call__(examples) | {"rewards": nn.utils.rnn.pad_sequence(rewards, batch_first=True)}


class ILQLTrainer(StageTrainer):
    """A `StageTrainer` whose parts of the loss are `policy`, `q`, `v` and `cql`, each a mean over tokens."""

    def __init__(self, *args: Any, settings: ILQLConfig, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.settings, self._part_names = settings, ["policy", "q", "v", "cql"]

    def _counts(self, batch: dict) -> dict[str, int]:
        return dict.fromkeys(self._part_names, int((batch["labels"] != IGNORED_LABEL).sum()))

    def weight_of(self, name: str) -> float:
        return {"policy": self.settings.policy_weight, "cql": self.settings.cql_weight}.get(name, 1.0)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, dict[str, float]]:
        """The target networks are updated between two steps."""
        self.model.value_heads.soft_update(self.settings.target_update_rate)
        return super().get_batch_samples(*args, **kwargs)

    def losses_of(self, model: nn.Module, inputs: dict) -> dict[str, Tensor]:
        given = {name: tensor for name, tensor in inputs.items() if name != "rewards"}
        heads, settings = self.model.value_heads, self.settings
        with self.accelerator.autocast():
            reading = read_answers(model, **given)
            rows, columns = (inputs["labels"] != IGNORED_LABEL).nonzero(as_tuple=True)  # [tokens] each
            tokens = inputs["labels"][rows, columns, None]
            states = reading.hidden_states[rows, columns - 1]  # where each token was chosen
            values = heads.values(states).float()
            q_values = [each.float() for each in heads.q_values(states)]
            with torch.no_grad():
                target_q = heads.target_q_values(states).float().gather(1, tokens)[:, 0]
                is_last = F.pad(rows[1:] != rows[:-1], (0, 1), value=True)  # after it the conversation is over
                following = values.roll(-1).masked_fill(is_last, 0.0)
                returns = inputs["rewards"][rows, columns] + settings.discount * following
        policy = -reading.log_probabilities[rows, columns].mean()
        q = sum((each.gather(1, tokens)[:, 0] - returns).square() for each in q_values).mean()
        cql = sum(F.cross_entropy(each, tokens[:, 0]) for each in q_values)
        return {"policy": policy, "q": q, "v": expectile_loss(target_q - values, settings.expectile).mean(), "cql": cql}


def add_heads(model: NextGPTForConditionalGeneration, config: ILQLConfig) -> None:
    """Gives a model the heads that are trained."""
    model.add_value_heads(config.beta)


def open_trajectories(
    stage: str, config: ILQLConfig, model_config: NextGPTConfig, processor: NextGPTProcessor, *, retry: bool = True
) -> Trajectories:
    """The conversations that a run learns from; UserInputError where a line is none, by file and line."""
    reader = TrajectoryReader(processor, max_length=config.max_length or model_config.max_positions)
    return Trajectories(config.data, reader, folder=Path(config.features), workers=workers_for(config), retry=retry)


def make_trainer(
    stage: str,
    config: ILQLConfig,
    arguments: TrainingArguments,
    model: NextGPTForConditionalGeneration,
    processor: NextGPTProcessor,
    conversations: Trajectories,
    features: TrainingFeatures,
    identity: dict[str, Any],
) -> ILQLTrainer:
    """The trainer of rewarded conversations."""
    check_one_process(arguments)
    return ILQLTrainer(
        processor,
        make_sampler(config, arguments, conversations.sources, conversations.lengths),
        identity,
        config.learning_rates,
        settings=config,
        model=model,
        args=arguments,
        train_dataset=conversations,
        data_collator=TrajectoryCollator(processor.tokenizer.pad_token_id, features),
    )


PLAN = Stage(
    TRAINS,
    needs=None,
    open_dataset=open_trajectories,
    make_trainer=make_trainer,
    captions=False,
    prepare_model=add_heads,
)
