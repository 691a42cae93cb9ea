"""`nextgpt info`: versions, devices, what a model is made of and what it knows."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from nextgpt.cli.common import add_command, aligned
from nextgpt.cli.status_line import quiet_libraries


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt info`."""
    parser = add_command(commands, "info", run, "show versions, devices and what a model is made of", debug)
    parser.add_argument(
        "model", nargs="?", default="nano", help="preset, folder, Hub repository or training run (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """Versions, devices, and the parts of a model; no weights are loaded."""
    if not options.debug:
        quiet_libraries()
    from nextgpt.report.info import describe_environment, describe_model, describe_run, known_world

    run = describe_run(options.model)
    if run:
        print(aligned(run), end="\n\n")
    if not run or (Path(options.model) / "config.json").is_file():  # a run that is under way holds no model yet
        print(aligned(describe_environment()), aligned(describe_model(options.model)), sep="\n\n")
        if known := known_world(options.model):
            print("\nIt knows")
            for heading, names in known.items():
                text = f"{heading} ({len(names)}): {', '.join(names)}"
                print(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))
