"""Makes the nano model: a graph of commands, each run when what it needs is there and its result is missing.

`python -m nextgpt.train.nano.make run` runs what is left: on an accelerator all steps that are ready side by side, on a
processor one at a time. `--minutes 9` shares so many minutes out over what is left; `--steps a,b` runs these alone;
`--rehearse` runs the whole graph with seconds a step, in a folder of its own. A step that was broken off (Ctrl-C) goes on
from its checkpoint. Each writes its log to `<root>/logs/<step>.log`; `… make report` says where the time went.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version

from nextgpt.train.nano.defaults import DEFAULTS, ROOT

logger = logging.getLogger(__name__)

PARTS = Path(__file__).parent / "parts"  # frozen parts that have met their rung of the ladder: they are not made again
LOGS, TIMES = "logs", "times.json"
OVERHEAD = 0.25  # minutes that a trained step takes beside its training: starting, measuring, saving
POLL_SECONDS = 0.2
# What the making imports, with the oldest version that it was run with.
PACKAGES = {"torch": "2.11", "transformers": "5.0", "diffusers": "0.36", "peft": "0.17", "safetensors": "0.5"}
PACKAGES |= {"tokenizers": "0.22", "soundfile": "0.12", "av": "14.0", "torchaudio": "2.9", "accelerate": "1.0"}


class Step(NamedTuple):
    """A command.

    Attributes:
        words: after `python -m nextgpt.train.`; `{root}` stands for the root folder.
        needs: the steps whose results it reads.
        done: the file under the root that says it is done.
        minutes: of training on two cores, what a budget is shared out by; None where it takes no `--minutes` and no
            `--device`.
        rehearsal: further words that make it short.
    """

    words: str
    needs: tuple[str, ...]
    done: str
    minutes: float | None = None
    rehearsal: str = ""


def _part(module: str, part: str, needs: tuple[str, ...], more: str = "") -> Step:
    """A step that trains a part for some minutes and writes its log last."""
    words = f"nano.{module} --world {{root}}/world --out {{root}}/{part}{more}"
    return Step(words, needs, f"{part}/training_log.json", DEFAULTS[part].minutes, rehearsal="--concepts 8")


def _stage(name: str, model: str, needs: tuple[str, ...], data: str, command: str = "") -> Step:
    """A stage of the ordinary training commands, in the configuration of its name; `command` where that is another."""
    words = (
        f"{command or name} --config train/configs/nano/{name}.yaml model={{root}}/{model} output_dir={{root}}/{name}"
        f" features={{root}}/features data={data}"
    )
    few = "max_steps=2 per_device_train_batch_size=4 save_steps=2 logging_steps=1 sample_steps=1000"
    return Step(words, needs, f"{name}/trainer_state.json", rehearsal=few)


DATA = "{root}/data"
STEPS: dict[str, Step] = {
    "pictures": Step("nano.world.pictures --out {root}/world", (), "world/world.json"),
    "sounds": Step("nano.world.sounds --out {root}/world", (), "world/sounds.json", rehearsal="--fewer 10"),
    "picture_classifier": _part("evaluation.classifiers image", "picture_classifier", ("pictures",)),
    "sound_classifier": _part("evaluation.classifiers audio", "sound_classifier", ("pictures", "sounds")),
    "clip_classifier": _part("evaluation.classifiers video", "clip_classifier", ("pictures",)),
    "autoencoder": _part("models.autoencoder image", "autoencoder", ("pictures",)),
    "sound_autoencoder": _part("models.autoencoder audio", "sound_autoencoder", ("pictures", "sounds")),
    "text_encoder": _part("models.text_encoders image", "text_encoder", ("pictures",)),
    "sound_text_encoder": _part("models.text_encoders audio", "sound_text_encoder", ("pictures", "sounds")),
    "clip_text_encoder": _part("models.text_encoders video", "clip_text_encoder", ("pictures",)),
    "image_decoder": _part("models.decoder image", "image_decoder", ("autoencoder", "text_encoder"), " --root {root}"),
    "image_refinement": _part("models.refinement image", "image_decoder/vae", ("image_decoder",), " --root {root}"),
    "sound_decoder": _part(
        "models.decoder audio", "sound_decoder", ("sound_autoencoder", "sound_text_encoder"), " --root {root}"
    ),
    "sound_refinement": _part("models.refinement audio", "sound_decoder/vae", ("sound_decoder",), " --root {root}"),
    "clip_decoder": _part("models.decoder video", "clip_decoder", ("autoencoder", "clip_text_encoder"), " --root {root}"),
    "encoder": _part("models.encoder", "encoder", ("pictures",)),
    "audio_encoder": _part("models.audio_encoder", "audio_encoder", ("pictures", "sounds")),
    "dialogues": Step(
        "nano.dialogues.composer --world {root}/world --out {root}/data --files --workers 2",
        ("pictures", "sounds"),
        "data/instruct_dev.jsonl",
        rehearsal="--count 200",
    ),
    "language_model": Step(
        "nano.models.language_model --world {root}/world --data {root}/data --out {root}/language_model",
        ("dialogues",),
        "language_model/training_log.json",
        DEFAULTS["language_model"].minutes,
        rehearsal="--measure 20",
    ),
    "frozen": Step(
        "nano.assemble frozen --root {root}",
        (
            *("picture_classifier", "sound_classifier", "clip_classifier", "image_refinement", "sound_refinement"),
            *("clip_decoder", "encoder", "audio_encoder", "language_model"),
        ),
        "model/config.json",
    ),
    "initial": Step("nano.models.initial --root {root}", ("frozen",), "initial/model.safetensors"),
    "align_encoders": _stage("align_encoders", "initial", ("initial",), f"[{DATA}/align_encoders.jsonl]"),
    "align_decoders": _stage("align_decoders", "align_encoders", ("align_encoders",), f"[{DATA}/align_decoders.jsonl]"),
    "instruct": _stage(
        "instruct",
        "align_decoders",
        ("align_decoders",),
        f"[{DATA}/instruct.jsonl,{DATA}/align_decoders.jsonl,{DATA}/align_encoders.jsonl]",
    ),
    "output_projections": _stage(
        "output_projections",
        "instruct",
        ("instruct",),
        f"[{DATA}/instruct.jsonl,{DATA}/align_decoders.jsonl]",
        command="instruct",
    ),
    "trained": Step("nano.assemble trained --root {root}", ("output_projections",), "preset/model.safetensors"),
}

GOAL = "trained"


class MakeError(Exception):
    """What stands in the way, in one line."""


def is_done(step: str, root: Path) -> bool:
    """Whether a step's result is there."""
    return (root / STEPS[step].done).exists()


