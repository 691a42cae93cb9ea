"""`nextgpt chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
from typing import Any

from nextgpt.cli.common import add_answer_options, add_command, add_model_options, answer_options, load_pipeline


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt chat`."""
    parser = add_command(commands, "chat", run, "talk to the assistant in the terminal", debug)
    add_model_options(parser)
    add_answer_options(parser)


def run(options: argparse.Namespace) -> None:
    """A conversation in the terminal, or of the lines of standard input."""
    pipeline = load_pipeline(options)
    from nextgpt.cli.terminal import Chat

    Chat(pipeline, options.out, answer_options(options, pipeline)).run()
