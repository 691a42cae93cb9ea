"""`nextgpt generate`: one request, one answer."""

from __future__ import annotations

import argparse
import json
from typing import Any

from nextgpt.cli.common import (
    add_answer_options,
    add_command,
    add_model_options,
    answer_options,
    load_pipeline,
)
from nextgpt.errors import UserInputError
from nextgpt.modalities import MODALITIES


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt generate`."""
    parser = add_command(commands, "generate", run, "one request, one answer", debug)
    parser.add_argument("prompt", help='what to ask, e.g. "draw a red car"')
    for modality in MODALITIES:
        parser.add_argument(
            f"--{modality}", action="append", default=[], metavar="FILE", help=f"{modality} to attach; repeatable"
        )
    add_model_options(parser)
    add_answer_options(parser)
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="KIND=N",
        help="the answer must hold exactly N of KIND; repeatable",
    )
    parser.add_argument("--only", metavar="KINDS", help="kinds that are made, e.g. text,image; none comes instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object: text, files, seeds, timings")


def run(options: argparse.Namespace) -> None:
    """One answer: its text and the paths of its media, as they come, or one JSON object at the end."""
    contract = _contract(options)
    message = {"role": "user", "content": _content(options)}
    pipeline = load_pipeline(options)
    arguments = answer_options(options, pipeline) | contract
    from nextgpt.cli.terminal import AnswerPrinter

    printer = AnswerPrinter(options.out, quiet=options.json)
    reply = printer.print(pipeline.stream([message], **arguments))
    if options.json:
        record = {
            "text": reply.text,
            "files": [str(path) for path in printer.files],
            "seeds": [part["seed"] for part in reply.message["content"] if part["type"] != "text"],
            "finished": reply.finished,
            "switched_off": reply.switched_off,
            "timings": vars(reply.timings),
        }
        print(json.dumps(record, indent=2, ensure_ascii=False))


def _contract(options: argparse.Namespace) -> dict:
    """`--only` and `--require` as the pipeline takes them."""
    require = {}
    for given in options.require:
        kind, separator, number = given.partition("=")
        if not separator or not number.isdecimal():
            raise UserInputError(f"--require {given}: expected KIND=N, e.g. --require image=1")
        require[kind] = int(number)
    only = [kind.strip() for kind in options.only.split(",")] if options.only is not None else None
    if only and "text" not in only:  # said here in the words of the command line
        raise UserInputError(f"--only {options.only}: an answer always may hold text, e.g. --only text,image")
    return {"output_modalities": only, "require": require or None}


def _content(options: argparse.Namespace) -> list[dict]:
    """Attached media first, in the order of their kinds, then the words, if there are any.

    Files are read here: what is wrong with one is said at once, not after the model has loaded.
    """
    from nextgpt.media import load_media

    given = [(modality, path) for modality in MODALITIES for path in getattr(options, modality)]
    content = [{"type": modality, modality: load_media(modality, path)} for modality, path in given]
    if options.prompt.strip():
        content.append({"type": "text", "text": options.prompt})
    if not content:
        raise UserInputError("the prompt is empty: say what to ask, or attach a file")
    return content