def take_final_parts(root: Path) -> None:
    """Copies the parts that are final to where they would be made."""
    for part in sorted(PARTS.iterdir() if PARTS.is_dir() else ()):
        if not (root / part.name).exists():
            shutil.copytree(part, root / part.name)
            logger.info("%s is final: taken from %s", part.name, PARTS)


def missing_packages() -> list[str]:
    """Packages that are not here or too old, each with what was found."""
    found = []
    for name, least in PACKAGES.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} (missing, needs {least})")
            continue
        if Version(version).release[:2] < Version(least).release[:2]:
            found.append(f"{name} ({version}, needs {least})")
    return found


def order(steps: list[str], root: Path) -> list[str]:
    """The steps in an order in which each comes after what it needs.

    Raises:
        MakeError: there is no such step, or something that a step needs is neither there nor asked for.
    """
    if unknown := [step for step in steps if step not in STEPS]:
        raise MakeError(f"--steps names {unknown[0]!r}; the steps are {', '.join(STEPS)}")
    wanted = [step for step in STEPS if step in steps]
    for step in wanted:
        if absent := [need for need in STEPS[step].needs if need not in wanted and not is_done(need, root)]:
            raise MakeError(f"{step} needs {absent[0]}, which is not in {root}: run it first, or name it in --steps too")
    return wanted


def lacking(goal: str, root: Path) -> set[str]:
    """The steps on the way to a goal that are not done; what a finished step was made of is not missed."""
    if is_done(goal, root):
        return set()
    return {goal}.union(*(lacking(need, root) for need in STEPS[goal].needs))


def share_out(steps: list[str], minutes: float, together: bool) -> dict[str, float]:
    """Minutes of training for each step that trains, so that all take so many together.

    Args:
        together: whether steps run side by side: then the longest path through the graph counts, else their sum.

    Raises:
        MakeError: it is too little.
    """
    weights = {step: STEPS[step].minutes for step in steps if STEPS[step].minutes is not None}
    longest: dict[str, tuple[float, int]] = {}
    for step in steps:
        before = [longest[need] for need in STEPS[step].needs if need in longest]
        weight, count = max(before, default=(0.0, 0))
        longest[step] = (weight + weights.get(step, 0.0), count + (step in weights))
    weight, count = max(longest.values(), default=(0.0, 0)) if together else (sum(weights.values()), len(weights))
    if not weights:
        return {}
    left = minutes - OVERHEAD * count
    if left <= 0:
        raise MakeError(
            f"--minutes {minutes:g} is too little for {count} steps that train: give at least {OVERHEAD * count + 1:g}"
        )
    return {step: round(left * own / weight, 3) for step, own in weights.items()}


def command(step: str, root: Path, device: str, minutes: float | None, rehearse: bool = False) -> list[str]:
    """The command line of a step."""
    found = STEPS[step]
    module, *words = [word.format(root=root) for word in found.words.split()]
    if found.minutes is not None and minutes is not None:
        words += ["--minutes", f"{minutes:g}"]
    if found.minutes is not None and device != "auto":
        words += ["--device", device]
    if rehearse:
        words += found.rehearsal.split()
    return [sys.executable, "-m", f"nextgpt.train.{module}", *words]


