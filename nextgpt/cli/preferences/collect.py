"""`nextgpt preferences sample|rank`: several answers to a prompt, and which of them is better."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nextgpt.cli.common import add_command, add_model_options, positive
from nextgpt.cli.status_line import quiet_libraries

SAMPLE_EXAMPLE = """example:
  nextgpt preferences sample nano --questions data/own.jsonl -n 4 --out runs/answers

Each question is asked with as many seeds. What else stands in a line of the file (as "accepted", the words of a right
answer) goes on into runs/answers/answers.jsonl. The same command goes on where it was stopped; a larger -n adds answers."""


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt preferences`."""
    parser = commands.add_parser("preferences", help="several answers to a prompt, and which is better", parents=[debug])
    tools = parser.add_subparsers(title="tools", metavar="TOOL", required=True)
    _add_sample(tools, debug)


def _add_sample(tools: Any, debug: argparse.ArgumentParser) -> None:
    parser = add_command(
        tools,
        "sample",
        sample,
        "ask a model each question several times",
        debug,
        epilog=SAMPLE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser, positional=True)
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="JSON-lines file of chat messages")
    parser.add_argument("-n", "--count", type=positive, default=4, metavar="N", help="answers to a question (default: 4)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of the tokens (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="of the tokens (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=positive, default=256, help="length of an answer (default: %(default)s)")
    parser.add_argument("--only", metavar="KINDS", help="kinds that are made, e.g. text,image (default: all)")
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
    from nextgpt.train.preferences.sample import SampleSettings, sample

    names = ("count", "temperature", "top_p", "max_new_tokens", "steps", "guidance_scale", "seed", "at_a_time")
    only = [kind.strip() for kind in options.only.split(",")] if options.only is not None else None
    settings = SampleSettings(**{name: getattr(options, name) for name in names}, only=only)
    file = sample(options.model, options.questions, options.out, settings, device=options.device, dtype=options.dtype)
    print(file)
