"""Measures the nano model on what no part of it has seen: held-out combinations, asked for in held-out words.

`nextgpt evaluate nano` prints the table of bars. An independent judge looks at what was drawn; it learned from true
pictures alone, and its own accuracy stands first. `ablate` zeroes each projection: then its row must fall to chance.
This module asks and counts; it learns nothing and tunes nothing.
"""

from __future__ import annotations

import json
import math
import random
import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from nextgpt import NextGPTPipeline
from nextgpt.events import Reply
from nextgpt.parts import preset_folder
from nextgpt.train.nano.dialogues import CAPTION, DATA, Composer, Drawn, Picture, Shown, Turn, load_composer
from nextgpt.train.nano.judge import UNKNOWN, Judge
from nextgpt.train.nano.phrasings import load_phrasings, normalise
from nextgpt.train.nano.world import World, render_art

BATCH = 40
PARTS = ("concept", "background", "style")
SAID = re.compile(r"an? (?P<size>\w+) (?P<concept>[^,.]+), (?P<style>\w+) style, (?P<background>\w+) background")
FIT_JUDGE = 0.97


@dataclass
class Score:
    """One figure of the table: how many of how many were right, or a quantity with its unit."""

    row: str
    part: str = ""
    right: int = 0
    count: int = 0
    bar: float | None = None
    quantity: float | None = None  # instead of right and count; then `bar` is the most it may be
    unit: str = ""

    @classmethod
    def from_json(cls, text: str) -> list[Score]:
        """What `as_json` wrote."""
        known = {each.name for each in fields(cls)}
        return [cls(**{name: value for name, value in row.items() if name in known}) for row in json.loads(text)]

    @property
    def share(self) -> float:
        return self.right / self.count if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% confidence interval of the share."""
        if not self.count:
            return 0.0, 1.0
        z, n, p = 1.96, self.count, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None where there is none."""
        if self.bar is None:
            return None
        return self.share >= self.bar if self.quantity is None else self.quantity <= self.bar


@dataclass
class Sample:
    """One question of the report: what was expected, what came, and the pictures of both."""

    row: str
    asked: str
    expected: dict[str, str]
    found: dict[str, str]
    answer: str = ""
    pictures: list[Image.Image] = field(default_factory=list)  # true beside made


class Bench:
    """What all rows share: the assistant, the judge, the world and its held-out composer.

    Args:
        pipeline: of a nano model.
        count: questions a row.
        split: `heldout` for the table, `dev` for tuning.
        seed: of the questions and of the pictures.
    """

    def __init__(self, pipeline: NextGPTPipeline, count: int = 200, split: str = "heldout", seed: int = 0):
        self.pipeline, self.count, self.split, self.seed = pipeline, count, split, seed
        self.world = World(preset_folder("nano/world"))
        self.judge = Judge.from_pretrained(preset_folder("nano/judge"))
        self.samples: list[Sample] = []

    @cached_property
    def composer(self) -> Composer:
        """Makes the questions: this split's combinations in the test phrasings."""
        return load_composer(self.world.folder, self.split, phrasings=DATA)

    def questions(self, kind: str) -> Iterator[tuple[random.Random, int]]:
        """A generator and a number for each question of a kind."""
        for number in range(self.count):
            yield random.Random(f"{self.seed}/{self.split}/{kind}/{number}"), number

    def ask(self, what: str, conversations: list[list[dict]], **options) -> list[Reply]:
        """The assistant's replies, by the batch."""
        replies = []
        for start in tqdm(range(0, len(conversations), BATCH), desc=what, disable=len(conversations) <= BATCH):
            replies += self.pipeline(conversations[start : start + BATCH], seed=self.seed, **options)
        return replies

    def look(self, pictures: list[Image.Image]) -> list[dict[str, str]]:
        """What the judge sees in pictures."""
        return [reading for start in range(0, len(pictures), 200) for reading in self._look(pictures[start : start + 200])]

    def _look(self, pictures: list[Image.Image]) -> list[dict[str, str]]:
        pixels = np.stack([np.asarray(picture.convert("RGB").resize((64, 64))) for picture in pictures])
        return self.judge.read(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)

    def render(self, picture: Picture) -> Image.Image:
        """The true picture of a combination."""
        return Image.fromarray(self.world.render(*picture))

    def content(self, turn: Turn) -> list[dict]:
        """The user's part of a turn as chat parts, pictures rendered."""
        parts = []
        for part in turn.user:
            if isinstance(part, Shown):
                image = self.render(part.picture) if part.picture else self.outside_picture(part.path)
                parts.append({"type": "image", "image": image})
            else:
                parts.append({"type": "text", "text": part})
        return parts

    @cached_property
    def outside_numbers(self) -> list[int]:
        """Artwork from outside the world, of this split."""
        return self.world.outside_numbers(self.split)

    def outside_picture(self, key: str) -> Image.Image:
        """A picture from outside the world; the same key gives the same one."""
        rng = random.Random(key)
        number = rng.choice(self.outside_numbers)
        return Image.fromarray(
            render_art(self.world.outside[number], rng.choice(self.world.backgrounds), rng.choice(self.world.sizes))
        )

    def score(self, row: str, samples: list[Sample], bars: dict[str, float | None]) -> list[Score]:
        """Counts what was found as expected, part by part, and keeps the samples for the report."""
        self.samples += samples
        return [
            Score(row, part, sum(s.expected[part] == s.found.get(part) for s in samples), len(samples), bar)
            for part, bar in bars.items()
        ]


