"""Rewards: plain functions with the signature that TRL's GRPO asks for, by name.

    def reward(prompts: list[list[dict]], completions: list[list[dict]], **columns: list) -> list[float | None]

Prompts are chat messages with content as parts, completions one message of the assistant each; a column is a further key of
the data's lines, with a value for each completion (`output_modalities` has the kinds that it could hold). None says that the
reward does not apply.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextgpt.errors import NextGPTError, UserInputError, first_line
from nextgpt.hardware import is_out_of_memory
from nextgpt.train.preferences.hedging import hedging

if TYPE_CHECKING:
    from nextgpt.train.preferences.media_fit import MediaEmbedder

MEDIA_FIT, REWARD_MODEL = "media_fit", "reward:"
KNOWN = f"hedging, {MEDIA_FIT}, {REWARD_MODEL}FOLDER (a reward model) or module:function (your own)"
Function = Callable[..., list[float | None]]


class Reward:
    """A reward function whose results are checked; it is called as the function is.

    Args:
        name: of it, for errors; TRL reads it too, as `__name__`.
        function: is asked.
    """

    def __init__(self, name: str, function: Function):
        self.__name__, self.function = name, function

    def __call__(
        self, prompts: Sequence[list[dict]], completions: Sequence[list[dict]], **columns: Any
    ) -> list[float | None]:
        """The reward of each completion.

        Raises:
            UserInputError: the function raises, or gives other than one finite number, or None, for each completion.
        """
        name = f"the reward {self.__name__}"
        try:
            found = self.function(prompts=prompts, completions=completions, **columns)
        except NextGPTError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UserInputError(f"{name} raised {type(error).__name__}: {first_line(error)}; fix the function") from error
        found = found.tolist() if hasattr(found, "tolist") else found  # a tensor or an array
        if not isinstance(found, (list, tuple)) or len(found) != len(completions):
            count = f"{len(found)} values" if isinstance(found, (list, tuple)) else type(found).__name__
            raise UserInputError(f"{name} gave {count} for {len(completions)} completions; expected a number for each")
        for number, value in enumerate(found, start=1):
            if value is not None and not _is_finite(value):
                where = f"completion {number} of {len(found)}"
                raise UserInputError(f"{name} gave {value!r} for {where}; expected a finite number, or None")
        return [None if value is None else float(value) for value in found]


def load_reward(name: str, embedder: MediaEmbedder | None = None, device: str = "auto") -> Reward:
    """A reward by its name: `hedging`, `media_fit`, `reward:FOLDER` (see `reward_model`) or `module:function`.

    A name may come from a person's command or file only, never from a checkpoint: a module is run when it is imported.

    Args:
        embedder: the encoder that `media_fit` judges with.
        device: where a reward model runs.

    Raises:
        UserInputError: there is no such reward.
    """
    if name == "hedging":
        return Reward(name, hedging)
    if name == MEDIA_FIT:
        from nextgpt.train.preferences.media_fit import MediaFit

        if embedder is None:
            raise UserInputError(f"{MEDIA_FIT} judges with a model's encoder: name the model")
        return Reward(name, MediaFit(embedder))
    if name.startswith(REWARD_MODEL):
        from nextgpt.train.preferences.reward_model.model import RewardModel

        return Reward(name, RewardModel.from_pretrained(name.removeprefix(REWARD_MODEL), device))
    module, separator, function = name.partition(":")
    if not separator or not module or not function:
        raise UserInputError(f"there is no reward {name!r}; expected {KNOWN}")
    return Reward(name, _import(module, function))


def _import(module: str, function: str) -> Function:
    """A function of a module that Python finds, also in the current folder."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever a person's module does
        raise UserInputError(
            f"the reward {module}:{function}: {module} cannot be imported ({type(error).__name__}: {first_line(error)})"
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise UserInputError(f"the reward {module}:{function}: {module} has no function {function}")
    return found


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, str) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False
