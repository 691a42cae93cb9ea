"""`nextgpt train prefer|rl`: learning from pairs of answers and from rewards. The work is done in `train.preferences`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nextgpt.cli.common import add_command

PREFER_EXAMPLE = """example, with pairs that `nextgpt preferences rank` wrote:
  nextgpt train prefer --objective dpo --config nano model=nano "data=[data/pairs.jsonl]" output_dir=runs/preferred

Words and kinds learn by the objective, on the tokens that the model chose; what pictures, sounds and clips show learns by
Diffusion-DPO, where both answers of a pair hold a medium of a kind. The log has the margins and how often the chosen answer
is ahead. The same command goes on where it was stopped."""

RL_EXAMPLE = """example, with questions in the chat format and the columns that the reward reads:
  nextgpt train rl --objective grpo --config nano model=nano "data=[data/questions.jsonl]" reward=hedging output_dir=runs/rl

A reward is hedging, media_fit, reward:FOLDER (a reward model) or module:function, yours, with the signature of TRL's:
f(prompts, completions, **columns) -> a number, or None, for each completion. The same command goes on where it was
stopped.

With --objective ilql nothing is asked: it learns from conversations that are there, {"messages": [...], "rewards": [one for
each answer]}, to choose what pays off later; its value heads stand in the checkpoint, and decoding adds each token's
advantage."""


def add_learning(stages: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `prefer` and `rl` below `nextgpt train`."""
    _add(stages, "prefer", prefer, "pairs of a better and a worse answer", ("dpo", "kto"), PREFER_EXAMPLE, debug)
    _add(stages, "rl", reinforce, "rewards for answers", ("grpo", "ilql"), RL_EXAMPLE, debug)


def _add(stages: Any, name: str, function: Any, summary: str, objectives: tuple[str, ...], example: str, debug: Any) -> None:
    parser = add_command(stages, name, function, summary, debug, example)
    parser.add_argument(
        "--objective", choices=objectives, help=f"default: the file's; {objectives[0]} where it says nothing"
    )
    parser.add_argument("--config", required=True, help="YAML file, or nano for the one that comes with the package")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")


def prefer(options: argparse.Namespace) -> None:
    """Trains; the log goes to the terminal, the result to the configuration's `output_dir`."""
    from nextgpt.train.preferences.learning.prefer import PLAN
    from nextgpt.train.preferences.learning.settings import PreferenceConfig
    from nextgpt.train.stages import train

    train("prefer", options.config, _overrides(options), PreferenceConfig, PLAN)


def reinforce(options: argparse.Namespace) -> None:
    """The same for rewards."""
    from nextgpt.train.preferences.learning import grpo, ilql
    from nextgpt.train.preferences.learning.settings import GRPOConfig, ILQLConfig
    from nextgpt.train.stages import train

    if _objective(options) == "ilql":
        train("ilql", options.config, _overrides(options), ILQLConfig, ilql.PLAN)
    else:
        train("rl", options.config, _overrides(options), GRPOConfig, grpo.PLAN)


def _overrides(options: argparse.Namespace) -> list[str]:
    return [*options.overrides, *([f"objective={options.objective}"] if options.objective else [])]


def _objective(options: argparse.Namespace) -> str | None:
    """What decides which settings there are: of the command line, else of the file."""
    from nextgpt.train.config import read_yaml

    for given in reversed(_overrides(options)):
        if given.startswith("objective="):
            return given.partition("=")[2]
    is_file = Path(options.config).is_file()
    return read_yaml(options.config, "a training configuration").get("objective") if is_file else None
