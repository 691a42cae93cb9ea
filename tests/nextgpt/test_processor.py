"""Messages to tensors: templates, placeholders, labels, padding, and text that must stay text."""

import pytest
import torch
from PIL import Image

from nextgpt import NextGPTProcessor
from nextgpt.errors import UserInputError
from tiny_models import tiny_encoder_config, tiny_model, tiny_tokenizer

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.fixture(scope="module")
def processor():
    return NextGPTProcessor(
        tiny_tokenizer(), tiny_encoder_config(), signal_tokens={"image": 4, "audio": 2}, input_modalities=["image", "audio"]
    )


def user(*content):
    return {"role": "user", "content": list(content)}


def words(text):
    return {"type": "text", "text": text}


def picture(image=RED):
    return {"type": "image", "image": image}


def test_the_template_is_vicunas(processor):
    conversation = [user(words("Hi.")), {"role": "assistant", "content": "Hello!"}, user(words("Bye."))]
    expected = f"<s>{SYSTEM} USER: Hi. ASSISTANT: Hello!</s>USER: Bye. ASSISTANT:"
    assert processor.apply_chat_template(conversation, add_generation_prompt=True) == expected
    assert processor.tokenizer.decode(processor(conversation)["input_ids"][0]) == expected


def test_each_medium_has_one_placeholder_and_values_in_order(processor):
    first = [user(picture(RED), words("and"), picture(BLUE), words("differ?"))]
    second = [user(words("Only words."))]
    batch = processor([first, second])
    placeholder = processor.vocabulary.placeholders["image"]
    assert (batch["input_ids"] == placeholder).sum(1).tolist() == [2, 0]
    assert batch["image_values"].shape[0] == 2
    red, blue = batch["image_values"]
    assert red[0].mean() > red[2].mean() and blue[2].mean() > blue[0].mean()


def test_generation_pads_on_the_left(processor):
    batch = processor([[user(words("Hi"))], [user(words("A much longer message than the other one"))]])
    mask = batch["attention_mask"]
    assert mask[0, 0] == 0 and mask[0, -1] == 1 and mask[1].all()
    assert (batch["input_ids"][0][mask[0] == 0] == processor.tokenizer.pad_token_id).all()


def test_labels_cover_what_the_assistant_wrote_and_the_end_of_its_turn(processor):
    answer = {"role": "assistant", "content": [words("Here:"), {"type": "image"}, words(" and more.")]}
    conversation = [user(picture(), words("Again?")), answer, user(words("Thanks")), {"role": "assistant", "content": "Ok"}]
    batch = processor(conversation, add_generation_prompt=False, return_labels=True)
    labels, ids = batch["labels"][0], batch["input_ids"][0]
    learned = processor.tokenizer.decode(ids[labels != -100])
    assert learned == " Here:[IMG0][IMG1][IMG2][IMG3] and more.</s> Ok</s>"
    assert torch.equal(labels[labels != -100], ids[labels != -100])


def control_strings():
    processor = NextGPTProcessor(tiny_tokenizer(), tiny_encoder_config(), signal_tokens={"image": 4, "audio": 2})
    return sorted(token.content for token in processor.tokenizer.added_tokens_decoder.values())


@pytest.mark.parametrize("control", [*control_strings(), "\ue0000\ue001", "[IMG0][IMG1][IMG2][IMG3]"])
@pytest.mark.parametrize("forged", [False, True], ids=["user", "assistant history"])
def test_text_never_becomes_a_control_token(processor, control, forged):
    text = f"a {control} b{control}"
    conversation = [user(words("Hi"))] + [{"role": "assistant", "content": text}, user(words("Go on"))] * forged
    plain = [user(words("Hi"))] + [{"role": "assistant", "content": "a b"}, user(words("Go on"))] * forged
    if not forged:
        conversation, plain = [user(words(text))], [user(words("a b"))]
    controls = torch.tensor(sorted(processor.tokenizer.added_tokens_decoder))

    def found(messages):
        ids = processor(messages)["input_ids"][0]
        return ids[torch.isin(ids, controls)].tolist()

    assert found(conversation) == found(plain)
    assert text in processor.tokenizer.decode(processor(conversation)["input_ids"][0], skip_special_tokens=False)


@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_of_the_language_model_are_text_in_a_message_too(special):
    from transformers import AddedToken

    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>", special=special), AddedToken("\n\n", special=False)])
    processor = NextGPTProcessor(tokenizer, tiny_encoder_config(), signal_tokens={"image": 4})
    ids = processor([user(words("a <think> b\n\nc"))])["input_ids"][0].tolist()
    assert tokenizer.convert_tokens_to_ids("<think>") not in ids
    assert "a <think> b\n\nc" in tokenizer.decode(ids)


def test_a_system_message_comes_first_or_not_at_all(processor):
    system = {"role": "system", "content": "Be brief."}
    assert "<s>Be brief. USER: Hi" in processor.apply_chat_template([system, user(words("Hi"))])
    with pytest.raises(UserInputError, match="a system message can only come first"):
        processor([user(words("Hi")), system, user(words("Go on"))])


def test_decoding_gives_parts_in_order(processor):
    runs, ids = processor.vocabulary.runs, processor.tokenizer
    tokens = [
        *ids(" Look:", add_special_tokens=False)["input_ids"],
        *runs["image"],
        *ids(" and hear", add_special_tokens=False)["input_ids"],
        *runs["audio"],
        ids.eos_token_id,
    ]
    parts = processor.decode_parts(tokens)
    assert [part["type"] for part in parts] == ["text", "image", "text", "audio"]
    assert [part["text"] for part in parts if "text" in part] == ["Look:", " and hear"]


def test_an_answer_reads_back_as_it_was_emitted(processor):
    """So that the cache of a session stays valid."""
    tokens = processor.tokenizer(" Here it is.", add_special_tokens=False)["input_ids"]
    tokens += [*processor.vocabulary.runs["image"], *processor.tokenizer(" Nice?", add_special_tokens=False)["input_ids"]]
    prompt = [user(words("Draw!"))]
    answer = {"role": "assistant", "content": processor.decode_parts(tokens)}
    before = processor(prompt)["input_ids"][0].tolist()
    after = processor([*prompt, answer, user(words("More"))])["input_ids"][0].tolist()
    assert after[: len(before) + len(tokens)] == before + tokens


def test_saved_processor_gives_the_same_tensors(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = NextGPTProcessor.from_pretrained(tmp_path)
    conversation = [
        user(picture(), words("[IMG0] What?")),
        {"role": "assistant", "content": [{"type": "image"}]},
        user(words("?")),
    ]
    first, second = processor(conversation), again(conversation)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_model_without_audio_input_says_so(tmp_path):
    _, processor = tiny_model(tmp_path, input_modalities=["image"])
    with pytest.raises(UserInputError, match="takes image as input, not audio"):
        processor([user({"type": "audio", "path": "x.wav"})])
