"""A tiny random assistant that likes to call for media, and requests of all sorts, drawn at random."""

import queue
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from nextgpt import NextGPTPipeline
from nextgpt.decoders import load_decoder
from nextgpt.engine.messages import RowDone, Tokens
from nextgpt.engine.rows import Row
from nextgpt.engine.sampling import Sampler
from nextgpt.streaming import Latch
from tiny_decoders import save_tiny_audioldm, save_tiny_stable_diffusion, save_tiny_text_to_video
from tiny_models import tiny_model

KINDS = {
    "image": ("stable-diffusion", save_tiny_stable_diffusion),
    "audio": ("audioldm", save_tiny_audioldm),
    "video": ("text-to-video", save_tiny_text_to_video),
}
COLOURS = ["red", "blue", "green", "white"]
WORDS = "draw a banana and a dog on blue background then play trumpet what do you see I hi cat film bird".split()
REQUIRED = [None, None, None, {"image": 1}, {"audio": 1}, {"image": 1, "audio": 1}, {}]


class StopAfter:
    """Set from so many tokens of its row on."""

    def __init__(self, count: int):
        self.count, self.row = count, None

    def is_set(self) -> bool:
        return self.row is not None and len(self.row.answer.tokens) >= self.count


class Request:
    """One conversation with its options, drawn at random."""

    def __init__(self, pipeline, rng: random.Random):
        self.pipeline = pipeline
        pictures = [Image.new("RGB", (9, 9), rng.choice(COLOURS)) for _ in range(rng.choice([0, 0, 1, 2]))]
        content = [{"type": "image", "image": picture} for picture in pictures]
        content.append({"type": "text", "text": " ".join(rng.choices(WORDS, k=rng.randint(1, 25)))})
        self.messages = [{"role": "user", "content": content}]
        self.inputs = pipeline.processor(self.messages)
        self.require = rng.choice(REQUIRED)
        self.budget = rng.randint(1, 20) + (32 if self.require else 0)
        self.seed = rng.choice([None, rng.randrange(1000)])
        self.temperature, self.top_p = rng.choice([0.7, 1.0, 1.3]), rng.choice([0.9, 1.0])
        self.stop = StopAfter(rng.randint(1, 15)) if rng.random() < 0.2 else Latch()

    def alone(self):
        """What transformers gives, sampling from the global generator."""
        sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self.seed is not None:
            sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        options = {"max_new_tokens": self.budget, "require": self.require, **sampling}
        with torch.random.fork_rng():
            torch.manual_seed(self.seed or 0)
            return self.pipeline.model.generate_interleaved(**self.inputs, **options)

    def row(self) -> Row:
        model = self.pipeline.model
        [answer] = model.start_rows(1, self.budget, None, self.require)
        values = {name: tensor for name, tensor in self.inputs.items() if name.endswith("_values")}
        self.runs, self.inbox = [], queue.SimpleQueue()
        sampler = Sampler.create(model, self.seed, self.temperature, self.top_p) if self.seed is not None else None
        row = Row(
            answer,
            self.inputs["input_ids"][0].tolist(),
            model.encode_media(self.inputs["input_ids"], **values),
            self.stop,
            self.inbox,
            self.runs.append,
            sampler,
        )
        self.stop.row = row
        return row

    def wait(self) -> RowDone:
        """The last message of its row; the tokens that were told are those that it has."""
        told = []
        while not isinstance(message := self.inbox.get(timeout=120), RowDone):
            told += message.token_ids if isinstance(message, Tokens) else []
        assert told == self.stop.row.answer.tokens
        return message


@pytest.fixture(scope="package")
def make_pipeline() -> Callable:
    """Makes a pipeline of random weights whose signal tokens are likely."""

    def make(folder: Path, family: str = "llama", **changes) -> NextGPTPipeline:
        parts = {kind: {"kind": name, "source": str(save(folder / kind))} for kind, (name, save) in KINDS.items()}
        model, processor = tiny_model(folder, family, decoders=parts, **changes)
        torch.manual_seed(3)
        with torch.no_grad():
            model.signal_rows.output.normal_(std=0.05)
        decoders = {kind: load_decoder(part["kind"], part["source"]) for kind, part in parts.items()}
        return NextGPTPipeline(model, processor, decoders)

    return make


@pytest.fixture(scope="package")
def assistant(make_pipeline, tmp_path_factory) -> NextGPTPipeline:
    """Shared by all tests of the folder, which leave it as it was."""
    pipeline = make_pipeline(tmp_path_factory.mktemp("engine"))
    yield pipeline
    pipeline.close()


@pytest.fixture(scope="package")
def draw() -> Callable:
    """Draws so many requests."""

    def requests(pipeline: NextGPTPipeline, count: int, seed: int) -> list[Request]:
        rng = random.Random(seed)
        return [Request(pipeline, rng) for _ in range(count)]

    return requests


@pytest.fixture(scope="package")
def until() -> Callable:
    """Waits until something is so."""

    def wait(what: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait
