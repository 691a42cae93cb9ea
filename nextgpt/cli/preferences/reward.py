"""`nextgpt train reward`: a reward model from preference pairs. The work is done in `train.preferences.reward_model`."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from nextgpt.cli.common import add_command, add_model_options, positive, refuse_unused
from nextgpt.cli.status_line import quiet_libraries

EXAMPLE = """example:
  nextgpt train reward nano --data data/pairs.jsonl --out runs/reward

The model stays as it is; a head on what it makes of an answer, and on its encoder's embeddings of the media that were made,
learns which answer of a pair was chosen. Of the prompts a fifth is held out, or --heldout names files of pairs to measure
on. `nextgpt preferences rank --by reward:runs/reward` and `nextgpt evaluate judge --judge reward:runs/reward` use the
result. The same command goes on where it was stopped."""

OF_THE_DATA = "--data alone"


def add_reward(stages: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `reward` below `nextgpt train`."""
    summary = "a reward model: which of two answers is better (Bradley-Terry)"
    parser = add_command(stages, "reward", run, summary, debug, EXAMPLE)
    add_model_options(parser, positional=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help="JSON-lines files of pairs")
    parser.add_argument("--heldout", type=Path, nargs="+", default=(), metavar="FILE", help="the same, to measure on")
    parser.add_argument(
        "--heldout-share", type=float, default=0.2, metavar="S", help="of the prompts, where --heldout is not given"
    )
    parser.add_argument("--epochs", type=positive, default=30, help="over the pairs (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, metavar="R", help="of the head (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.01, metavar="W", help="of the head (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="pairs a step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of head, order and split (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the reward model")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(parser=parser)


def run(options: argparse.Namespace) -> None:
    """Trains, and says how often it is right about pairs that it has not seen."""
    if not options.debug:
        quiet_libraries(pipelines=True)
    from nextgpt.train.preferences.reward_model.training import RewardSettings, train_reward

    measured = "--heldout" if options.heldout else OF_THE_DATA
    refuse_unused(options.parser, options, {"heldout_share": (OF_THE_DATA,)}, measured, measured)
    settings = RewardSettings(**{each.name: getattr(options, each.name) for each in fields(RewardSettings)})
    given = {"heldout": options.heldout, "device": options.device, "dtype": options.dtype}
    report = train_reward(options.model, options.data, options.out, settings, **given)
    print(json.dumps(report.to_dict(), indent=2) if options.json else "\n".join(report.summary()))
