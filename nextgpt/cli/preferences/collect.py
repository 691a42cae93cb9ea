"""`nextgpt preferences sample|rank`: several answers to a prompt, and which of them is better."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nextgpt.cli.common import (
    TEACHER_OPTIONS,
    add_command,
    add_model_options,
    add_teacher_options,
    positive,
    refuse_unused,
    teacher_settings,
)
from nextgpt.cli.status_line import quiet_libraries, status
from nextgpt.errors import UserInputError

SAMPLE_EXAMPLE = """example:
  nextgpt preferences sample nano --questions data/own.jsonl -n 4 --out runs/answers

Each question is asked with as many seeds. What else stands in a line of the file (as "accepted", the words of a right
answer) goes on into runs/answers/answers.jsonl. The same command goes on where it was stopped; a larger -n adds answers."""

RANK_EXAMPLE = """examples:
  nextgpt preferences rank runs/answers --by rule:hedging -o data/pairs.jsonl
  nextgpt preferences rank runs/answers --by rule:media_fit --model nano -o data/pairs.jsonl
  nextgpt preferences rank runs/answers --by rule:my_rewards:shortest -o data/pairs.jsonl
  nextgpt preferences rank runs/answers --by reward:runs/reward -o data/pairs.jsonl
  nextgpt preferences rank runs/answers --by judge -o data/pairs.jsonl \\
    --judge http://localhost:8000/v1 --judge-model qwen3-32b
  nextgpt preferences rank runs/answers --by person -o data/pairs.jsonl

hedging reads the column "accepted" of the questions, media_fit the column "references" where the model's encoder has no
text tower; my_rewards:shortest is a function of your own with the signature of TRL's rewards. A judge is asked in both
orders, its key comes from NEXTGPT_TEACHER_API_KEY. The same command goes on where it was stopped."""

# What each option is for, where it is not for all.
JUDGE, PERSON, REWARD_MODEL, MEDIA_FIT = "--by judge", "--by person", "--by reward:FOLDER", "--by rule:media_fit"
OF_RANKINGS = {
    "model": (MEDIA_FIT,),
    "device": (MEDIA_FIT, REWARD_MODEL),
    "seed": (JUDGE, PERSON),
    "port": (PERSON,),
    **dict.fromkeys(("judge", "judge_model", *TEACHER_OPTIONS, "shown", "prompts"), (JUDGE,)),
}


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt preferences`."""
    parser = commands.add_parser("preferences", help="several answers to a prompt, and which is better", parents=[debug])
    tools = parser.add_subparsers(title="tools", metavar="TOOL", required=True)
    _add_sample(tools, debug)
    _add_rank(tools, debug)


