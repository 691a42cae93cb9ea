"""The Auto classes and the names that transformers' multimodal models share."""

import json
import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor, TextStreamer

import nextgpt
from nextgpt import NextGPTForConditionalGeneration, NextGPTModel, NextGPTProcessor
from nextgpt.errors import UserInputError

nextgpt.register()

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")
CHAT = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "What is it?"}]}]


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForMultimodalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def test_model_processor_and_generate_work_as_transformers_documentation_shows(model, processor, capsys):
    assert type(model) is NextGPTForConditionalGeneration and type(processor) is NextGPTProcessor
    inputs = processor.apply_chat_template(
        CHAT, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device, dtype=model.dtype)
    length = inputs["input_ids"].shape[1]
    generated = model.generate(**inputs, max_new_tokens=8, streamer=TextStreamer(processor.tokenizer, skip_prompt=True))
    streamed = capsys.readouterr().out
    assert torch.equal(generated[:, :length], inputs["input_ids"])
    answer = processor.decode(generated[0][length:], skip_special_tokens=False)
    assert answer.split() and streamed.split() == answer.split()
    (whole,) = processor.batch_decode(generated, skip_special_tokens=True)
    assert whole.startswith("A chat between a curious user") and "USER: What is it? ASSISTANT:" in whole
    pictures = model.generate(
        **inputs, generation_mode="image", decoder_kwargs={"num_inference_steps": 2}, max_new_tokens=12
    )
    (picture,) = processor.post_process_multimodal_output(pictures, generation_mode="image")
    assert picture.size == (pictures.shape[2], pictures.shape[1])


def test_an_answer_with_media_is_streamed_from_its_first_token(model, processor, capsys):
    inputs = processor(CHAT)
    output = model.generate(
        **inputs,
        generation_mode="image",
        decoder_kwargs={"num_inference_steps": 2},
        max_new_tokens=12,
        streamer=TextStreamer(processor.tokenizer, skip_prompt=True),
        return_dict_in_generate=True,
    )
    answer = processor.decode(output.sequences[0, inputs["input_ids"].shape[1] :])
    assert "[IMG0][IMG1][IMG2][IMG3]" in answer and capsys.readouterr().out.split() == answer.split()


def test_a_preset_is_known_by_its_name_unless_a_folder_has_it(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    assert AutoConfig.from_pretrained("7b").language_model["source"] == "lmsys/vicuna-7b-v1.5"
    shutil.copytree(folder, tmp_path / "7b")
    assert AutoConfig.from_pretrained("7b").language_model["source"].startswith("/")


def test_the_first_name_of_the_class_still_imports_and_loads(tmp_path, folder, model):
    assert NextGPTModel is NextGPTForConditionalGeneration
    saved = json.loads((folder / "config.json").read_text())
    assert saved["architectures"] == ["NextGPTForConditionalGeneration"]
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(saved | {"architectures": ["NextGPTModel"]}))
    assert type(AutoModelForMultimodalLM.from_pretrained(tmp_path)) is NextGPTForConditionalGeneration


def test_features_are_what_stands_in_the_sequence(model, processor):
    content = [{"type": "image", "image": each} for each in (RED, BLUE)]
    inputs = processor([{"role": "user", "content": content}])
    features = model.get_image_features(inputs["image_values"])
    mask = model.get_placeholder_mask(inputs["input_ids"], features.pooler_output)
    embedded = model.embed(inputs["input_ids"], features.last_hidden_state)
    assert mask.sum() == 2 and torch.equal(embedded[mask], features.pooler_output)
    encoded = model.encode_media(inputs["input_ids"], image_values=inputs["image_values"])
    assert torch.equal(encoded, features.last_hidden_state)
    with pytest.raises(UserInputError, match="2 media placeholders, but 1 media features"):
        model.get_placeholder_mask(inputs["input_ids"], features.pooler_output[:1])


def test_each_kind_has_its_features_and_a_foreign_one_is_refused(model, tmp_path):
    sound, clip = torch.randn(2, 1, 1, 128, 204), torch.randn(1, 1, 3, 2, 32, 32)
    assert model.get_audio_features(sound).pooler_output.shape == (2, 32)
    assert model.get_video_features(clip).pooler_output.shape == (1, 32)
    from tiny_models import tiny_model

    sees, _ = tiny_model(tmp_path, input_modalities=["image"])
    assert sees.input_modalities == ("text", "image")
    with pytest.raises(UserInputError, match="takes text, image as input, not video"):
        sees.get_video_features(clip)


def test_how_a_model_is_loaded_is_honoured_or_refused(folder):
    half = AutoModelForMultimodalLM.from_pretrained(folder, torch_dtype=torch.bfloat16, attn_implementation="eager")
    assert half.dtype == torch.bfloat16
    assert half.get_base_model().config._attn_implementation == "eager"
    assert AutoModelForMultimodalLM.from_pretrained(folder).get_base_model().config._attn_implementation != "eager"
    direct = NextGPTForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    assert direct.get_base_model().config._attn_implementation == "eager"
    with pytest.raises(UserInputError, match="got 'load_in_4bit', which is not known"):
        AutoModelForMultimodalLM.from_pretrained(folder, load_in_4bit=True)


def test_a_preset_by_its_name_asks_no_hub_for_chat_templates(monkeypatch):
    """Online, the Hub would say that it has no repository `nano`."""
    from huggingface_hub import HfApi

    import nextgpt

    def refused(*arguments, **options):
        raise AssertionError("the Hub was asked")

    for name in ("list_repo_tree", "snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(HfApi, name, refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    nextgpt.register()
    assert AutoProcessor.from_pretrained("nano").tokenizer.name_or_path