def told(turn: Turn) -> str:
    """The user's words of a turn."""
    return " ".join(part for part in turn.user if isinstance(part, str))


def kinds(parts: list) -> str:
    """What an answer is made of: "text", "text + image" ..., each media piece counted."""
    found = Counter(part.get("type") for part in parts)
    return " + ".join(["text", *("image" for _ in range(found["image"]))])


def expected_parts(turn: Turn) -> list[dict]:
    """The assistant's part of a turn as chat parts; its pictures are its own signal tokens."""
    return [{"type": "image"} if isinstance(part, Drawn) else {"type": "text", "text": part} for part in turn.assistant]


# -- the rows -----------------------------------------------------------------------------------------------------


def judge_itself(bench: Bench) -> list[Score]:
    """The judge on true pictures, and on pictures from outside the world."""
    rows = bench.world.combinations(bench.split).tolist()
    rows = random.Random(bench.seed).sample(rows, min(len(rows), 4 * bench.count))
    names = (bench.world.names, bench.world.styles, bench.world.backgrounds, bench.world.sizes)
    pictures = [Picture(*(values[index] for values, index in zip(names, row, strict=True))) for row in rows]
    seen = bench.look([bench.render(picture) for picture in pictures])
    pairs = list(zip(pictures, seen, strict=True))
    scores = [
        Score("judge on true pictures", part, sum(getattr(p, part) == s[part] for p, s in pairs), len(pairs), FIT_JUDGE)
        for part in PARTS
    ]
    strange = bench.look([bench.outside_picture(str(number)) for number in range(bench.count)])
    return [*scores, Score("judge on true pictures", UNKNOWN, sum(s["concept"] == UNKNOWN for s in strange), bench.count)]


def kind_of_answer(bench: Bench) -> list[Score]:
    """Whether an answer to free phrasings holds what it should; beside it, what a bag of words would say."""
    conversations, wanted, last = [], [], []
    for rng, _ in bench.questions("kind"):
        turns = bench.composer.conversation(rng)
        messages = []
        for turn in turns:
            messages += [
                {"role": "user", "content": bench.content(turn)},
                {"role": "assistant", "content": expected_parts(turn)},
            ]
        conversations.append(messages[:-1])
        wanted.append(kinds(messages[-1]["content"]))
        last.append(turns[-1])
    replies = bench.ask("kind of answer", conversations, image={"num_inference_steps": 1})  # drawn, but not looked at
    samples = [
        Sample("kind of answer", told(turn), {"kind": want}, {"kind": kinds(reply.message["content"])}, reply.text)
        for turn, want, reply in zip(last, wanted, replies, strict=True)
    ]
    guesses = bag_of_words(load_phrasings())
    right = sum((guesses(told(turn)) == "image") == ("image" in want) for turn, want in zip(last, wanted, strict=True))
    baseline = Score("kind of answer", "a bag of words would get", right, len(last))
    return [*bench.score("kind of answer", samples, {"kind": 0.99}), baseline]


def bag_of_words(phrasings: dict) -> Callable[[str], str]:
    """A naive Bayes guess of the kind of answer, learned from the training phrasings."""
    drawing = {"draw", "multi", "again", "change_background", "change_style", "change_size", "change_concept"}
    words: dict[str, Counter] = defaultdict(Counter)
    for intent, some in phrasings.items():
        for phrasing in some:
            words["image" if intent in drawing else "text"].update(normalise(phrasing.text).split())
    known = set().union(*words.values())
    totals = {kind: sum(counts.values()) + len(known) for kind, counts in words.items()}

    def guess(text: str) -> str:
        found = [word for word in normalise(text).split() if word in known]
        chances = {
            kind: math.log(totals[kind]) + sum(math.log((words[kind][word] + 1) / totals[kind]) for word in found)
            for kind in words
        }
        return max(chances, key=chances.get)

    return guess


def text_to_image(bench: Bench) -> list[Score]:
    """Draws what is asked in free phrasings."""
    turns = [bench.composer.turn("draw", rng) for rng, _ in bench.questions("text to image")]
    replies = bench.ask("text to image", [[{"role": "user", "content": told(turn)}] for turn in turns])
    return bench.score(
        "text → image",
        [_drawn(bench, "text → image", turn, reply) for turn, reply in zip(turns, replies, strict=True)],
        {"concept": 0.95, "background": 0.97, "style": 0.90},
    )


def _drawn(bench: Bench, row: str, turn: Turn, reply: Reply) -> Sample:
    found = bench.look(reply.images[:1])[0] if reply.images else {}
    pictures = [bench.render(turn.picture), *reply.images[:1]]
    return Sample(row, told(turn), turn.picture._asdict(), found, reply.text, pictures)


