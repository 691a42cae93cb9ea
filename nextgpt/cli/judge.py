"""`nextgpt evaluate judge`: which of two models gives the better answers, by a judge. The work is done in `train.judge`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nextgpt.cli.common import TEACHER_OPTIONS, add_below, add_teacher_options, positive, refuse_unused, teacher_settings
from nextgpt.errors import UserInputError

REWARD_MODEL = "reward:"  # before the folder of one of our own
# What each option is for, where it is not for all.
LLM, OF_MODELS = "--judge URL", "a model as A or B"
USED_BY = dict.fromkeys(("judge_model", *TEACHER_OPTIONS, "shown", "prompts"), (LLM,))
EXAMPLE = """examples:
  nextgpt evaluate judge nano runs/own --questions questions.jsonl \\
    --judge http://localhost:8000/v1 --judge-model qwen3-32b --shown image --out judged
  nextgpt evaluate judge nano runs/own --questions questions.jsonl --judge reward:runs/reward

Each pair is judged in both orders; a reward model (`nextgpt train reward`) scores each answer by itself, so no order counts.
The key comes from NEXTGPT_TEACHER_API_KEY (for api.openai.com OPENAI_API_KEY will do).
The same command goes on where it was stopped, and asks nothing twice."""


def add_judge(evaluate: argparse.ArgumentParser, debug: argparse.ArgumentParser) -> None:
    """Adds `judge` below `nextgpt evaluate`."""
    summary = "compare the answers of two models by a stronger one, in both orders"
    parser = add_below(evaluate, "judge", run, summary, EXAMPLE, debug)
    for name in "AB":
        parser.add_argument(name, help="model, or JSON-lines file of the questions with its answers")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="JSON-lines file of chat messages")
    add_teacher_options(parser, "judge", result="--out", temperature=0.0, required=False)
    parser.add_argument(
        "--out", type=Path, default=Path("judged"), metavar="DIR", help="folder for all that comes of it (default: judged)"
    )
    parser.add_argument(
        "--shown",
        nargs="*",
        default=(),
        metavar="KIND",
        help="media the judge is shown as such, e.g. image; others by caption",
    )
    parser.add_argument("--prompts", type=Path, metavar="FOLDER", help="with a judge_pair.txt of your own")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=256, help="of an answer of A and B (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the intervals (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(parser=parser)


def run(options: argparse.Namespace) -> None:
    """Compares, and says who is better, how surely, and how much the order counted."""
    from nextgpt.train.instruct_data.record import Stopped
    from nextgpt.train.judge.compare import judge, judge_by_reward

    names, given = (options.A, options.B), {name: getattr(options, name) for name in ("max_new_tokens", "seed")}
    answered = "a file of answers as A and as B" if all(name.endswith(".jsonl") for name in names) else OF_MODELS
    refuse_unused(options.parser, options, {"max_new_tokens": (OF_MODELS,)}, answered, answered)
    kind, _, folder = (options.judge or "").partition(":")
    if f"{kind}:" == REWARD_MODEL:
        refuse_unused(options.parser, options, USED_BY, f"--judge {REWARD_MODEL}", f"--judge {options.judge}")
        report = judge_by_reward(names, options.questions, folder, options.out, **given)
    else:
        if not options.judge or not options.judge_model:
            raise UserInputError(
                "no judge: give --judge, the address of its API, and --judge-model, its name there; or --judge reward:FOLDER"
            )
        given |= {"shown": options.shown, "prompts": options.prompts}
        report = judge(names, options.questions, teacher_settings(options, "judge"), options.out, **given)
    print(json.dumps(report.to_dict(), indent=2) if options.json else "\n".join(report.summary()))
    if report.stopped:
        raise Stopped(report.stopped)
