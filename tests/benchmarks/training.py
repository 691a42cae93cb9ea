"""Samples per second and memory of the three stages, beside the plainest correct loop. Asserts nothing.

    python tests/benchmarks/training.py [--samples 512] [--batch 64] [--repeats 3] [--stages instruct]

A model of nano's size with random weights learns from random pictures of 64 pixels, one epoch in each run. The plain loop
reads, tokenizes, encodes and embeds everything anew in every step and sends all of it through the LLM in one pass:
forward, backward, step, with the same attention and the same fused optimizer. Every run is a process of its own; the
loops take turns, and the median of the repeats counts. `uncached` is a whole first epoch, which has to compute the
features before it starts; of the others the first half warms up. `cached` is every later epoch. `waiting` is the share
of a step in which the model waits for its batch, `outside` all that is not forward, backward or the optimizer's step.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from nextgpt.hardware import peak_memory, training_attention  # noqa: E402
from nextgpt.train import stages, start  # noqa: E402
from nextgpt.train.config import TrainingConfig  # noqa: E402
from nextgpt.train.trainer import StageTrainer  # noqa: E402

STAGES_WITH_A_GOAL, RATIO_GOAL, WAITING_GOAL = ("align_encoders", "align_decoders"), 3.0, 0.05
LOOPS = ("plain", "uncached", "cached")
WORDS = [f"{first}{second}" for first in ("bo", "ka", "li", "mu", "ne") for second in ("ra", "si", "to", "ve", "zu")]


# ---------------------------------------------------------------------- what is trained


def build(folder: Path, samples: int) -> None:
    """A model of nano's size and data for its stages, in `folder`."""
    from nextgpt.encoders import encoder_from_config
    from nextgpt.train.nano.assemble import new_config
    from nextgpt.train.nano.dialogues import corpus
    from nextgpt.train.nano.models import autoencoder, captions, decoder, encoder, language_model, text_encoders
    from tiny_text_encoders import tiny_clip_tokenizer

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, 8)) + f" {random.integers(1_000_000)}" for _ in range(20_000)]
    tokenizer = corpus.train_tokenizer(texts)
    language_model.new_model(tokenizer).save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")
    encoder_from_config(encoder.new_config()).save_pretrained(folder / "encoder")
    pictures = autoencoder.new_autoencoder(torch.rand(64, 3, 64, 64))
    clip = tiny_clip_tokenizer(captions.CONTEXT)
    denoiser = decoder.new_picture_denoiser(pictures.config.latent_channels)
    parts = (pictures, text_encoders.new_text_encoder(clip), clip, denoiser)
    decoder.save_pipeline("image", *parts, folder / "image_decoder")
    new_config(str(folder)).save_pretrained(folder / "model")

    (folder / "pictures").mkdir()
    lines: dict[str, list[dict]] = {stage: [] for stage in stages.STAGES}
    for number in range(samples):
        path = f"pictures/{number}.png"
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / path)
        caption = " ".join(random.choice(WORDS, 6))
        shown = [{"type": "image", "path": path}, {"type": "text", "text": "What is it?"}]
        looking = [{"role": "user", "content": shown}, {"role": "assistant", "content": caption}]
        drawn = [{"type": "text", "text": "Here it is:"}, {"type": "image", "caption": caption, "path": path}]
        drawing = [{"role": "user", "content": f"Draw {caption}."}, {"role": "assistant", "content": drawn}]
        for stage, messages in (
            ("align_encoders", looking),
            ("align_decoders", drawing),
            ("instruct", looking if number % 2 else drawing),
        ):
            lines[stage].append({"messages": messages})
    for stage, records in lines.items():
        (folder / f"{stage}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def steps_of(options: argparse.Namespace) -> int:
    """Of one epoch."""
    return options.samples // options.batch


def settings(folder: Path, stage: str, options: argparse.Namespace) -> TrainingConfig:
    """The same for both loops."""
    return TrainingConfig.from_dict(
        {
            "model": str(folder / "model"),
            "data": [str(folder / f"{stage}.jsonl")],
            "output_dir": str(folder / "runs" / stage),
            "features": str(folder / "features"),
            "learning_rate": 1e-3,
            "max_steps": steps_of(options),
            "per_device_train_batch_size": options.batch,
            "logging_steps": steps_of(options) // 2,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "sample_steps": 0,
            "resume": False,
        }
    )


# ---------------------------------------------------------------------- what is measured, in a process of its own


def measure_plain(folder: Path, stage: str, options: argparse.Namespace) -> dict[str, float]:
    """The plain loop: everything anew in every step."""
    from nextgpt.decoders import load_decoder

    config = settings(folder, stage, options)
    device = config.training_arguments().device
    model, processor = start.load_for_training(config)
    model.train_only(stages.STAGES[stage].trains)
    model.to(device).train()
    model._shared_columns = model._columns_without_gradient = lambda *columns: 0  # all in one pass, with a graph
    part = model.config.part("image")
    decoder = load_decoder(part.kind, model.config.location("image"), device=device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    lines = (folder / f"{stage}.jsonl").read_text().splitlines()
    order = np.random.default_rng(0).permutation(len(lines))
    for step in range(steps_of(options)):
        if step == steps_of(options) // 2:
            began = now()
        chosen = [json.loads(lines[index])["messages"] for index in order[step * options.batch :][: options.batch]]
        parts = [part for messages in chosen for message in messages for part in as_parts(message)]
        for each in parts:
            each["path"] = str(folder / each["path"])
        inputs = processor(chosen, add_generation_prompt=False, return_labels=True, padding_side="right").to(device)
        captions = [each["caption"] for each in parts if "caption" in each]
        targets = {"image": decoder.encode(captions)} if captions else None
        with training_attention(device):
            model(**inputs, conditioning_targets=targets).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {"samples_per_second": (steps_of(options) - steps_of(options) // 2) * options.batch / (now() - began)}


def now() -> float:
    """Seconds, when all that an accelerator was told to do is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def as_parts(message: dict) -> list[dict]:
    """The media of a message."""
    return [part for part in message["content"] if part["type"] != "text"] if isinstance(message["content"], list) else []


def measure_ours(folder: Path, stage: str, options: argparse.Namespace) -> dict[str, float]:
    """An epoch of the stage as a user starts it; its features are computed in it where they are not cached."""
    clock = {"features": 0.0, "epoch": 0.0, "model": 0.0}

    def timed(function, what):
        def run(*arguments, **keywords):
            began = now()
            result = function(*arguments, **keywords)
            clock[what] += now() - began
            return result

        return run

    stages.gather_features = timed(stages.gather_features, "features")
    stages._train = timed(stages._train, "epoch")
    StageTrainer.training_step = timed(StageTrainer.training_step, "model")  # forward and backward
    torch.optim.AdamW.step = timed(torch.optim.AdamW.step, "model")
    logs = []
    log = StageTrainer.log

    def kept_log(self, entry, *arguments, **keywords):
        log(self, entry, *arguments, **keywords)
        if "loss" in entry:
            logs.append(entry | {"model": clock["model"], "at": now()})

    StageTrainer.log = kept_log
    stages.run_stage(stage, settings(folder, stage, options))
    first, last = logs[-2:]
    return {
        "samples_per_second": last["samples_per_second"],
        "epoch": steps_of(options) * options.batch / (clock["features"] + clock["epoch"]),
        "waiting": last["input_share"],
        "outside": 1 - (last["model"] - first["model"]) / (last["at"] - first["at"]),
    }


# ---------------------------------------------------------------------- the table


def measured(folder: Path, stage: str, loop: str, options: argparse.Namespace) -> dict[str, float]:
    """Runs one measurement in a process of its own."""
    if loop == "uncached":
        shutil.rmtree(folder / "features", ignore_errors=True)
    numbers = [f"--{name}={getattr(options, name)}" for name in ("samples", "batch")]
    command = [sys.executable, __file__, *numbers, "--measure", loop, stage, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    figures = json.loads(done.stdout.splitlines()[-1])
    return figures | {"samples_per_second": figures["epoch"]} if loop == "uncached" else figures


def repeated(folder: Path, stage: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Loop → the median of each figure; the loops take turns."""
    runs = [{loop: measured(folder, stage, loop, options) for loop in LOOPS} for _ in range(options.repeats)]
    return {loop: {name: statistics.median(run[loop][name] for run in runs) for name in runs[0][loop]} for loop in LOOPS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stages", nargs="+", choices=tuple(stages.STAGES), default=tuple(stages.STAGES))
    parser.add_argument("--measure", nargs=3, metavar=("LOOP", "STAGE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        loop, stage, folder = options.measure
        logging.disable()
        figures = (measure_plain if loop == "plain" else measure_ours)(Path(folder), stage, options)
        on_device = torch.accelerator.is_available()
        memory = torch.accelerator.max_memory_allocated() if on_device else peak_memory()
        print(json.dumps(figures | {"memory": memory / 1e6}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, options.samples)
        print(f"{'':15}{'samples/s':^38}{'peak MB':^27}{'share of a step':^20}")
        heads = (*LOOPS, "× plain", *LOOPS, "waiting", "outside")
        print(f"{'stage':15}" + "".join(f"{head:>{9 if i < 7 else 10}}" for i, head in enumerate(heads)))
        for stage in options.stages:
            figures = repeated(folder, stage, options)
            speeds, memories = ([figures[loop][name] for loop in LOOPS] for name in ("samples_per_second", "memory"))
            ratio, cached = speeds[-1] / speeds[0], figures["cached"]
            print(
                f"{stage:15}{''.join(f'{each:9.1f}' for each in speeds)}{ratio:9.2f}"
                f"{''.join(f'{each:9.0f}' for each in memories)}{cached['waiting']:10.1%}{cached['outside']:10.1%}",
                flush=True,
            )
            if stage in STAGES_WITH_A_GOAL:
                verdict = "met" if ratio >= RATIO_GOAL and cached["waiting"] < WAITING_GOAL else "MISSED"
                print(f"{'':15}goal {verdict}: at least {RATIO_GOAL:g}×, waiting under {WAITING_GOAL:.0%}")


if __name__ == "__main__":
    main()
