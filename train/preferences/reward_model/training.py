"""Trains a reward model's head on preference pairs, by the Bradley-Terry loss (as in Ouyang et al. 2022, equation 1).

The LLM reads each answer once, and what it makes of it is kept beside the result: that is nearly all of the work, and a
run that was stopped goes on from there. The media of answers go through the encoder in each run; the head takes seconds.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers.utils import CONFIG_NAME

from nextgpt.errors import NextGPTError, UserInputError, first_line
from nextgpt.train.preferences.pairs import PreferencePair, prompt_key, read_pairs, split_by_prompt
from nextgpt.train.preferences.reward_model.model import Answer, AnswerFeatures, RewardModel

RESAMPLES = 2000  # for the interval
FEATURES = "features"  # folder beside the result


@dataclass(frozen=True)
class RewardSettings:
    """How the head is trained.

    Args:
        epochs, learning_rate, weight_decay, batch_size: of AdamW; pairs are shuffled in each epoch.
        heldout_share: of the prompts, that are measured on where no file of held-out pairs is named.
        seed: of the head, of the order and of the split.
    """

    epochs: int = 30
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 32
    heldout_share: float = 0.2
    seed: int = 0

    def __post_init__(self):
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserInputError(f"{name} is {getattr(self, name)}, expected a number of 0 or more")


@dataclass
class RewardReport:
    """What came of a training.

    Args:
        folder: of the reward model.
        pairs, heldout: that were learned from and measured on.
        loss: over the pairs of the last epoch.
        training_accuracy, accuracy: share of pairs whose chosen answer has the higher score; a tie counts a half.
        interval: of `accuracy`, 95%, by drawing prompts again, with all their pairs.
    """

    folder: Path
    pairs: int
    heldout: int
    loss: float
    training_accuracy: float
    accuracy: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return vars(self) | {"folder": str(self.folder)}

    def summary(self) -> list[str]:
        """Lines for a person."""
        low, high = (100 * each for each in self.interval)
        return [
            f"{self.folder}: a reward model of {self.pairs:,} pairs, loss {self.loss:.4f}",
            f"accuracy on {self.heldout:,} held-out pairs: {100 * self.accuracy:.1f}%  ({low:.1f} – {high:.1f}%); "
            f"on those that it learned from: {100 * self.training_accuracy:.1f}%",
        ]


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Mean of `-log σ(chosen - rejected)` of the scores of pairs, `[pairs]` each; TRL's loss of `RewardTrainer`."""
    return -F.logsigmoid(chosen - rejected).mean()


def train_reward(
    model: str,
    files: Sequence[str | Path],
    out: str | Path,
    settings: RewardSettings,
    *,
    heldout: Sequence[str | Path] = (),
    device: str = "auto",
    dtype: str = "auto",
) -> RewardReport:
    """Trains a reward model on top of a model, and saves it in the folder `out`.

    Args:
        model: preset, folder or Hub repository; it stays as it is.
        files: of pairs.
        heldout: files of pairs that are measured on; by default a share of the prompts of `files`.

    Raises:
        UserInputError: a pair is not what it should be, a held-out prompt stands in `files`, or a model in `out`.
        NextGPTError: the folder cannot be written.
    """
    out = Path(out)
    if (out / CONFIG_NAME).is_file():
        raise UserInputError(f"{out}: holds a model, which this would change; name another folder with --out")
    if heldout:
        measured = read_pairs(heldout)
        learned = read_pairs(files, heldout=measured)
    else:
        learned, measured = split_by_prompt(read_pairs(files), settings.heldout_share, settings.seed)
    torch.manual_seed(settings.seed)
    reward = RewardModel.from_parts(model, device, dtype)
    try:
        sides = [_features(reward, pairs, out / FEATURES) for pairs in (learned, measured)]
        loss = _fit(reward, *sides[0], settings)
        right = [_right(reward, *features) for features in sides]
        report = RewardReport(out, len(learned), len(measured), loss, *(each.mean().item() for each in right), (0.0, 0.0))
        report.interval = _interval(right[1], [prompt_key(pair.prompt) for pair in measured], settings.seed)
        reward.save_pretrained(out, **{name: each for name, each in report.to_dict().items() if name != "folder"})
    except (OSError, sqlite3.Error, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise NextGPTError(
            f"{out}: cannot be written ({reason}); make room, or name another folder with --out: the same command goes on "
            "where it stopped"
        ) from None
    return report


def _features(reward: RewardModel, pairs: Sequence[PreferencePair], folder: Path) -> tuple[AnswerFeatures, AnswerFeatures]:
    """Of the chosen and of the rejected answers."""
    answers = [
        Answer(pair.prompt, side, pair.where, pair.output_modalities)
        for pair in pairs
        for side in (pair.chosen, pair.rejected)
    ]
    features = reward.cached_features(answers, folder, f"Reading {len(pairs):,} pairs")
    return features[range(0, len(answers), 2)], features[range(1, len(answers), 2)]


def _fit(reward: RewardModel, chosen: AnswerFeatures, rejected: AnswerFeatures, settings: RewardSettings) -> float:
    """Trains the head; gives the loss of the last epoch."""
    head, count = reward.head.train(), len(chosen.last)
    optimizer = torch.optim.AdamW(head.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    losses: list[float] = []
    for _ in tqdm(range(settings.epochs), desc="Training", unit=" epochs"):
        losses = []
        for rows in torch.randperm(count).split(settings.batch_size):
            loss = bradley_terry_loss(head(chosen[rows]), head(rejected[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(rows))
    head.eval()
    loss = sum(losses) / count
    if not math.isfinite(loss):
        raise UserInputError(f"the loss is {loss}: take a smaller --learning-rate than {settings.learning_rate:g}")
    return loss


@torch.no_grad()
def _right(reward: RewardModel, chosen: AnswerFeatures, rejected: AnswerFeatures) -> Tensor:
    """1, 0, or 0.5 for a tie, of each pair."""
    difference = reward.head(chosen) - reward.head(rejected)
    return (difference > 0).float() + 0.5 * (difference == 0).float()


def _interval(right: Tensor, prompts: Sequence[str], seed: int) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the means of prompts drawn again and again, with all their pairs (Efron 1979).

    Args:
        right: `[pairs]`.
        prompts: of each pair.
    """
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    of = torch.tensor([numbers[prompt] for prompt in prompts])
    sums = torch.zeros(len(numbers)).index_add(0, of, right)
    counts = torch.zeros(len(numbers)).index_add(0, of, torch.ones(len(of)))
    drawn = torch.randint(len(numbers), (RESAMPLES, len(numbers)), generator=torch.Generator().manual_seed(seed))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
