"""A user's captioned media, and a teacher that does what it is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Three of a user's media, with captions. Only their names count here."""
    folder = tmp_path / "my"
    (folder / "images").mkdir(parents=True)
    (folder / "audios").mkdir()
    found = [("image", "a red barn in the snow"), ("image", "two boats on a lake"), ("audio", "a church bell rings twice")]
    records = []
    for number, (kind, caption) in enumerate(found):
        name = f"{number}.{'png' if kind == 'image' else 'wav'}"
        _write(kind, folder / f"{kind}s" / name, number)
        records.append({f"{kind}_name": name, "caption": caption})
    file = folder / "captions.json"
    file.write_text(json.dumps(records))
    return file


def _write(kind: str, file: Path, number: int) -> None:
    if kind == "image":
        from PIL import Image

        Image.new("RGB", (64, 64), (40 * number + 40, 90, 200)).save(file)
    else:
        import numpy as np
        import soundfile

        soundfile.write(file, 0.1 * np.sin(np.arange(16000) * 0.2), 16000)


WISH = {"user": "I would like a recording or a picture, please.", "assistant": "Here it is for you."}
TALK = {"exchanges": [{"user": "What do we have here?", "assistant": "Something quite ordinary."}]}


def dialogue(prompt: str, number: int) -> dict:
    """Three exchanges that no others are like; the user shows what the prompt offers."""
    word = [f"{letter}{number}" for letter in "abcdefghijkl"]
    shown = "[image: a red barn in the snow]" if "[image: a red barn in the snow]" in prompt else "Please."
    return {
        "exchanges": [
            {"user": f"{shown} Draw {word[0]} {word[1]}.", "assistant": f"{word[2]} {word[3]} [image: river {number}]"},
            {"user": f"Play {word[4]} {word[5]}.", "assistant": f"{word[6]} {word[7]} [audio: water {number}]"},
            {"user": f"Thanks {word[8]} {word[9]}.", "assistant": f"{word[10]} {word[11]}"},
        ]
    }


def tasks(prompt: str, number: int) -> dict:
    """Four new tasks that no others are like."""
    fields = "tea fog rust owls maps salt jazz ice".split()
    words = [f"{field}{number}" for field in fields]
    return {
        "tasks": [
            {"kind": "generation", "instruction": f"Tell about {words[0]} and {words[1]} briefly."},
            {"kind": "generation", "instruction": f"Draw {words[2]} beside {words[3]}."},
            {"kind": "classification", "instruction": f"Does {words[4]} mean {words[5]}, yes or no?"},
            {"kind": "generation", "instruction": f"Compare {words[6]} with {words[7]} in a table."},
        ]
    }


@pytest.fixture
def good(teacher):
    """A teacher that does what it is asked."""
    teacher.answers = {
        "Invent tasks for an assistant.": tasks,
        "Do a task.": lambda prompt, number: {"input": "", "output": f"It is number {number}."},
        "Make examples of a classification.": {
            "labels": ["yes", "no"],
            "examples": [{"label": "yes", "input": "It does."}, {"label": "no", "input": "It never will."}],
        },
        "Compare two tasks.": "Yes, it asks for more.",
        "Answer a task.": lambda prompt, number: f"First comes part {number}, then the rest of it.",
        "Write a conversation in words and media.": dialogue,
        "Write a wish for a medium.": WISH,
        "Write a conversation about a medium.": TALK,
        "Describe a medium.": TALK,
        "Think about a medium.": TALK,
        "*": lambda prompt, number: {"instruction": f"Explain step number {number} of {number + 3} in detail."},
    }
    return teacher
