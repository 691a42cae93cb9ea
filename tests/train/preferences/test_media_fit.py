"""Media fit by the encoder's own similarity: with reference media, with a text tower, and what lacks both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from nextgpt.errors import UserInputError
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.preferences.media_fit import MediaEmbedder
from nextgpt.train.preferences.rewards import load_reward
from tiny_encoders import tiny_imagebind
from tiny_models import tiny_config

COLOURS = ("red", "lime", "blue", "white", "black")


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> NextGPTProcessor:
    return NextGPTProcessor.from_config(tiny_config(tmp_path_factory.mktemp("parts")))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("pictures")
    for colour in COLOURS:
        Image.new("RGB", (16, 16), colour).save(folder / f"{colour}.png")
    return {colour: {"type": "image", "path": str(folder / f"{colour}.png")} for colour in COLOURS}


def embedder(processor: NextGPTProcessor, towers: list[str]) -> MediaEmbedder:
    encoder = tiny_imagebind(towers=towers)
    processor.preprocessor = encoder.preprocessor()
    return MediaEmbedder(encoder, processor)


def asks(text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def answers(*parts: dict) -> list[dict]:
    return [{"role": "assistant", "content": list(parts)}]


def test_the_picture_like_the_reference_fits_best_and_a_lacking_or_other_kind_least(processor, pictures) -> None:
    reward = load_reward("media_fit", embedder(processor, ["vision", "audio"]))
    made = [answers(pictures[colour]) for colour in COLOURS] + [answers({"type": "text", "text": "No."})]
    made.append(answers({"type": "audio", "path": "never read.wav"}))
    found = reward([asks("Draw red.")] * len(made), made, references=[[pictures["red"]]] * len(made))
    assert found[0] == pytest.approx(1.0, abs=1e-5) and found[0] > max(found[1:5]) and found[5] == found[6] == -1.0
    both = reward([asks("Draw.")], made[1:2], references=[[pictures["red"], pictures["lime"]]])
    assert found[1] < both[0] < 1.0, "the mean of several references is the target"


def test_media_in_memory_are_judged_like_the_same_in_a_file(processor, pictures) -> None:
    reward = load_reward("media_fit", embedder(processor, ["vision", "audio"]))
    in_memory = answers({"type": "image", "image": Image.new("RGB", (16, 16), "blue"), "seed": 3})
    found = reward([asks("Draw.")] * 2, [in_memory, answers(pictures["blue"])], references=[[pictures["red"]]] * 2)
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_without_references_a_text_tower_reads_what_was_asked_for(processor, pictures) -> None:
    judge = embedder(processor, ["vision", "audio", "text"])
    judge.texts = lambda texts: judge.media([pictures[text] for text in texts])  # a tower of words that knows these
    reward = load_reward("media_fit", judge)
    made = [answers(pictures["red"]), answers(pictures["blue"]), answers({"type": "text", "text": "No."})]
    assert reward([asks("red")] * 3, made)[0] == pytest.approx(1.0, abs=1e-5) and reward([asks("red")] * 3, made)[2] is None
    assert reward([asks("Draw!")] * 3, made, asked=["blue"] * 3)[1] == pytest.approx(1.0, abs=1e-5)
    found = reward([asks("Draw!")] * 3, made, asked=[{"image": "blue"}] * 3)
    assert found[1] == pytest.approx(1.0, abs=1e-5) and found[2] == -1.0, "a picture was asked for"


def test_words_are_embedded_by_the_text_tower_itself(processor) -> None:
    found = embedder(processor, ["vision", "audio", "text"]).texts(["a cat", "a dog on a red car"])
    assert found.shape == (2, 16) and torch.allclose(found.norm(dim=-1), torch.ones(2), atol=1e-5)


def test_what_cannot_be_judged_is_said(processor, pictures, tmp_path: Path) -> None:
    reward = load_reward("media_fit", embedder(processor, ["vision"]))
    with pytest.raises(UserInputError, match="no text tower.*column references"):
        reward([asks("red")], [answers(pictures["red"])])
    with pytest.raises(UserInputError, match="gone.png"):
        gone = {"type": "image", "path": str(tmp_path / "gone.png")}
        reward([asks("red")], [answers(gone)], references=[[pictures["red"]]])
    with pytest.raises(UserInputError, match="the encoder has no embedding of a sound; it takes image, video"):
        reward([asks("red")], [answers()], references=[[{"type": "audio", "path": "a.wav"}]])
    with pytest.raises(UserInputError, match="column references holds"):
        reward([asks("red")], [answers()], references=["red.png"])
    assert reward([asks("red")], [answers()], references=[None]) == [None]
