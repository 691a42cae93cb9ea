"""The weights that ship: what they name and draw, and that nothing but the LLM's tokens decides it.

The pictures are held-out combinations of the nano world (fixtures/nano), which no part of the model has seen.
"""

from pathlib import Path

import pytest
from PIL import Image

from nextgpt import NextGPTPipeline
from nextgpt.parts import preset_folder, preset_names
from nextgpt.train.nano.judge import Judge
from nextgpt.train.nano.measure import described, drawn, zero

if "nano" not in preset_names():
    pytest.skip("the nano weights are not in this checkout: nextgpt.train.nano.make makes them", allow_module_level=True)

EXAMPLES = sorted((Path(__file__).parents[1] / "fixtures" / "nano").glob("*.png"))
CONCEPTS = [path.name.split(".")[0].replace("_", " ") for path in EXAMPLES]
FEW_STEPS = {"num_inference_steps": 12}
NAMED, DRAWN, CHANCE = 0.6, 0.6, 0.1  # measured figures stand in the README; chance is 1 of 120


@pytest.fixture
def pipe():
    return NextGPTPipeline.from_pretrained("nano")


@pytest.fixture(scope="module")
def judge():
    return Judge.from_pretrained(preset_folder("nano/judge"))


def share(expected, found):
    return sum(a == b.get("concept") for a, b in zip(expected, found, strict=True)) / len(expected)


def test_it_names_pictures_only_through_the_input_projection(pipe):
    pictures = [Image.open(path) for path in EXAMPLES]
    assert share(CONCEPTS, described(pipe, pictures)) >= NAMED
    zero(pipe.model.input_projection)
    assert share(CONCEPTS, described(pipe, pictures)) <= CHANCE


def test_it_draws_what_is_asked_only_through_the_output_projection(pipe, judge):
    requests = [f"Draw a {concept}." for concept in CONCEPTS[:24]]
    assert share(CONCEPTS[:24], drawn(pipe, judge, requests)) >= DRAWN
    zero(pipe.model.output_projections["image"])
    assert share(CONCEPTS[:24], drawn(pipe, judge, requests)) <= CHANCE


def test_a_second_turn_changes_the_background(pipe):
    messages = [{"role": "user", "content": "Draw a banana on a blue background."}]
    first = pipe(messages, seed=0, image=FEW_STEPS)
    messages += [first.message, {"role": "user", "content": "Now on a red background."}]
    second = pipe(messages, seed=0, image=FEW_STEPS)
    assert len(first.images) == len(second.images) == 1
    for reply, strongest in ((first, 2), (second, 0)):
        corner = reply.images[0].crop((0, 0, 6, 6)).resize((1, 1)).getpixel((0, 0))
        assert max(range(3), key=lambda channel: corner[channel]) == strongest, (reply.text, corner)


def test_the_text_encoder_sees_only_the_empty_prompt(pipe, monkeypatch):
    pipeline = pipe.decoders["image"].pipeline
    monkeypatch.setattr(pipeline.text_encoder, "forward", None)  # cached already: another call would fail
    assert pipe([{"role": "user", "content": "Draw a cat."}], image=FEW_STEPS).images