def image_to_text(bench: Bench) -> list[Score]:
    """Describes held-out pictures."""
    turns = [bench.composer.turn("describe", rng) for rng, _ in bench.questions("image to text")]
    replies = bench.ask("image to text", [[{"role": "user", "content": bench.content(turn)}] for turn in turns])
    samples = []
    for turn, reply in zip(turns, replies, strict=True):
        match = SAID.search(reply.text)
        found = match.groupdict() if match else {}
        samples.append(
            Sample("image → text", told(turn), turn.picture._asdict(), found, reply.text, [bench.render(turn.picture)])
        )
    return bench.score("image → text", samples, {"concept": 0.95, "background": 0.97, "style": 0.90})


def second_turn(bench: Bench) -> list[Score]:
    """Draws, then changes one thing or two: the change carried out and the rest kept."""
    first, second = [], []
    for rng, _ in bench.questions("second turn"):
        first.append(bench.composer.turn("draw", rng))
        second.append(bench.composer.turn("change", rng, first[-1].picture))
    conversations = [
        [
            {"role": "user", "content": told(before)},
            {"role": "assistant", "content": expected_parts(before)},
            {"role": "user", "content": told(after)},
        ]
        for before, after in zip(first, second, strict=True)
    ]
    replies = bench.ask("second turn", conversations)
    samples = []
    for turn, reply in zip(second, replies, strict=True):
        sample = _drawn(bench, "second turn", turn, reply)
        everything = ("concept", "background", "style", "size")
        right = all(sample.expected[part] == sample.found.get(part) for part in everything)
        sample.expected["all"], sample.found["all"] = "right", "right" if right else "wrong"
        samples.append(sample)
    return bench.score("second turn", samples, {"all": 0.90})


def outside_the_world(bench: Bench) -> list[Score]:
    """Pictures, wishes and questions from outside the world: it says so."""
    asked = [
        bench.composer.turn(("outside_picture", "outside_draw", "outside_question")[number % 3], rng)
        for rng, number in bench.questions("outside")
    ]
    replies = bench.ask("outside the world", [[{"role": "user", "content": bench.content(turn)}] for turn in asked])
    samples = []
    for turn, reply in zip(asked, replies, strict=True):
        humble = not reply.images and not CAPTION.search(reply.text) and re.search(r"can't|don't know", reply.text)
        samples.append(
            Sample(turn.intent, told(turn), {"says so": "yes"}, {"says so": "yes" if humble else "no"}, reply.text)
        )
    return bench.score("outside the world", samples, {"says so": 0.95})


def speed(bench: Bench) -> list[Score]:
    """Seconds for one answer, warm, the median of nine."""
    wanted = {"text": ("What can you do?", 1.5), "picture": ("Draw a cat on a blue background.", 3.0)}
    scores = []
    for what, (request, bar) in wanted.items():
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            bench.pipeline([{"role": "user", "content": request}], seed=0)
            seconds.append(time.perf_counter() - start)
        scores.append(Score("time", what, bar=bar, quantity=statistics.median(seconds[1:]), unit="s"))
    return scores


ROWS: dict[str, Callable[[Bench], list[Score]]] = {
    "judge": judge_itself,
    "kind": kind_of_answer,
    "text-to-image": text_to_image,
    "image-to-text": image_to_text,
    "second-turn": second_turn,
    "outside": outside_the_world,
    "time": speed,
}


def zero(module: nn.Module) -> None:
    """Sets all parameters to zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


def ablate(bench: Bench) -> list[Score]:
    """Naming with the input projection zeroed, then drawing with the output projection zeroed: both fall to chance."""
    model = bench.pipeline.model
    scores = []
    for name, module, row in (
        ("input projection zeroed", model.input_projection, image_to_text),
        ("output projection zeroed", model.output_projections["image"], text_to_image),
    ):
        kept = {key: value.clone() for key, value in module.state_dict().items()}
        zero(module)
        scores += [Score(f"{score.row}, {name}", score.part, score.right, score.count) for score in row(bench)]
        module.load_state_dict(kept)
    return scores


def table(scores: list[Score]) -> str:
    """The scores as a Markdown table."""
    lines = ["| what | measured | 95% interval | bar | |", "|---|---|---|---|---|"]
    for score in scores:
        if score.quantity is None:
            low, high = score.interval
            measured = f"{100 * score.share:.1f}% ({score.right} of {score.count})"
            interval, bar = f"{100 * low:.1f} – {100 * high:.1f}%", f"{100 * score.bar:.0f}%" if score.bar else ""
        else:
            measured, interval, bar = f"{score.quantity:.2f} {score.unit}", "", f"{score.bar:g} {score.unit}"
        verdict = {None: "", True: "met", False: "missed"}[score.met]
        lines.append(f"| {': '.join(filter(None, (score.row, score.part)))} | {measured} | {interval} | {bar} | {verdict} |")
    return "\n".join(lines)


def as_json(scores: list[Score]) -> str:
    """The scores as one JSON list."""
    return json.dumps([vars(score) | {"share": score.share, "met": score.met} for score in scores], indent=1)
