"""A person's pictures with captions of their own, made here, and the README's commands that train on them."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

README = Path(__file__).resolve().parents[1] / "README.md"
OWN_FILE, RUN = "data/own.jsonl", "runs/own"  # what the README calls them
CAPTIONS = (
    "the red barn behind my uncle's house",
    "grandmother's kitchen on a Sunday morning",
    "our first day at the sea, cold and windy",
    "the old bridge before it was painted",
    "Tom asleep under the kitchen table",
    "two boats waiting for the tide",
    "the garden wall that fell in the storm",
    "a market stall with far too many oranges",
    "snow on the road to the village",
    "my bicycle, stolen a week later",
    "the view from room number nine",
    "a birthday cake nobody could cut",
    "the school choir just before they sang",
    "fog over the harbour at six",
    "the last picture of the old cinema",
    "Anna painting the fence green",
    "a rainy window in a train to the north",
    "the neighbours' tent in our garden",
    "lights of the city from the hill",
    "what was left of the picnic",
)
QUESTIONS = ("What's the image really about?", "What can you see from the image?", "Give me a short summary of the image.")
WISHES = ("I want you to draw {}", "illustrate a vision of {}")


def make_own_pictures(folder: Path, count: int = len(CAPTIONS)) -> Path:
    """Writes `images/` and the two files in which the original NExT-GPT ships captions, comprehension and generation."""
    (folder / "images").mkdir(parents=True)
    seen, drawn = [], []
    for number, caption in enumerate(CAPTIONS[:count]):
        name = f"{number:03}.jpg"
        _picture(random.Random(number)).save(folder / "images" / name)
        question, wish = QUESTIONS[number % len(QUESTIONS)], WISHES[number % len(WISHES)].format(caption)
        seen.append({"input_image": name, "conversations": _turns(f"<image>\n{question}", caption)})
        made = {"output_image": name, "image_captions": caption}
        drawn.append(made | {"conversations": _turns(wish, "Sure thing! <image>")})
    for name, records in (("comprehension", seen), ("generation", drawn)):
        (folder / f"cc3m_{name}.json").write_text(json.dumps(records))
    return folder


def _turns(asked: str, answered: str) -> list[dict]:
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]


def _picture(rng: random.Random, width: int = 160, height: int = 120) -> Image.Image:
    """A sky over a ground, with a few shapes in front: nothing that the nano world holds."""
    sky, ground = ([rng.randrange(256) for _ in range(3)] for _ in range(2))
    rows = np.linspace(0, 1, height)[:, None, None] ** rng.uniform(0.3, 3)
    pixels = np.broadcast_to(np.array(sky) * (1 - rows) + np.array(ground) * rows, (height, width, 3))
    grain = np.random.default_rng(rng.randrange(2**32)).normal(0, 8, pixels.shape)
    picture = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(2, 6)):
        x, y, w, h = rng.randrange(width), rng.randrange(height), rng.randint(10, 80), rng.randint(10, 60)
        shape = rng.choice((draw.rectangle, draw.ellipse))
        shape((x - w // 2, y - h // 2, x + w // 2, y + h // 2), fill=tuple(rng.randrange(256) for _ in range(3)))
    return picture


def readme_commands(heading: str) -> list[list[str]]:
    """The words behind `nextgpt` of each command that stands under a heading of the README, comments left out."""
    text = README.read_text(encoding="utf-8")
    (section,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#)", text, re.M | re.S | re.I)
    code = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    ")).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in code.splitlines()]
    return [words[1:] for words in commands if words[:1] == ["nextgpt"]]
