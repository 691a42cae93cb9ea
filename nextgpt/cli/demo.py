"""`nextgpt demo`: the chat in the browser."""

from __future__ import annotations

import argparse
from typing import Any

from nextgpt.cli.common import add_command, add_model_options, load_pipeline


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt demo`."""
    parser = add_command(commands, "demo", run, "serve the chat, for the browser", debug)
    add_model_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's servers")


def run(options: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    from nextgpt.demo.app import launch

    launch(
        load_pipeline(options),
        host=options.host,
        port=options.port,
        share=options.share,
        model=options.model,
        on_ready=lambda address: print(f"NExT-GPT is ready at {address} (Ctrl-C stops it)", flush=True),
    )
