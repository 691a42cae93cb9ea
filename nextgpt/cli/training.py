"""The commands of training, comparing and data, `nextgpt train|compare|data …`. The work is done in `nextgpt.train`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nextgpt.cli.common import add_command, add_teacher_options, positive, teacher_settings
from nextgpt.cli.preferences.learn import add_learning
from nextgpt.cli.preferences.reward import add_reward
from nextgpt.cli.status_line import quiet_libraries

STAGES = {"encoders": "align_encoders", "decoders": "align_decoders", "instruct": "instruct"}
SUMMARIES = {
    "encoders": "stage 1: media → caption; trains the input projection",
    "decoders": "stage 2: caption → signal tokens; trains the output projections and the signal rows",
    "instruct": "stage 3: dialogues; trains the adapter, the projections and the signal rows together",
}


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Adds `nextgpt train`, `nextgpt compare` and `nextgpt data`."""
    add_train(commands, debug)
    add_compare(commands, debug)
    add_data(commands, debug)


def add_train(commands: Any, debug: argparse.ArgumentParser) -> None:
    """`nextgpt train encoders|decoders|instruct --config FILE [key=value ...]`, and `nextgpt train reward|prefer|rl`."""
    parser = commands.add_parser("train", help="train one of the three stages, or from preferences", parents=[debug])
    stages = parser.add_subparsers(title="stages", metavar="STAGE", required=True)
    for name, summary in SUMMARIES.items():
        stage = add_command(stages, name, train, summary, debug)
        stage.set_defaults(stage=STAGES[name])
        ours = "own, nano or 7b" if name == "instruct" else "nano or 7b"
        stage.add_argument("--config", required=True, help=f"YAML file, or {ours} for one that comes with the package")
        stage.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    add_reward(stages, debug)
    add_learning(stages, debug)


def train(options: argparse.Namespace) -> None:
    """Trains; the log goes to the terminal, the result to the configuration's `output_dir`."""
    from nextgpt.train.stages import train

    train(options.stage, options.config, options.overrides)


COMPARE_EXAMPLE = """example, after the stages before it have made runs/nano (python -m nextgpt.train.nano.make):
  nextgpt compare adapters --config nano

Each adapter of the file is trained from the same checkpoint on the same data, in runs of `nextgpt train instruct`. The same
command goes on where it was stopped; a run that is finished is not made again."""


def add_compare(commands: Any, debug: argparse.ArgumentParser) -> None:
    """`nextgpt compare adapters --config FILE`."""
    parser = commands.add_parser("compare", help="train methods alike and compare them", parents=[debug])
    kinds = parser.add_subparsers(title="methods", metavar="METHODS", required=True)
    adapters = add_command(
        kinds,
        "adapters",
        compare,
        "adapters of about one size, from one checkpoint: cost, loss and what they can do",
        debug,
        COMPARE_EXAMPLE,
    )
    adapters.add_argument("--config", required=True, help="YAML file, or nano for train/configs/nano/adapters.yaml")


def compare(options: argparse.Namespace) -> None:
    """Compares, and prints the table; it stands in the file's `output_dir` too."""
    from nextgpt.train.compare.adapters import compare_adapters

    if not options.debug:
        quiet_libraries()
    print(compare_adapters(options.config))


def add_data(commands: Any, debug: argparse.ArgumentParser) -> None:
    """`nextgpt data convert|generate|nano|check|cache`."""
    parser = commands.add_parser("data", help="convert, generate, check and cache training data", parents=[debug])
    tools = parser.add_subparsers(title="tools", metavar="TOOL", required=True)
    for add in (_add_convert, _add_generate, _add_nano, _add_check, _add_cache):
        add(tools, debug)


