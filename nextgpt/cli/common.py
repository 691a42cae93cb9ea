"""What several commands share: their options, loading a model, tables. Imports nothing heavy before it is needed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextgpt.cli.status_line import quiet_libraries, status
from nextgpt.errors import UserInputError

if TYPE_CHECKING:
    from nextgpt.pipeline import NextGPTPipeline

DEFAULT_OUT = "nextgpt-out"
# Of `add_teacher_options`, beside the address and the model.
TEACHER_OPTIONS = ("max_requests", "max_tokens", "concurrency", "timeout", "retries", "temperature", "max_answer_tokens")


def add_command(
    commands: Any,
    name: str,
    function: Callable,
    summary: str,
    debug: argparse.ArgumentParser,
    example: str | None = None,
    **details: Any,
) -> argparse.ArgumentParser:
    """A command's parser; `function` runs it, and `example` stands below its help as it is."""
    if example is not None:
        details |= {"epilog": example, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = commands.add_parser(name, help=summary, description=summary, parents=[debug], **details)
    parser.set_defaults(command=function)
    return parser


def add_below(
    parser: argparse.ArgumentParser,
    name: str,
    function: Callable,
    description: str,
    example: str,
    debug: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """The parser of a command below one that has a positional of its own: argparse allows either only."""
    below = argparse.ArgumentParser(
        prog=f"{parser.prog} {name}",
        description=description,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[debug],
    )
    below.set_defaults(command=function)
    own = parser.parse_known_args

    def either(arguments=None, namespace=None):
        if arguments and arguments[0] == name:
            return below.parse_known_args(arguments[1:], namespace)
        return own(arguments, namespace)

    parser.parse_known_args = either
    return below


def add_model_options(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """Which model, where it runs, in which precision."""
    names = ("model",) if positional else ("--model", "--preset")
    parser.add_argument(
        *names,
        default="nano",
        metavar="MODEL",
        help="preset, folder or Hub repository (default: %(default)s)",
        **({"nargs": "?"} if positional else {}),
    )
    parser.add_argument("--device", default="auto", help="e.g. cpu, mps (default: an accelerator if there is one)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 or float16 (default: by the device)")


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """How answers are made, and where their media go."""
    seed = "of an answer's first piece of media; the next takes one more (default: random)"
    parser.add_argument("--seed", type=int, help=seed)
    parser.add_argument("--max-new-tokens", type=positive, default=256, help="length of an answer (default: %(default)s)")
    parser.add_argument("--steps", type=positive, help="diffusion steps of each medium (default: the decoder's own)")
    parser.add_argument("--guidance-scale", type=float, help="classifier-free guidance (default: the decoder's own)")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path(DEFAULT_OUT), help="folder for the media (default: ./%(default)s)"
    )


def add_teacher_options(
    parser: argparse.ArgumentParser, role: str, result: str, temperature: float, required: bool = True
) -> None:
    """Which model is asked over OpenAI's API, how, and how much.

    Args:
        role: what it is, as `teacher`: the name of its options.
        result: the option whose value names what a budget is for.
        temperature: by default.
        required: whether the command always asks it.
    """
    parser.add_argument(
        f"--{role}", required=required, metavar="URL", help="OpenAI-compatible API, e.g. http://localhost:8000/v1"
    )
    parser.add_argument(f"--{role}-model", required=required, metavar="NAME", help="the model's name there")
    parser.add_argument("--max-requests", type=positive, metavar="N", help=f"budget of all runs on {result} (default: none)")
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="the same, in tokens of requests and answers")
    parser.add_argument("--concurrency", type=positive, default=8, metavar="N", help="requests at a time (default: 8)")
    parser.add_argument("--timeout", type=float, default=120, metavar="S", help="seconds for an answer (default: 120)")
    parser.add_argument("--retries", type=int, default=5, metavar="N", help="of a request that fails (default: 5)")
    parser.add_argument(
        "--temperature", type=float, default=temperature, metavar="T", help="of its answers (default: %(default)s)"
    )
    parser.add_argument(
        "--max-answer-tokens", type=positive, default=2048, metavar="N", help="of one of its answers (default: 2048)"
    )


def teacher_settings(options: argparse.Namespace, role: str) -> Any:
    """The `TeacherSettings` that the options of `add_teacher_options` say."""
    from nextgpt.train.instruct_data.teacher import TeacherSettings

    given = vars(options)
    shared = {each.name: given[each.name] for each in fields(TeacherSettings) if each.name in given}
    return TeacherSettings(given[role], **shared | {"model": given[f"{role}_model"], "option": role})


def refuse_unused(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    used_by: Mapping[str, Sequence[str]],
    chosen: str,
    given: str,
) -> None:
    """Refuses options that do nothing beside another one; those left at their default are none.

    Args:
        used_by: name of an option → what it is for, as `--by judge`.
        chosen: which of these it is.
        given: the same as it was given, as `--by reward:runs/reward`.

    Raises:
        UserInputError: names the option, and what it needs.
    """
    for name, users in used_by.items():
        if chosen not in users and getattr(options, name) not in (parser.get_default(name), []):
            option = f"--{name.replace('_', '-')}"
            raise UserInputError(f"{option} does nothing with {given}: it needs {' or '.join(users)}; leave it out")


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def load_pipeline(options: argparse.Namespace) -> NextGPTPipeline:
    """The pipeline that the options name, said to be loading; libraries are silent unless `--debug`."""
    with status(f"loading {options.model} …"):
        if not options.debug:
            quiet_libraries(pipelines=True)
        if "out" in options:  # before anything is loaded
            from nextgpt.cli.terminal import check_folder

            check_folder(options.out)
        from nextgpt.pipeline import NextGPTPipeline

        return NextGPTPipeline.from_pretrained(options.model, device=options.device, dtype=options.dtype)


def answer_options(options: argparse.Namespace, pipeline: NextGPTPipeline) -> dict:
    """The options of an answer as the pipeline takes them: those of media for each kind that it makes."""
    media = {"num_inference_steps": options.steps, "guidance_scale": options.guidance_scale}
    return {
        "seed": options.seed,
        "max_new_tokens": options.max_new_tokens,
        **{modality: dict(media) for modality in pipeline.decoders},
    }


def aligned(rows: Sequence[Sequence[str]], right: int | None = None) -> str:
    """Rows as columns of even width; column `right` is flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i == right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
