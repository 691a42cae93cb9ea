"""`nextgpt params`: a model's parameters, part by part."""

from __future__ import annotations

import argparse
import json
from typing import Any

from nextgpt.cli.common import add_command, aligned
from nextgpt.cli.status_line import quiet_libraries


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt params`."""
    parser = add_command(commands, "params", run, "count a model's parameters, part by part", debug)
    parser.add_argument("model", nargs="?", default="7b", help="preset, folder or Hub repository (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> None:
    """The table of a model's parts."""
    if not options.debug:
        quiet_libraries()
    from nextgpt.report.params import count_parameters

    table = count_parameters(options.model)
    if options.json:
        print(json.dumps(table.to_dict(), indent=2, ensure_ascii=False))
        return
    rows = [("part", "model", "parameters", "trained", "licence of the weights")]
    for part in table.parts:
        trained = "yes" if part.trained else "no"
        rows.append((part.name, part.description, f"{part.parameters:,}", trained, part.license or "–"))
        if len(part.breakdown) > 1:
            rows += [(f"  {name}", "", f"{size:,}", "", "") for name, size in part.breakdown.items()]
    print(aligned(rows, right=2))
    print(f"\ntrained {table.trained:,} of {table.total:,} parameters: {table.trained_share:.2%}")
    restricted = [f"{part.name} ({part.license})" for part in table.parts if part.is_non_commercial]
    if restricted:
        print("\nThe licences of these weights forbid commercial use: " + ", ".join(restricted) + ".")
        print("NExT-GPT's code is Apache-2.0; a commercial user must put other weights in their place.")
