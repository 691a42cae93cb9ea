"""The weights that ship: what they name and draw, and that nothing but the LLM's tokens decides it.

All is asked with held-out combinations of the nano world, in phrasings that were written apart from those it learned from.
"""

import json

import pytest

from nextgpt import NextGPTPipeline
from nextgpt.parts import preset_names
from nextgpt.train.nano import evaluate

if "nano" not in preset_names():
    pytest.skip("the nano weights are not in this checkout: nextgpt.train.nano.make makes them", allow_module_level=True)

FEW_STEPS = {"num_inference_steps": 12}
MOST, CHANCE = 0.5, 0.15  # the measured figures stand in the README; chance is 1 of 120


@pytest.fixture(scope="module")
def bench():
    return evaluate.Bench(NextGPTPipeline.from_pretrained("nano"), count=24)


def share(scores, part="concept"):
    return next(score.share for score in scores if score.part == part)


def test_it_names_and_draws_what_it_has_never_seen(bench):
    assert share(evaluate.ROWS["image-to-text"](bench)) >= MOST
    assert share(evaluate.ROWS["text-to-image"](bench)) >= MOST


def test_with_a_projection_zeroed_its_row_falls_to_chance(bench):
    scores = evaluate.ablate(bench)
    assert {score.part for score in scores} >= {"concept"}
    assert all(score.share <= CHANCE for score in scores if score.part == "concept")


def test_a_second_turn_changes_the_background(bench):
    pipe = bench.pipeline
    messages = [{"role": "user", "content": "Draw a banana on a blue background."}]
    first = pipe(messages, seed=0, image=FEW_STEPS)
    messages += [first.message, {"role": "user", "content": "Now on a red background."}]
    second = pipe(messages, seed=0, image=FEW_STEPS)
    assert len(first.images) == len(second.images) == 1
    for reply, strongest in ((first, 2), (second, 0)):
        corner = reply.images[0].crop((0, 0, 6, 6)).resize((1, 1)).getpixel((0, 0))
        assert max(range(3), key=lambda channel: corner[channel]) == strongest, (reply.text, corner)


def test_the_text_encoder_sees_only_the_empty_prompt(bench, monkeypatch):
    pipeline = bench.pipeline.decoders["image"].pipeline
    monkeypatch.setattr(pipeline.text_encoder, "forward", None)  # cached already: another call would fail
    assert bench.pipeline([{"role": "user", "content": "Draw a cat."}], image=FEW_STEPS).images


def test_a_saved_adapter_names_its_base_as_the_configuration_does(bench, tmp_path):
    bench.pipeline.model.save_pretrained(tmp_path)
    adapter = json.loads((tmp_path / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["base_model_name_or_path"] == "preset:nano/language_model"
