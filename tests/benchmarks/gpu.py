"""What this machine's accelerator makes of the project, in under five minutes: `python tests/benchmarks/gpu.py`.

nano answers in all four kinds and must equal the processor: in fp32 without TF32 the text exactly, media within a stated
tolerance (the noise is drawn on the processor everywhere). Then twenty steps of each of its stages. Then a `7b` of the real
sizes with random weights, made on the device: it answers in all kinds by `require`, whole on the card, half of its LLM
offloaded, and in 4 bits, and makes three steps of its third stage. Prints a table; what could not be done stands there with
the reason. `--rehearse` goes the same way on a processor in a minute, with a tiny model in the place of `7b`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from benchmarks.random_parts import save_random_model  # noqa: E402
from nextgpt import NextGPTConfig, NextGPTPipeline  # noqa: E402
from nextgpt.__main__ import main as run_command  # noqa: E402
from nextgpt.errors import first_line  # noqa: E402
from nextgpt.hardware import peak_memory  # noqa: E402
from nextgpt.hub.parts import preset_folder  # noqa: E402
from tiny_models import save_tiny_any_to_any  # noqa: E402

BELL = TESTS.parent / "demo" / "examples" / "bell.png"
QUESTIONS = {
    "text": [{"type": "image", "path": str(BELL)}, {"type": "text", "text": "What is this?"}],
    "image": "Draw a red car.",
    "audio": "Play a trumpet.",
    "video": "Film a bird.",
}
TOLERANCE = 2 / 255  # of pixels (0 to 1) and of samples (-1 to 1), on average over a medium
STEPS = {"image": 20, "audio": 20, "video": 10}  # of the 7b's decoders
QUICK = {"image": 2, "audio": 2, "video": 2}  # in a rehearsal
NEW_TOKENS = 64


class Table:
    """Rows of what was measured, printed as they come; what fails becomes a row with its reason.

    Args:
        device: to measure memory on.
        seconds: after which nothing more is begun.
    """

    def __init__(self, device: torch.device, seconds: float):
        self.device, self.until = device, time.monotonic() + seconds
        self.wrong: list[str] = []

    def row(self, name: str, measure: Callable[[], str]) -> None:
        """Measures and prints `name`, what it gave, seconds, and the peak of memory."""
        if time.monotonic() > self.until:
            self._print(name, "not done: no time was left (--minutes)")
            return
        on_card = self.device.type != "cpu"
        if on_card:
            torch.accelerator.empty_cache()
            torch.accelerator.reset_peak_memory_stats()
        began = time.monotonic()
        try:
            result = measure()
        except AssertionError as error:
            result = f"WRONG: {error}"
            self.wrong.append(name)
        except Exception as error:
            result = f"not done: {type(error).__name__}: {first_line(error)}"
        memory = torch.accelerator.max_memory_allocated() if on_card else peak_memory()
        self._print(name, result, f"{time.monotonic() - began:.1f} s, {memory / 1e9:.2f} GB")

    def _print(self, name: str, result: str, cost: str = "") -> None:
        print(f"| {name} | {result} | {cost} |", flush=True)


# ---------------------------------------------------------------------- nano


def same_as_processor(kind: str, pipes: list[NextGPTPipeline], options: dict) -> str:
    """One question of `kind`, on both."""
    messages = [{"role": "user", "content": QUESTIONS[kind]}]
    for pipe in pipes:  # loads the decoder
        pipe(messages, seed=0, **options)
    here, there = (pipe(messages, seed=0, **options) for pipe in pipes)
    assert here.token_ids == there.token_ids, f"{here.text!r} instead of {there.text!r}"
    if kind == "text":
        return f"the same words: {here.text!r}"
    [made], [expected] = (reply.media(kind) for reply in (here, there))
    distance = float(np.abs(as_numbers(made) - as_numbers(expected)).mean())
    assert distance <= TOLERANCE, f"{distance:.4f} apart, at most {TOLERANCE:.4f} are right"
    seconds = dict(here.timings.media)[kind]
    return f"{distance:.5f} apart, {seconds:.2f} s (processor {dict(there.timings.media)[kind]:.2f})"


def as_numbers(medium) -> np.ndarray:
    """Pixels from 0 to 1, or samples from -1 to 1."""
    if hasattr(medium, "frames"):
        return medium.frames / 255
    if hasattr(medium, "array"):
        return medium.array
    return np.asarray(medium) / 255


def train(stage: str, config: str, run: Path, **settings: object) -> str:
    """Runs a stage as a user does, with the features beside the run; how fast it was."""
    settings |= {"output_dir": run, "features": run.parent / f"features of {config}", "on_bad_item": "skip"}
    settings |= {"logging_steps": 1, "save_strategy": "no", "sample_steps": 0, "report_to": "none"}
    run_quietly("train", stage, "--config", config, *(f"{name}={value}" for name, value in settings.items()))
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    first, *_, last = [entry for entry in history if "loss" in entry]
    assert np.isfinite(last["loss"]), f"loss {last['loss']}"
    return f"loss {first['loss']:.3f} to {last['loss']:.3f}, {last['samples_per_second']:.1f} samples/s"


def run_quietly(*words: str) -> None:
    """A command of `nextgpt`; what it says is told where it fails."""
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = run_command(list(words))
    if code:
        raise RuntimeError(said.getvalue().strip().splitlines()[-1])


# ---------------------------------------------------------------------- 7b


def text_speed(pipe: NextGPTPipeline) -> str:
    """Tokens a second of words alone, the longest answer that it gives."""
    messages = [{"role": "user", "content": "Tell me a story."}]
    for _ in range(2):  # the first one warms up
        timings = pipe(messages, max_new_tokens=NEW_TOKENS, require={}, do_sample=True, seed=0).timings
    return f"{timings.tokens_per_second:.1f} tokens/s ({timings.new_tokens} tokens)"


def medium_speed(pipe: NextGPTPipeline, kind: str, steps: dict[str, int]) -> str:
    """Seconds of one medium, required of weights that know nothing."""
    reply = pipe(
        [{"role": "user", "content": "Hello"}], require={kind: 1}, seed=0, **{kind: {"num_inference_steps": steps[kind]}}
    )
    assert len(reply.media(kind)) == 1, "it is not in the answer"
    assert np.isfinite(as_numbers(reply.media(kind)[0])).all(), "it holds numbers that are none"
    return f"{dict(reply.timings.media)[kind]:.2f} s in {steps[kind]} steps"


def half_on_card(pipe_config, device: torch.device) -> dict[str, str]:
    """A device map with the second half of the LLM's layers in main memory."""
    layers = pipe_config.text_config.num_hidden_layers
    ends = {name: str(device) for name in ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")}
    return ends | {f"model.layers.{i}": str(device) if i < (layers + 1) // 2 else "cpu" for i in range(layers)}


# ---------------------------------------------------------------------- the whole


def measure_nano(table: Table, folder: Path, quick: bool) -> None:
    """Answers and stages of the embedded model."""
    pipes: list[NextGPTPipeline] = []

    def load_both() -> str:
        for place in (table.device, torch.device("cpu")):
            pipes.append(NextGPTPipeline.from_pretrained("nano", device=place, dtype=torch.float32))
        return "loaded"

    table.row("nano: load, and on the processor", load_both)
    for kind in QUESTIONS:
        options = {kind: {"num_inference_steps": QUICK[kind]}} if quick and kind in QUICK else {}
        table.row(f"nano: {kind}", lambda kind=kind, options=options: same_as_processor(kind, pipes, options))
    data, steps = folder / "nano.jsonl", 2 if quick else 20

    def write_data() -> str:
        run_quietly("data", "nano", "-o", str(data), "--count", "60" if quick else "400")
        return "written"

    table.row("nano: conversations to learn from", write_data)
    for stage in ("encoders", "decoders", "instruct"):
        what = f"nano: {steps} steps of train {stage}"
        settings = {"model": "nano", "data": f"[{data}]", "max_steps": steps}
        table.row(what, lambda stage=stage, settings=settings: train(stage, "nano", folder / stage, **settings))


def measure_7b(table: Table, folder: Path, quick: bool) -> None:
    """A model of the real sizes, or a tiny one."""
    dtype = torch.float32 if table.device.type == "cpu" else torch.bfloat16
    name, tokenizer = "7b", preset_folder("nano")
    if quick:
        name = str(save_tiny_any_to_any(folder / "tiny"))
        tokenizer = folder / "tiny" / "language_model"
    made: list[Path] = []

    def make() -> str:
        made.append(save_random_model(name, tokenizer, folder / "random", table.device, dtype))
        size = sum(file.stat().st_size for file in (folder / "random").rglob("*") if file.is_file())
        return f"{size / 1e9:.1f} GB of random weights"

    table.row("7b: made", make)
    if not made:
        return
    [model] = made
    ways = {
        "whole": {},
        "half of the LLM offloaded": {"device_map": half_on_card(NextGPTConfig.from_pretrained(model), table.device)},
        "LLM in 4 bits": {"quantization": "4bit"},
    }
    steps = QUICK if quick else STEPS
    for way, options in ways.items():
        pipes: list[NextGPTPipeline] = []

        def begin(options=options, pipes=pipes) -> str:
            pipes.append(NextGPTPipeline.from_pretrained(model, device=table.device, **options))
            return "loaded"

        table.row(f"7b, {way}: load", begin)
        for pipe in pipes:
            table.row(f"7b, {way}: text", lambda pipe=pipe: text_speed(pipe))
            for kind in steps if way == "whole" else ("image",):
                table.row(f"7b, {way}: {kind}", lambda pipe=pipe, kind=kind: medium_speed(pipe, kind, steps))
            pipe.close()
    settings = {"model": model, "data": f"[{folder / 'nano.jsonl'}]", "max_steps": 3}
    settings |= {"gradient_accumulation_steps": 1, "dataloader_num_workers": 0}
    settings |= {"dtype": "float32", "bf16": "false"} if quick else {}
    table.row("7b: 3 steps of train instruct", lambda: train("instruct", "7b", folder / "trained", **settings))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rehearse", action="store_true", help="on the processor, a tiny model in the place of 7b")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="after which nothing more is begun (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="for 30 GB of random weights (default: a temporary one)")
    options = parser.parse_args()
    device = torch.device("cpu") if options.rehearse else torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        sys.exit("there is no accelerator here: --rehearse goes the same way on the processor")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name = (
        "the processor" if device.type == "cpu" else torch.cuda.get_device_name() if device.type == "cuda" else str(device)
    )
    print(f"torch {torch.__version__} on {name}\n\n| what | result | cost |\n|---|---|---|", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="nextgpt-gpu-", dir=options.folder))
    table = Table(device, options.minutes * 60)
    try:
        measure_nano(table, folder, options.rehearse)
        measure_7b(table, folder, options.rehearse)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if table.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
