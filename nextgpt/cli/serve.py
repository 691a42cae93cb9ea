"""`nextgpt serve`: OpenAI's API over the model."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from nextgpt.cli.common import add_command, add_model_options, load_pipeline

PAGE = "/chat"


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt serve`."""
    parser = add_command(commands, "serve", run, "serve OpenAI's API", debug)
    add_model_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help="that requests must bring; repeat it for several (default: NEXTGPT_API_KEY, separated by commas). "
        "Other users of this machine see it in the list of processes: the variable keeps it from them.",
    )
    parser.add_argument(
        "--demo", action="store_true", help=f"also the chat in the browser, at {PAGE}, with the same model and key"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: on the machines of a Ray cluster, or a new one on this machine (pip install 'nextgpt[ray]')",
    )
    parser.add_argument("--name", help="that requests call the model by (default: MODEL, of a path its last part)")
    for name, example in (("host", "a name of this server"), ("origin", "a web page's, as https://chat.example.org")):
        parser.add_argument(f"--allowed-{name}", action="append", default=[], help=f"{example}; * for any; may be repeated")
    parser.add_argument("--public-url", help="what the addresses of media begin with, behind a proxy")


def ready(address: str, page: str = "") -> None:
    """Says that the server answers, and where the page is."""
    print(f"NExT-GPT is ready at {address}/v1{page and f', the chat at {address}{page}'} (Ctrl-C stops it)", flush=True)


def run(options: argparse.Namespace) -> None:
    """Serves until Ctrl-C."""
    from nextgpt.errors import UserInputError
    from nextgpt.serve.settings import ServerSettings, keys_of_environment

    settings = ServerSettings(
        model=options.name or Path(options.model).name or options.model,
        api_keys=tuple(options.api_key or keys_of_environment()),
        host=options.host,
        port=options.port,
        allowed_hosts=tuple(options.allowed_host),
        allowed_origins=tuple(options.allowed_origin),
        public_url=options.public_url,
    )
    if options.engine == "ray":
        if options.demo:
            raise UserInputError("--demo is for one machine: leave it out, or take --engine local")
        from nextgpt.serve.cluster.launch import launch

        launch(settings, {"model": options.model, "device": options.device, "dtype": options.dtype}, ready)
        return
    from nextgpt.serve.server import Server, listen

    listening = listen(settings.host, settings.port)  # a taken port is told before the model is loaded
    pipeline = load_pipeline(options)
    running = Server(pipeline, settings, listening)
    with contextlib.ExitStack() as page:
        if options.demo:
            from nextgpt.demo.app import mounted

            running.app.state.unguarded.append(PAGE)
            page.enter_context(mounted(pipeline, running.app, path=PAGE, model=options.model, keys=settings.api_keys))
        running.run(lambda address: ready(address, PAGE if options.demo else ""))
