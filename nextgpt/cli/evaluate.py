"""`nextgpt evaluate`: the table of what a nano model can do, or the ladder of its parts."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nextgpt.cli.common import add_below, add_command, add_model_options, load_pipeline, positive, refuse_unused
from nextgpt.cli.judge import add_judge
from nextgpt.cli.status_line import quiet_libraries, status
from nextgpt.errors import UserInputError


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt evaluate`."""
    epilog = (
        "To compare the answers of two models: nextgpt evaluate judge --help. To measure models of nano's kind on long "
        "conversations: nextgpt evaluate context --help."
    )
    summary = "measure a nano model on what it has never seen"
    parser = add_command(commands, "evaluate", run, summary, debug, epilog=epilog)
    add_judge(parser, debug)
    add_context(parser, debug)
    add_model_options(parser, positional=True)
    parser.add_argument("--part", action="append", metavar="PART", help="only this row of the table; repeatable")
    parser.add_argument("--quick", action="store_true", help="40 questions a row instead of 200")
    parser.add_argument("--split", choices=("heldout", "dev"), help="(default: heldout; of the ladder dev)")
    parser.add_argument("--ladder", action="store_true", help="measure each part alone, from the ground up, instead")
    parser.add_argument("--rung", action="append", metavar="RUNG", help="only this rung of the ladder; repeatable")
    parser.add_argument("--root", type=Path, metavar="DIR", help="of the ladder: a folder with the parts, e.g. runs/nano")
    parser.add_argument("--ablate", action="store_true", help="zero each projection: its row must fall to chance")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page with pictures and mistakes into DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.set_defaults(parser=parser)


CONTEXT_EXAMPLE = """example:
  nextgpt evaluate context runs/yarn runs/short nano --length 1280

All models get the same conversations, whatever their limits: one whose positions are not scaled extrapolates plainly."""


def add_context(evaluate: argparse.ArgumentParser, debug: argparse.ArgumentParser) -> None:
    """Adds `context` below `nextgpt evaluate`."""
    summary = "measure models of nano's kind on long conversations: loss by position, pictures shown long ago"
    parser = add_below(evaluate, "context", run_context, summary, CONTEXT_EXAMPLE, debug)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="preset, folder or Hub repository")
    parser.add_argument("--length", type=positive, required=True, metavar="N", help="of the conversations, in tokens")
    parser.add_argument(
        "-n", "--count", type=positive, default=100, metavar="N", help="pictures at each of five depths (default: 100)"
    )
    parser.add_argument("--described", action="store_true", help="the assistant said what the picture shows when it saw it")
    parser.add_argument("--seed", type=int, default=0, help="of the conversations (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="e.g. cpu, mps (default: an accelerator if there is one)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 or float16 (default: by the device)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_context(options: argparse.Namespace) -> None:
    """Loss by position and the needle test, a column for each model."""
    with status("loading the evaluation …"):
        if not options.debug:
            quiet_libraries(pipelines=True)
        from nextgpt.train.nano.context.evaluate import evaluate_context

    given = {name: getattr(options, name) for name in ("count", "described", "seed", "device", "dtype")}
    report = evaluate_context(options.models, options.length, **given)
    print(report.as_json() if options.json else report.table())


def run(options: argparse.Namespace) -> None:
    """The table of what a nano model can do, measured on its held-out world; or the ladder of its parts."""
    if options.ladder or options.rung or options.root:
        refuse_unused(options.parser, options, dict.fromkeys(("part", "ablate", "report"), ("the table",)), "", "--ladder")
        return climb(options)
    if options.ablate:
        refuse_unused(options.parser, options, {"part": ("the table",)}, "", "--ablate")
    if options.report:
        from nextgpt.cli.terminal import check_folder

        check_folder(options.report, "--report")
    with status("loading the evaluation …"):
        from nextgpt.train.nano.evaluation.evaluate import ROWS, Bench, ablations, table
    from nextgpt.train.nano.evaluation.report import write_report

    if unknown := set(options.part or ()) - set(ROWS):
        raise UserInputError(f"--part {unknown.pop()}: there is no such row; the rows are {', '.join(ROWS)}")
    bench = Bench(load_pipeline(options), 40 if options.quick else 200, options.split or "heldout")
    rows = ablations(bench) if options.ablate else [ROWS[part] for part in options.part or ROWS]
    scores = _told(len(rows), (row(bench) for row in rows), options.json)
    if not options.json:
        print(table(scores))
    if options.report:
        print(f"\n{write_report(options.report, scores, bench.samples)}", file=sys.stderr)


def climb(options: argparse.Namespace) -> None:
    """The ladder: every part alone, and what the rungs can carry."""
    with status("loading the ladder …"):
        from nextgpt.hub.parts import preset_folder
        from nextgpt.train.nano.evaluation.ladder import RUNGS, Ladder, check_rungs, climb, paths
        from nextgpt.train.nano.evaluation.scores import table

    rungs = check_rungs(options.rung)
    root = options.root or (preset_folder(options.model) if options.model == "nano" else Path(options.model))
    if not root.is_dir():
        raise UserInputError(f"{root}: there is no such folder; expected one with the parts of a nano model")
    whole = (root / "config.json").is_file() and any(rung.startswith("projections") for rung in rungs)
    options.model = str(root)
    if not options.debug:
        quiet_libraries(pipelines=True)
    pipeline = load_pipeline(options) if whole else None
    ladder = Ladder(root, 40 if options.quick else 120, options.split or "dev", pipeline=pipeline)
    scores = _told(len(rungs), (found for _, found in climb(ladder, rungs)), options.json)
    if not options.json:
        print(table(scores))
        if set(rungs) == set(RUNGS):
            print(f"\n{paths(ladder)}")


def _told(count: int, rows: Iterable[list], prints_json: bool) -> list:
    """All scores; every row is told as soon as it is there, for there may be forty minutes of them.

    Args:
        prints_json: they are printed too, as parts of one JSON list.
    """
    from nextgpt.train.nano.evaluation.scores import as_json, summary

    scores, began = [], time.monotonic()
    for number, found in enumerate(rows, start=1):
        seconds, began = time.monotonic() - began, time.monotonic()
        if prints_json:
            print("," if scores else "[", as_json(found)[1:-2], sep="", end="", flush=True)
        scores += found
        print(f"{number} of {count}: {summary(found)} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    if prints_json:
        print("\n]")
    return scores
