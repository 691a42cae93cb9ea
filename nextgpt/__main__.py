"""The command line: what the options are called and how results are printed. The work is done elsewhere.

With `nextgpt.training_commands` it is the one door that reaches up to `demo` and `train`. Every command imports what it
needs itself, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from nextgpt import __version__
from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.training_commands import add_data, add_train

DEFAULT_OUT = "nextgpt-out"
INPUT_MODALITIES = ("image", "audio", "video")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 2 for what the user can mend, 1 for a defect, 130 for Ctrl-C."""
    options = build_parser().parse_args(arguments, argparse.Namespace(debug=False))
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `nextgpt … | head` has read enough
        sys.stderr.close()
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


# ---------------------------------------------------------------------- options


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    debug = argparse.ArgumentParser(add_help=False)  # taken before and after the command; hence no default of its own
    debug.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="nextgpt", description="Any mix of text, images, audio and video in, any mix out.", parents=[debug]
    )
    parser.add_argument("--version", action="version", version=f"nextgpt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_chat, _add_generate, _add_demo, _add_params, _add_info, _add_doctor, _add_download):
        add(commands, debug)
    for add in (add_train, add_data, _add_evaluate, _add_convert):
        add(commands, debug)
    return parser


def _add_command(commands, name: str, function, summary: str, debug, **details) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary, parents=[debug], **details)
    parser.set_defaults(command=function)
    return parser


def _add_model_options(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    names = ("model",) if positional else ("--model", "--preset")
    parser.add_argument(
        *names,
        default="nano",
        metavar="MODEL",
        help="preset, folder or Hub repository (default: %(default)s)",
        **({"nargs": "?"} if positional else {}),
    )
    parser.add_argument("--device", default="auto", help="e.g. cpu, mps (default: an accelerator if there is one)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 or float16 (default: by the device)")


def _add_answer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, help="of the first piece of media; the next takes one more (default: random)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="length of an answer (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="diffusion steps of each piece of media (default: the decoder's own)")
    parser.add_argument("--guidance-scale", type=float, help="classifier-free guidance (default: the decoder's own)")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path(DEFAULT_OUT), help="folder for the media (default: ./%(default)s)"
    )


def _add_chat(commands, debug) -> None:
    parser = _add_command(commands, "chat", chat, "talk to the assistant in the terminal", debug)
    _add_model_options(parser)
    _add_answer_options(parser)


def _add_generate(commands, debug) -> None:
    parser = _add_command(commands, "generate", generate, "one request, one answer", debug)
    parser.add_argument("prompt", help='what to ask, e.g. "draw a red car"')
    for modality in INPUT_MODALITIES:
        parser.add_argument(
            f"--{modality}", action="append", default=[], metavar="FILE", help=f"{modality} to attach; repeatable"
        )
    _add_model_options(parser)
    _add_answer_options(parser)
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="KIND=N",
        help="the answer must hold exactly N of KIND; repeatable",
    )
    parser.add_argument("--only", metavar="KINDS", help="kinds that are made, e.g. text,image; none comes instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object: text, files, seeds, timings …")


def _add_demo(commands, debug) -> None:
    parser = _add_command(commands, "demo", demo, "open the chat in the browser", debug)
    _add_model_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's servers")


def _add_params(commands, debug) -> None:
    parser = _add_command(commands, "params", params, "count a model's parameters, part by part", debug)
    parser.add_argument("model", nargs="?", default="7b", help="preset, folder or Hub repository (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_info(commands, debug) -> None:
    parser = _add_command(commands, "info", info, "show versions, devices and what a model is made of", debug)
    parser.add_argument(
        "model", nargs="?", default="nano", help="preset, folder, Hub repository or training run (default: %(default)s)"
    )


def _add_doctor(commands, debug) -> None:
    parser = _add_command(commands, "doctor", doctor, "check this environment and a model, one line each", debug)
    parser.add_argument("model", nargs="?", help="preset, folder or Hub repository (default: the environment alone)")


def _add_download(commands, debug) -> None:
    parser = _add_command(commands, "download", download, "fetch a model's frozen parts from the Hub", debug)
    parser.add_argument("model", nargs="?", default="7b", help="preset, folder or Hub repository (default: %(default)s)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="language_model, encoder, image …; repeatable"
    )


def _add_convert(commands, debug) -> None:
    parser = _add_command(commands, "convert", convert, "read a checkpoint of the original NExT-GPT", debug)
    parser.add_argument("checkpoint", type=Path, help="its pytorch_model.pt, or the folder that holds it")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--language-model", required=True, metavar="FOLDER", help="Vicuna 7B v0, the base of the first published code"
    )
    parser.add_argument(
        "--model", default="7b", help="whose configuration names encoder and decoders (default: %(default)s)"
    )


