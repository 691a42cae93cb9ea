"""`nextgpt convert`: a checkpoint of the original NExT-GPT."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nextgpt.cli.common import add_command
from nextgpt.cli.status_line import quiet_libraries


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt convert`."""
    parser = add_command(commands, "convert", run, "read a checkpoint of the original NExT-GPT", debug)
    parser.add_argument("checkpoint", type=Path, help="its pytorch_model.pt, or the folder that holds it")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--language-model", required=True, metavar="FOLDER", help="Vicuna 7B v0, the base of the first published code"
    )
    parser.add_argument(
        "--model", default="7b", help="whose configuration names encoder and decoders (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """Every key of the original and of this model, then the result."""
    if not options.debug:
        quiet_libraries()
    from nextgpt.hub.convert_nextgpt_checkpoint import IncompleteCheckpoint, convert_checkpoint

    try:
        report = convert_checkpoint(
            options.checkpoint, options.out, language_model=options.language_model, model=options.model
        )
    except IncompleteCheckpoint as error:
        print("\n".join(error.report.lines()))
        raise
    print("\n".join(report.lines()))
    counts = f"{len(report.used)} tensors used, {len(report.unused)} unused, {len(report.missing)} missing"
    print(f"{counts}; saved in {options.out}. Its base is Vicuna 7B v0: {options.language_model}")
