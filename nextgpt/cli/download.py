"""`nextgpt download`: a model's frozen parts from the Hub, the sizes first."""

from __future__ import annotations

import argparse
from typing import Any

from nextgpt.cli.common import add_command, aligned
from nextgpt.cli.status_line import quiet_libraries


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt download`."""
    parser = add_command(commands, "download", run, "fetch a model's frozen parts from the Hub", debug)
    parser.add_argument("model", nargs="?", default="7b", help="preset, folder or Hub repository (default: %(default)s)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="language_model, encoder, image …; repeatable"
    )


def run(options: argparse.Namespace) -> None:
    """The sizes first, then the files."""
    if not options.debug:
        quiet_libraries(bars=True)
    from nextgpt.errors import ModelLoadError
    from nextgpt.hub.download import download, parts_to_fetch, plan_downloads

    def show(*rows: tuple[str, ...]) -> None:
        print(aligned([("part", "repository", "files", "GB", "licence"), *rows], right=3), flush=True)

    parts = parts_to_fetch(options.model, options.only)
    if not parts:
        print(f"nothing to fetch: all that was asked for of {options.model} is on this machine")
        return
    try:
        plans = plan_downloads(parts)
    except ModelLoadError:  # what the configuration knows is shown all the same
        sizes = {name: f"{part.size / 1e9:.2f}" if part.size else "?" for name, part in parts.items()}
        show(*((name, part.source, "?", sizes[name], part.license or "–") for name, part in parts.items()))
        print(f"about {sum(part.size or 0 for part in parts.values()) / 1e9:.0f} GB in all\n", flush=True)
        raise
    show(*((p.name, p.part.source, str(len(p.files)), f"{p.size / 1e9:.2f}", p.part.license or "–") for p in plans))
    print(f"{sum(plan.size for plan in plans) / 1e9:.2f} GB in all", flush=True)
    for plan in plans:
        print(f"{plan.name}: {download(plan)}", flush=True)