def _add_evaluate(commands, debug) -> None:
    parser = _add_command(commands, "evaluate", evaluate, "measure a nano model on what it has never seen", debug)
    _add_model_options(parser, positional=True)
    parser.add_argument("--part", action="append", metavar="PART", help="only this row of the table; repeatable")
    parser.add_argument("--quick", action="store_true", help="40 questions a row instead of 200")
    parser.add_argument("--split", default="heldout", choices=("heldout", "dev"), help="(default: %(default)s)")
    parser.add_argument("--ablate", action="store_true", help="zero each projection: its row must fall to chance")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page with pictures and mistakes into DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON list")


# ---------------------------------------------------------------------- commands


def chat(options: argparse.Namespace) -> None:
    """A conversation in the terminal, or of the lines of standard input."""
    from nextgpt.terminal import Chat, check_folder

    check_folder(options.out)
    Chat(_load_pipeline(options), options.out, _answer_options(options)).run()


def generate(options: argparse.Namespace) -> None:
    """One answer: its text and the paths of its media, as they come, or one JSON object at the end."""
    from nextgpt.terminal import AnswerPrinter, check_folder

    answer_options = _answer_options(options) | _contract(options)
    message = {"role": "user", "content": _content(options)}
    check_folder(options.out)
    pipeline = _load_pipeline(options)
    printer = AnswerPrinter(options.out, quiet=options.json)
    reply = printer.print(pipeline.stream([message], **answer_options))
    if options.json:
        record = {
            "text": reply.text,
            "files": [str(path) for path in printer.files],
            "seeds": [part["seed"] for part in reply.message["content"] if part["type"] != "text"],
            "finished": reply.finished,
            "switched_off": reply.switched_off,
            "timings": vars(reply.timings),
        }
        print(json.dumps(record, indent=2, ensure_ascii=False))