def _add_sample(tools: Any, debug: argparse.ArgumentParser) -> None:
    parser = add_command(tools, "sample", sample, "ask a model each question several times", debug, SAMPLE_EXAMPLE)
    add_model_options(parser, positional=True)
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="JSON-lines file of chat messages")
    parser.add_argument("-n", "--count", type=positive, default=4, metavar="N", help="answers to a question (default: 4)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of the tokens (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="of the tokens (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=positive, default=256, help="length of an answer (default: %(default)s)")
    parser.add_argument(
        "--only",
        metavar="KINDS",
        help='kinds that are made, e.g. text,image (default: all, or "output_modalities" of the question); the pairs say so',
    )
    parser.add_argument("--steps", type=positive, help="diffusion steps of each medium (default: the decoder's own)")
    parser.add_argument("--guidance-scale", type=float, help="classifier-free guidance (default: the decoder's own)")
    parser.add_argument("--seed", type=int, default=0, help="another one, other answers (default: %(default)s)")
    parser.add_argument("--at-a-time", type=positive, default=8, metavar="N", help="answers made together (default: 8)")
    parser.add_argument(
        "--out", type=Path, default=Path("answers"), metavar="DIR", help="folder for all that comes of it (default: answers)"
    )


def sample(options: argparse.Namespace) -> None:
    """Samples, and says where the answers are."""
    if not options.debug:
        quiet_libraries(pipelines=True)
    from nextgpt.train.preferences.collect.sample import SampleSettings, sample

    names = ("count", "temperature", "top_p", "max_new_tokens", "steps", "guidance_scale", "seed", "at_a_time")
    only = [kind.strip() for kind in options.only.split(",")] if options.only is not None else None
    settings = SampleSettings(**{name: getattr(options, name) for name in names}, only=only)
    file = sample(options.model, options.questions, options.out, settings, device=options.device, dtype=options.dtype)
    print(file)


def _add_rank(tools: Any, debug: argparse.ArgumentParser) -> None:
    parser = add_command(tools, "rank", rank, "make pairs of a better and a worse answer", debug, RANK_EXAMPLE)
    parser.add_argument("answers", type=Path, help="folder or file that `nextgpt preferences sample` wrote")
    parser.add_argument(
        "--by", required=True, metavar="WHO", help="rule:NAME, rule:MODULE:FUNCTION, reward:FOLDER, judge or person"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="JSON-lines file of pairs to write")
    parser.add_argument("--pairs", type=positive, default=1, metavar="N", help="of a prompt, at most (default: 1)")
    parser.add_argument("--model", default="nano", help="whose encoder media_fit judges with (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="of media_fit or a reward model (default: an accelerator if any)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs that are compared (default: %(default)s)")
    parser.add_argument("--port", type=int, help="of the page for a person (default: the first free one from 7860 on)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    judge = parser.add_argument_group("judge")
    add_teacher_options(judge, "judge", result="-o", temperature=0.0, required=False)
    judge.add_argument("--shown", nargs="*", default=(), metavar="KIND", help="media the judge is shown; others by caption")
    judge.add_argument("--prompts", type=Path, metavar="FOLDER", help="with a judge_pair.txt of your own")
    parser.set_defaults(parser=parser)


def rank(options: argparse.Namespace) -> None:
    """Ranks, and says how many pairs there are, and why there are not more."""
    if not options.debug:
        quiet_libraries(pipelines=True)
    from nextgpt.train.instruct_data.record import Stopped

    report = _ranked(options)
    print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if options.json else "\n".join(report.summary()))
    if report.stopped:
        raise Stopped(report.stopped)


def _ranked(options: argparse.Namespace) -> Any:
    from nextgpt.train.preferences.collect import rank
    from nextgpt.train.preferences.collect.person import serve
    from nextgpt.train.preferences.rewards import Reward, load_reward

    kind, _, name = options.by.partition(":")
    if options.by not in ("person", "judge") and (kind not in ("rule", "reward") or not name):
        raise UserInputError(f"--by {options.by}: expected rule:NAME, rule:MODULE:FUNCTION, reward:FOLDER, judge or person")
    by = f"--by {options.by}"
    refuse_unused(options.parser, options, OF_RANKINGS, REWARD_MODEL if kind == "reward" else by, by)
    files, drawn = (options.answers, options.out), {"pairs": options.pairs, "seed": options.seed}
    if options.by == "person":

        def tell(address: str) -> None:
            print(f"The page is at {address} (arrow keys choose, backspace takes back, Ctrl-C stops it)", flush=True)

        return rank.rank_by_person(*files, lambda choices: serve(choices, options.port, tell), **drawn)
    if options.by == "judge":
        if not options.judge or not options.judge_model:
            raise UserInputError("--by judge needs --judge, the address of its API, and --judge-model, its name there")
        given = {"shown": options.shown, "prompts": options.prompts}
        return rank.rank_by_judge(*files, teacher_settings(options, "judge"), **drawn, **given)

    def load() -> Reward:
        with status(f"loading {name} …"):
            embedder = None
            if by == MEDIA_FIT:
                from nextgpt.train.preferences.media_fit import MediaEmbedder

                embedder = MediaEmbedder.from_pretrained(options.model, options.device)
            return load_reward(options.by if kind == "reward" else name, embedder, options.device)

    return rank.rank_by_reward(*files, load, options.by, pairs=options.pairs)