class Runner:
    """Runs steps as what they need is there.

    Args:
        root: where everything lies.
        commands: step → its command line.
        jobs: how many run side by side.
    """

    def __init__(self, root: Path, commands: dict[str, list[str]], jobs: int):
        self.root, self.commands, self.jobs = root, commands, jobs
        self.running: dict[str, tuple[subprocess.Popen, float]] = {}
        (root / LOGS).mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Runs all of them. Raises MakeError where a step fails; the others are ended first."""
        left = list(self.commands)
        try:
            while left or self.running:
                for step in [s for s in left if self._is_ready(s, left)][: self.jobs - len(self.running)]:
                    left.remove(step)
                    self._start(step)
                time.sleep(POLL_SECONDS)
                for step, (process, started) in list(self.running.items()):
                    if process.poll() is not None:
                        del self.running[step]
                        self._ended(step, process.returncode, time.monotonic() - started)
        finally:
            self._stop()

    def _is_ready(self, step: str, left: list[str]) -> bool:
        return not any(need in left or need in self.running for need in STEPS[step].needs)

    def _start(self, step: str) -> None:
        logger.info("%s: %s", step, " ".join(self.commands[step][1:]))
        with (self.root / LOGS / f"{step}.log").open("ab") as log:
            process = subprocess.Popen(self.commands[step], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self.running[step] = (process, time.monotonic())

    def _ended(self, step: str, code: int, seconds: float) -> None:
        file = self.root / LOGS / TIMES
        times = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        times[step] = round(times.get(step, 0) + seconds, 1)
        file.write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")
        logger.info("%s took %.0f s", step, seconds)
        log = self.root / LOGS / f"{step}.log"
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise MakeError(f"{step} failed with exit code {code}: {lines[-1] if lines else 'it said nothing'} (see {log})")
        if not is_done(step, self.root):
            raise MakeError(f"{step} ended without {self.root / STEPS[step].done} (see {log})")

    def _stop(self) -> None:
        """Asks what still runs to end, as Ctrl-C does; checkpoints stay."""
        for process, _ in self.running.values():
            process.send_signal(signal.SIGINT)
        for process, _ in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        self.running.clear()


def report(root: Path) -> str:
    """Where the time went, as a Markdown table."""
    file = root / LOGS / TIMES
    if not file.is_file():
        raise MakeError(f"{root} holds no {LOGS}/{TIMES}: nothing was made there yet")
    times = json.loads(file.read_text(encoding="utf-8"))
    rows = [
        f"| {step} | {times[step] / 60:.1f} | {'done' if is_done(step, root) else 'begun'} |"
        for step in STEPS
        if step in times
    ]
    rows.append(f"| all | {sum(times.values()) / 60:.1f} | {sum(is_done(step, root) for step in STEPS)} of {len(STEPS)} |")
    return "\n".join(["| step | minutes | |", "|---|---|---|", *rows])


def run(args: argparse.Namespace) -> None:
    """Runs what is left of the steps that are asked for."""
    if packages := missing_packages():
        raise MakeError(f"missing or too old: {', '.join(packages)}")
    import torch  # not above: it may be what is missing

    root = args.root or (Path("runs/rehearsal") if args.rehearse else ROOT)
    if not args.rehearse and not args.show:
        take_final_parts(root)
    asked = args.steps.split(",") if args.steps else list(STEPS) if args.again else list(lacking(GOAL, root))
    steps = [step for step in order(asked, root) if args.again or not is_done(step, root)]
    accelerated = args.device not in ("auto", "cpu") or (args.device == "auto" and torch.accelerator.is_available())
    jobs = args.jobs or (8 if accelerated else 1)
    minutes = dict.fromkeys(steps, 0.05) if args.rehearse else {}
    if args.minutes is not None:
        minutes = share_out(steps, args.minutes, together=jobs > 1)
    commands = {step: command(step, root, args.device, minutes.get(step), args.rehearse) for step in steps}
    logger.info("%d steps are left, %d at a time", len(steps), jobs)
    if args.show:
        for line in commands.values():
            print(" ".join(line[1:]))
        return
    Runner(root, commands, jobs).run()
    logger.info("made in %s", root)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", choices=("run", "report"), default="run")
    parser.add_argument("--root", type=Path, help=f"folder of everything (default: {ROOT})")
    parser.add_argument("--steps", help="separated by commas (default: all that are left)")
    parser.add_argument("--minutes", type=float, help="for all that is left, shared out (default: what two cores need)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, help="steps side by side (default: 8 on an accelerator, 1 on a processor)")
    parser.add_argument("--again", action="store_true", help="run finished steps too")
    parser.add_argument("--rehearse", action="store_true", help="the whole graph with seconds a step")
    parser.add_argument("--show", action="store_true", help="print the commands instead of running them")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        if args.what == "report":
            print(report(args.root or ROOT))
        else:
            run(args)
    except MakeError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped. Started again, it goes on.")


if __name__ == "__main__":
    main()