def _add_convert(tools, debug) -> None:
    parser = add_command(tools, "convert", convert_data, "bring other formats to JSON lines of chat messages", debug)
    parser.add_argument("files", nargs="+", type=Path, help="JSON or JSON-lines files of one format")
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON-lines file to write")
    parser.add_argument(
        "--format",
        default="auto",
        help="auto, captions, nextgpt, llava, alpaca, sharegpt or messages (default: %(default)s)",
    )
    parser.add_argument("--media", type=Path, help="folder of the media files (default: each file's own folder)")
    parser.add_argument(
        "--task",
        choices=("encoders", "decoders"),
        default="encoders",
        help="what plain pairs of media and caption become: questions about media or wishes for them (default: %(default)s)",
    )
    parser.add_argument("--html", action="store_true", help="turn HTML in texts to Markdown, as in dialogues from web pages")
    parser.add_argument("--languages", nargs="+", default=(), metavar="CODE", help="leave out all but these, as: en de")
    parser.add_argument("--max-length", type=positive, metavar="N", help="split what is longer, between turns, in tokens")
    parser.add_argument("--model", default="nano", help="whose tokens --max-length counts (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the place of every record left out")
    parser.add_argument(
        "--questions",
        type=positive,
        default=0,
        metavar="N",
        help="ask for what is said of a single medium in N other ways too, so that any question finds it (default: none)",
    )


def convert_data(options: argparse.Namespace) -> None:
    """Converts, and says how many conversations there are, what was left out and why."""
    from nextgpt.train.data.cleaning import Cleaning
    from nextgpt.train.data.convert import convert_files

    clean = None
    if options.html or options.languages or options.max_length:
        clean = Cleaning(options.html, tuple(options.languages), options.max_length, options.model)
    report = convert_files(
        options.files, options.out, format=options.format, media_folder=options.media, task=options.task, clean=clean
    )
    added = 0
    if options.questions > 0:
        from nextgpt.train.nano.dialogues.questions import ask_in_other_words

        added = ask_in_other_words(options.out, options.questions)
    if options.json:
        print(json.dumps(report.to_dict() | {"in_other_words": added}, indent=2, ensure_ascii=False))
        return
    print(f"{options.out}: {report.conversations:,} conversations from {', '.join(map(str, options.files))}")
    print("\n".join(report.summary()), end="\n" if report.left_out or report.notes else "")
    if options.questions > 0:
        print(f"{options.out}: {added:,} more, the same asked in other words")


RECIPES = {
    "self-instruct": "tasks from examples of tasks, and their answers",
    "evol-instruct": "tasks made harder step by step, and their answers",
    "modality-switching": "dialogues of 3 to 7 exchanges that show and make media of changing kinds",
    "captions-to-instructions": "conversations about your captioned media, and wishes for them",
}
GENERATE_EXAMPLE = """recipes:
{recipes}

example, with a server of your own that speaks OpenAI's API:
  nextgpt data generate --recipe captions-to-instructions --media my/captions.json \\
    --teacher http://localhost:8000/v1 --teacher-model qwen3-32b -n 500 -o data/taught.jsonl

The key comes from NEXTGPT_TEACHER_API_KEY (for api.openai.com OPENAI_API_KEY will do), and is written nowhere. What was
asked and answered stands in FILE.requests.jsonl: the same command goes on where it was stopped, and asks nothing twice."""


