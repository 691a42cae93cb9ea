"""`nextgpt doctor`: what would not work here, one line each."""

from __future__ import annotations

import argparse
from typing import Any

from nextgpt.cli.common import add_command, aligned
from nextgpt.cli.status_line import quiet_libraries


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt doctor`."""
    parser = add_command(commands, "doctor", run, "check this environment and a model, one line each", debug)
    parser.add_argument("model", nargs="?", help="preset, folder or Hub repository (default: the environment alone)")


def run(options: argparse.Namespace) -> int:
    """One line for each check; exit code 1 where something would not work."""
    if not options.debug:
        quiet_libraries()
    from nextgpt.report.doctor import examine

    findings = examine(options.model)
    marks = {True: "ok", False: "FAILS", None: "?"}
    print(aligned([(marks[finding.works], finding.what, finding.detail) for finding in findings]))
    return 1 if any(finding.works is False for finding in findings) else 0
