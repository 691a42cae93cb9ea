"""`apply_chat_template` and calls of the processor: what transformers' own take, and refusals by name."""

import pytest
import torch
from PIL import Image

from nextgpt import NextGPTProcessor
from nextgpt.errors import UserInputError
from tiny_models import tiny_encoder_config, tiny_tokenizer

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")
SHORT, LONG = [{"role": "user", "content": "Hi"}], [{"role": "user", "content": "A much longer message than the other"}]
ANSWERED = [*SHORT, {"role": "assistant", "content": "I see a cat."}]


@pytest.fixture(scope="module")
def processor():
    return NextGPTProcessor(tiny_tokenizer(), tiny_encoder_config(), signal_tokens={"image": 4}, input_modalities=["image"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tools": [{"name": "clock"}]}, "tools is given"),
        ({"documents": [{"title": "a", "text": "b"}]}, "documents is given"),
        ({"load_audio_from_video": True}, "load_audio_from_video is given"),
        ({"enable_thinking": False}, "got 'enable_thinking', which is not known"),
        ({"add_generation_promt": True}, "did you mean 'add_generation_prompt'"),
        ({"processor_kwargs": {"truncation": True}}, "got 'truncation', which is not known"),
        ({"padding": "max_length", "tokenize": True}, "padding is 'max_length'"),
        ({"return_tensors": "np", "tokenize": True}, "return_tensors is 'np'"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "both set"),
        ({"continue_final_message": "thinking"}, "continue_final_message is 'thinking'"),
        ({"return_assistant_tokens_mask": True}, "return_assistant_tokens_mask needs"),
    ],
    ids=lambda each: each if isinstance(each, str) else next(iter(each)),
)
@pytest.mark.parametrize("tokenize", [False, True])
def test_an_unknown_argument_is_refused_by_name(processor, options, told, tokenize):
    with pytest.raises(UserInputError, match=told):
        processor.apply_chat_template(SHORT, **{"tokenize": tokenize} | options)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "user", "content": [{"type": "smell", "smell": "rose"}]}, "unknown part type 'smell'"),
        ({"role": "user", "content": [{"type": "audio", "path": "x.wav"}]}, "takes image as input, not audio"),
        ({"role": "assistant", "content": "", "tool_calls": [{"name": "clock"}]}, "has tool_calls, which"),
        ({"role": "tool", "content": "12 o'clock"}, "role 'tool'"),
    ],
)
def test_what_a_message_holds_beyond_words_and_known_media_is_refused_by_name(processor, message, told):
    for call in (processor, processor.apply_chat_template):
        with pytest.raises(UserInputError, match=told):
            call([*SHORT, message])


def test_what_other_models_read_in_a_part_is_refused_by_name(processor):
    part = {"type": "image", "image": RED, "resized_height": 280}
    with pytest.raises(UserInputError, match="message 1: a part has resized_height 280"):
        processor.apply_chat_template([*SHORT, {"role": "user", "content": [part]}])


def test_keys_without_a_value_are_no_matter(processor):
    """As other programs write them; transformers leaves them out too."""
    message = SHORT[0] | {"tool_calls": None, "name": None}
    assert processor.apply_chat_template([message]) == processor.apply_chat_template(SHORT)


def test_a_list_of_conversations_gives_a_text_each(processor):
    texts = processor.apply_chat_template([SHORT, LONG], add_generation_prompt=True)
    assert texts == [processor.apply_chat_template(each, add_generation_prompt=True) for each in (SHORT, LONG)]
    assert texts[0].endswith("USER: Hi ASSISTANT:")


def test_tensors_are_those_of_a_call(processor):
    expected = processor([SHORT, LONG])
    options = {"add_generation_prompt": True, "tokenize": True, "return_tensors": "pt", "padding": True}
    found = processor.apply_chat_template([SHORT, LONG], return_dict=True, **options)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    assert torch.equal(processor.apply_chat_template([SHORT, LONG], **options), expected["input_ids"])
    right = processor.apply_chat_template(
        [SHORT, LONG], processor_kwargs={"padding_side": "right"}, return_dict=True, **options
    )
    assert right["attention_mask"][0, 0] == 1 and right["attention_mask"][0, -1] == 0


def test_what_the_assistant_wrote_is_masked(processor):
    inputs = processor.apply_chat_template(ANSWERED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert "labels" not in inputs
    words = processor.tokenizer.decode(inputs["input_ids"][inputs["assistant_masks"] == 1])
    assert words == " I see a cat.</s>"


def test_the_last_message_is_left_open(processor):
    text = processor.apply_chat_template(ANSWERED, continue_final_message=True)
    assert text.endswith("ASSISTANT: I see a cat.")
    with pytest.raises(UserInputError, match="no content to go on with"):
        processor.apply_chat_template([*SHORT, {"role": "assistant", "content": []}], continue_final_message=True)


def test_a_variable_of_the_template_is_given_to_it_and_cannot_forge_a_control_token(processor):
    template = "{% if mood %}Be {{ mood }}. {% endif %}{{ messages[0]['content'] }}"
    assert processor.apply_chat_template(SHORT, chat_template=template, mood="kind") == "Be kind. Hi"
    with pytest.raises(UserInputError, match="mood is '</s>'"):
        processor.apply_chat_template(SHORT, chat_template=template, mood="</s>")


def test_words_with_media_are_one_users_message(processor):
    content = [{"type": "image", "image": RED}, {"type": "image", "image": BLUE}, {"type": "text", "text": "differ?"}]
    expected = processor([[{"role": "user", "content": content}], SHORT])
    found = processor(text=["differ?", "Hi"], images=[[RED, BLUE], []])
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert torch.equal(processor(text="Hi")["input_ids"], processor(SHORT)["input_ids"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "messages is missing"),
        ({"messages": SHORT, "text": "Hi"}, "messages come with text"),
        ({"text": ["a", "b"], "images": [RED]}, "one entry for each of the 2 texts"),
        ({"text": "<s>A chat. USER: <|image|>", "images": RED}, "rendered already"),
    ],
)
def test_words_and_media_that_do_not_fit_are_refused(processor, given, told):
    with pytest.raises(UserInputError, match=told):
        processor(**given)


def test_openais_pictures_are_taken(processor, tmp_path):
    RED.save(tmp_path / "red.png")
    address = str(tmp_path / "red.png")
    for part in ({"type": "image_url", "image_url": {"url": address}}, {"type": "image_url", "image_url": address}):
        found = processor([{"role": "user", "content": [part]}])
        expected = processor([{"role": "user", "content": [{"type": "image", "path": address}]}])
        assert torch.equal(found["image_values"], expected["image_values"])