def _add_generate(tools, debug) -> None:
    recipes = "\n".join(f"  {name:25} {what}" for name, what in RECIPES.items())
    summary, example = "have a stronger model write conversations to train on", GENERATE_EXAMPLE.format(recipes=recipes)
    parser = add_command(tools, "generate", generate_data, summary, debug, example)
    parser.add_argument("--recipe", choices=tuple(RECIPES), required=True, help="how they come about, see below")
    add_teacher_options(parser, "teacher", result="FILE", temperature=1.0)
    parser.add_argument("-n", "--count", type=positive, required=True, metavar="N", help="how many conversations")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="JSON-lines file to write")
    parser.add_argument("--media", type=Path, metavar="FILE", help="captions of your media: caption beside image_name, …")
    parser.add_argument(
        "--seeds", type=Path, metavar="FILE", help="tasks or conversations to begin with (default: 24 of our own)"
    )
    parser.add_argument("--prompts", type=Path, metavar="FOLDER", help="your own texts in place of those of the same name")
    parser.add_argument("--model", default="nano", help="whose kinds of media and length count (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one, other requests (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def generate_data(options: argparse.Namespace) -> None:
    """Asks, and says what was kept, dropped and cleaned, and why. What stops it early is an error; nothing is lost by it."""
    from nextgpt.train.instruct_data.generate import generate
    from nextgpt.train.instruct_data.record import Stopped

    given = {name: getattr(options, name) for name in ("seeds", "media", "prompts", "model", "seed")}
    report = generate(options.recipe, options.out, options.count, teacher_settings(options, "teacher"), **given)
    print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if options.json else "\n".join(report.summary()))
    if report.stopped:
        raise Stopped(report.stopped)


def _add_nano(tools, debug) -> None:
    summary = "write conversations such as nano was trained on, to be mixed with yours so that it forgets nothing"
    parser = add_command(tools, "nano", nano_data, summary, debug)
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON-lines file to write; its media go beside it")
    parser.add_argument("--count", type=int, default=2000, help="conversations (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one, other conversations (default: %(default)s)")
    parser.add_argument(
        "--length",
        type=positive,
        metavar="N",
        help="long ones of up to N tokens, which ask about pictures shown long before",
    )


def nano_data(options: argparse.Namespace) -> None:
    """Makes the conversations and renders their media."""
    if options.length:
        from nextgpt.train.nano.context.conversations import write_long

        files = write_long(options.out, options.count, options.length, seed=options.seed)
    else:
        from nextgpt.train.nano.dialogues.rehearsal import write_rehearsal

        files = write_rehearsal(options.out, options.count, seed=options.seed)
    print(f"{options.out}: {options.count:,} conversations, {files:,} media in {options.out.with_suffix('')}")


def _add_check(tools, debug) -> None:
    parser = add_command(tools, "check", check_data, "read everything and report what is wrong with it", debug)
    parser.add_argument("files", nargs="+", type=Path, help="JSON-lines files of chat messages")
    parser.add_argument("--model", default="nano", help="whose tokenizer and kinds of media count (default: %(default)s)")
    parser.add_argument("--max-length", type=positive, help="longest conversation in tokens (default: what the model takes)")
    parser.add_argument("--min-length", type=int, default=1, help="shortest answer in tokens (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def check_data(options: argparse.Namespace) -> int:
    """Prints the problems and the histogram of lengths; exit code 1 where there is a problem."""
    from nextgpt.train.data.check import check_files

    report = check_files(
        options.files,
        options.model,
        max_length=options.max_length,
        min_length=options.min_length,
        workers=options.workers,
    )
    if options.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        for problem in report.problems:
            print(f"{problem.kind}  {problem.where}: {problem.reason}")
        print("\n".join(report.summary()))
    return 1 if report.problems else 0


def _add_cache(tools, debug) -> None:
    summary = "store what the frozen encoders and text encoders say of a stage's data"
    parser = add_command(tools, "cache", cache_data, summary, debug)
    parser.add_argument("stage", choices=tuple(STAGES), help="whose configuration it is")
    parser.add_argument("--config", required=True, help="YAML file of the stage, or nano or 7b (of instruct own, too)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    parser.add_argument("--processes", type=int, default=1, help="that share the work (default: %(default)s)")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: on all machines of a Ray cluster")


def cache_data(options: argparse.Namespace) -> None:
    """Computes what is missing; started again, it goes on where it stopped."""
    from nextgpt.train.data.cache import cache_features

    folder = cache_features(
        STAGES[options.stage], options.config, options.overrides, processes=options.processes, engine=options.engine
    )
    print(f"features of the frozen parts: {folder}")
