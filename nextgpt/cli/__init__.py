"""The command line: a small module a command. The work is done elsewhere.

It alone imports `demo` and `train`, inside the functions of its commands. Every command imports what it needs when it runs,
so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from nextgpt import __version__
from nextgpt.cli import chat, convert, demo, doctor, download, evaluate, generate, info, params, serve, training
from nextgpt.cli.preferences import collect as preferences
from nextgpt.errors import NextGPTError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 2 for what the user can fix, 1 for a defect, 130 for Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8; in JSON it is the right escape, too
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = build_parser()
    if not (sys.argv[1:] if arguments is None else arguments):  # nothing at all was said: show what there is
        parser.print_help()
        return 2
    options = parser.parse_args(arguments, argparse.Namespace(debug=False))
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `nextgpt … | head` has read enough
        sys.stderr.close()
        with suppress(OSError):  # what is left in the buffer goes nowhere, without a word at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if options.debug:
            raise
        if isinstance(error, NextGPTError):
            print(f"nextgpt: error: {error}", file=sys.stderr)
            return 2
        reason = (str(error).strip() or "no message").splitlines()[0]
        print(f"nextgpt: unexpected {type(error).__name__}: {reason} (run with --debug)", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    debug = argparse.ArgumentParser(add_help=False)  # taken before and after the command; hence no default of its own
    debug.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="nextgpt", description="Any mix of text, images, audio and video in, any mix out.", parents=[debug]
    )
    parser.add_argument("--version", action="version", version=f"nextgpt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (chat, generate, demo, serve, params, info, doctor, download, training, preferences, evaluate, convert):
        command.add(commands, debug)
    return parser
