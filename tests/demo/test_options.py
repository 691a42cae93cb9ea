"""The panel of options and the examples: both are read off the model."""

import json

import pytest

from nextgpt import NextGPTPipeline
from nextgpt.decoders import load_decoder
from nextgpt.demo.app import Chat
from nextgpt.demo.options import answer_options
from nextgpt.demo.welcome import EXAMPLES, read_examples
from nextgpt.errors import UserInputError
from nextgpt.media import load_media
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def picture_chat(tmp_path_factory):
    """A model that takes and gives text and pictures only."""
    folder = tmp_path_factory.mktemp("pictures")
    model, processor = tiny_model(folder, input_modalities=["image"])
    decoders = {"image": load_decoder("stable-diffusion", str(folder / "image_decoder"))}
    chat = Chat(NextGPTPipeline(model, processor, decoders))
    yield chat
    chat.close()


def values(panel, **given) -> list:
    """The panel's values as the page has them at first, but for those given by label."""
    return [given.get(component.label, component.value) for component in panel.components]


def test_untouched_options_leave_everything_to_the_model(picture_chat):
    panel = picture_chat.page.panel
    assert panel.options(*values(panel)) == {
        **{"output_modalities": ["text", "image"], "max_new_tokens": 256, "seed": None},
        "image": {},
    }


def test_options_become_the_pipelines(picture_chat):
    panel = picture_chat.page.panel
    given = values(panel, Temperature=0.7, Seed="12", Steps=" 5 ", Guidance="2.5", **{"Answer with text and": []})
    assert panel.options(*given) == {
        **{"output_modalities": ["text"], "max_new_tokens": 256, "seed": 12},
        **{"do_sample": True, "temperature": 0.7, "top_p": 1.0},
        "image": {"num_inference_steps": 5, "guidance_scale": 2.5},
    }


@pytest.mark.parametrize(
    ("label", "text", "told"),
    [
        ("Steps", "501", "Steps of the image is 501: expected more than 0, at most 500"),
        ("Width, pixels", "2049", "at most 2048"),
        *[("Guidance", text, "at most 75") for text in ("0", "-1", "nan", "inf")],
        ("Temperature", 1e9, "at most 2"),
    ],
)
def test_what_is_out_of_bounds_is_refused(picture_chat, label, text, told):
    panel = picture_chat.page.panel
    with pytest.raises(UserInputError, match=told):
        panel.options(*values(panel, **{label: text}))


def test_the_panel_tells_the_bounds(picture_chat):
    placeholders = {each.label: getattr(each, "placeholder", None) for each in picture_chat.page.panel.components}
    assert placeholders["Steps"] == "50, at most 500"
    assert placeholders["Width, pixels"] == "the model's own, at most 2048"


@pytest.mark.parametrize(("label", "text"), [("Seed", "lucky"), ("Steps", "2.5"), ("Guidance", "much")])
def test_what_is_no_number_is_refused_by_name(picture_chat, label, text):
    panel = picture_chat.page.panel
    with pytest.raises(UserInputError, match=f"{label} is '{text}'"):
        panel.options(*values(panel, **{label: text}))


def test_a_size_that_the_weights_do_not_know_is_neither_offered_nor_taken(tmp_path):
    model, processor = tiny_model(tmp_path, input_modalities=["image"])
    folder = tmp_path / "image_decoder"
    (folder / "generation_defaults.json").write_text('{"height": 16, "width": 16, "fixed": ["height", "width"]}')
    pipeline = NextGPTPipeline(model, processor, {"image": load_decoder("stable-diffusion", str(folder))})
    chat = Chat(pipeline)
    try:
        assert not {"Height, pixels", "Width, pixels"} & {each.label for each in chat.page.panel.components}
    finally:
        chat.close()
    with pytest.raises(UserInputError, match="Height, pixels of the image is 256: this model makes 16 only"):
        answer_options(pipeline, None, 0, 1, 9, None, {"image": {"height": 256}})
    with pytest.raises(UserInputError, match="height must be 16: these weights make no other"):
        pipeline([{"role": "user", "content": "hello"}], image={"height": 256})


def test_text_cannot_be_switched_off(picture_chat):
    panel = picture_chat.page.panel
    [kinds] = [each for each in panel.components if each.label == "Answer with text and"]
    assert [value for _, value in kinds.choices] == ["image"]


def test_only_what_the_model_knows_is_offered(picture_chat):
    directions = {example["label"].split(":")[0] for example in read_examples(EXAMPLES, picture_chat.pipeline)}
    assert directions == {"text → image", "image → text"}
    assert picture_chat.page.box.sources == ["upload"]


def test_every_direction_has_an_example_whose_media_can_be_read(pipeline):
    examples = read_examples(EXAMPLES, pipeline)
    assert {example["label"].split(":")[0] for example in examples} == {
        *("text → image", "image → text", "text → audio", "audio → text"),
        *("text → video", "video → text", "audio → image", "image → audio"),
    }
    assert len(examples) == len(json.loads((EXAMPLES / "examples.json").read_text()))
    for kind, path in [(example["label"].split()[0], path) for example in examples for path in example["files"]]:
        load_media(kind, path)
