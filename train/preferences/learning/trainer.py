"""What runs that learn from preferences and rewards share: a policy that is compared with itself, a log of means."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn
from transformers import TrainingArguments

from nextgpt.errors import UserInputError
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.train.preferences.learning.settings import RewardedConfig
from nextgpt.train.trainer import StageTrainer


class PolicyTrainer(StageTrainer):
    """A `StageTrainer` without dropout, whose log has the means of what is noted between two lines of it.

    What a model says now is compared with what it, or its reference, said: they are to differ by what was learned alone.
    """

    def __init__(self, *args: Any, settings: RewardedConfig, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.settings = settings
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.noted: dict[str, list[float]] = defaultdict(list)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self.noted.items() if values}
            self.noted.clear()
        super().log(logs, *args, **kwargs)


def check_policy(model: NextGPTForConditionalGeneration) -> None:
    """Raises UserInputError where a model's decoding is more than its policy: ILQL's heads would go stale, and mislead."""
    if model.config.value_weight is not None:
        raise UserInputError("the model has value heads (nextgpt train rl --objective ilql): learn from the one before it")


def check_one_process(arguments: TrainingArguments) -> None:
    """Raises UserInputError where several processes are to share a run."""
    if arguments.world_size > 1:
        raise UserInputError(f"{arguments.world_size} processes: this trains in one; start it without a launcher")