def demo(options: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    from nextgpt.demo.app import launch

    launch(
        _load_pipeline(options),
        host=options.host,
        port=options.port,
        share=options.share,
        model=options.model,
        on_ready=lambda address: print(f"NExT-GPT is ready at {address} (Ctrl-C stops it)", flush=True),
    )


def params(options: argparse.Namespace) -> None:
    """The table of a model's parts."""
    from nextgpt.params import count_parameters

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
    print(_aligned(rows, right=2))
    print(f"\ntrained {table.trained:,} of {table.total:,} parameters: {table.trained_share:.2%}")
    restricted = [f"{part.name} ({part.license})" for part in table.parts if part.is_non_commercial]
    if restricted:
        print("\nThe licences of these weights forbid commercial use: " + ", ".join(restricted) + ".")
        print("NExT-GPT's code is Apache-2.0; a commercial user must put other weights in their place.")


def info(options: argparse.Namespace) -> None:
    """Versions, devices, and the parts of a model; no weights are loaded."""
    from nextgpt.info import describe_environment, describe_model, describe_run

    run = describe_run(options.model)
    if run:
        print(_aligned(run), end="\n\n")
    if not run or (Path(options.model) / "config.json").is_file():  # a run that is under way holds no model yet
        print(_aligned(describe_environment()), _aligned(describe_model(options.model)), sep="\n\n")


def doctor(options: argparse.Namespace) -> int:
    """One line for each check; exit code 1 where something would not work."""
    if not options.debug:
        _quiet_libraries()
    from nextgpt.doctor import examine

    findings = examine(options.model)
    marks = {True: "ok", False: "FAILS", None: "?"}
    print(_aligned([(marks[finding.works], finding.what, finding.detail) for finding in findings]))
    return 1 if any(finding.works is False for finding in findings) else 0


def download(options: argparse.Namespace) -> None:
    """The sizes first, then the files."""
    from nextgpt.download import download, plan_downloads

    plans = plan_downloads(options.model, options.only)
    rows = [("part", "repository", "files", "GB", "licence")]
    rows += [(p.name, p.part.source, str(len(p.files)), f"{p.size / 1e9:.2f}", p.part.license or "–") for p in plans]
    print(_aligned(rows, right=3), f"\n{sum(plan.size for plan in plans) / 1e9:.2f} GB in all", flush=True)
    for plan in plans:
        print(f"{plan.name}: {download(plan)}", flush=True)


def convert(options: argparse.Namespace) -> None:
    """Every key of the original and of this model, then the result."""
    if not options.debug:
        _quiet_libraries()
    from nextgpt.original import IncompleteCheckpoint, convert_checkpoint

    try:
        report = convert_checkpoint(
            options.checkpoint, options.out, language_model=options.language_model, model=options.model
        )
    except IncompleteCheckpoint as error:
        print("\n".join(error.report.lines()))
        raise
    print("\n".join(report.lines()))
    counts = f"{len(report.used)} tensors used, {len(report.unused)} unused, {len(report.missing)} missing"
    print(f"{counts}; saved in {options.out}. Its base is Vicuna 7B v0: {options.language_model}")


def evaluate(options: argparse.Namespace) -> None:
    """The table of what a nano model can do, measured on its held-out world."""
    from nextgpt.train.nano.evaluate import ROWS, Bench, ablate, as_json, table
    from nextgpt.train.nano.report import write_report

    if unknown := set(options.part or ()) - set(ROWS):
        raise UserInputError(f"--part {unknown.pop()}: there is no such row; the rows are {', '.join(ROWS)}")
    bench = Bench(_load_pipeline(options), 40 if options.quick else 200, options.split)
    rows = [ablate] if options.ablate else [ROWS[part] for part in options.part or ROWS]
    scores = [score for row in rows for score in row(bench)]
    print(as_json(scores) if options.json else table(scores))
    if options.report:
        print(f"\n{write_report(options.report, scores, bench.samples)}", file=sys.stderr)


# ---------------------------------------------------------------------- options → arguments


def _load_pipeline(options: argparse.Namespace):
    if not options.debug:
        _quiet_libraries()
    from nextgpt.pipeline import NextGPTPipeline

    return NextGPTPipeline.from_pretrained(options.model, device=options.device, dtype=options.dtype)


def _quiet_libraries() -> None:
    """What libraries say to programmers is not for users; their progress bars are for terminals."""
    import warnings

    import diffusers.utils.logging
    import transformers.utils.logging

    warnings.simplefilter("ignore", FutureWarning)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        if not sys.stderr.isatty():
            library.utils.logging.disable_progress_bar()


def _answer_options(options: argparse.Namespace) -> dict:
    media = {"num_inference_steps": options.steps, "guidance_scale": options.guidance_scale}
    return {
        "seed": options.seed,
        "max_new_tokens": options.max_new_tokens,
        **{modality: dict(media) for modality in INPUT_MODALITIES},
    }


def _contract(options: argparse.Namespace) -> dict:
    """`--only` and `--require` as the pipeline takes them."""
    require = {}
    for given in options.require:
        kind, separator, number = given.partition("=")
        if not separator or not number.isdecimal():
            raise UserInputError(f"--require {given}: expected KIND=N, e.g. --require image=1")
        require[kind] = int(number)
    only = [kind.strip() for kind in options.only.split(",")] if options.only else None
    return {"output_modalities": only, "require": require or None}


def _content(options: argparse.Namespace) -> list[dict]:
    """Attached media first, in the order of their kinds, then the words."""
    media = [{"type": modality, "path": path} for modality in INPUT_MODALITIES for path in getattr(options, modality)]
    return [*media, {"type": "text", "text": options.prompt}]


def _aligned(rows: Sequence[Sequence[str]], right: int | None = None) -> str:
    """Rows as columns of even width; column `right` is flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i == right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
