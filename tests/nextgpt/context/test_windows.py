"""Sliding windows: caches and sessions beyond them, and LLMs that have none."""

from __future__ import annotations

import logging

import pytest
from transformers import (
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    ModernBertDecoderConfig,
    NemotronHConfig,
    Qwen2Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)

from nextgpt import NextGPTPipeline
from nextgpt.context.settings import check_own_window, has_window
from nextgpt.errors import ModelLoadError, UserInputError

OPTIONS = {"max_new_tokens": 6, "output_modalities": ["text"]}
TALK = [{"role": "user", "content": "What do you see? I see a cat."}]


@pytest.fixture(scope="module", params=["sliding mistral", "sliding qwen2"])
def narrow(request, build):
    return build(request.param, sliding_window=24)


def answer(made, **options) -> list[int]:
    model, processor = made
    return model.generate(**processor([TALK]), max_new_tokens=6, do_sample=False, pad_token_id=0, **options)[0].tolist()


def test_a_window_hides_what_lies_outside_it_with_a_cache_and_without(narrow, build):
    assert narrow[1]([TALK])["input_ids"].shape[1] > 100
    assert answer(narrow) == answer(narrow, use_cache=False)
    assert answer(narrow) != answer(build(f"sliding {narrow[0].config.text_config.model_type}"))


def test_it_stays_with_the_checkpoint(narrow, tmp_path):
    for each in narrow:
        each.save_pretrained(tmp_path)
    loaded = NextGPTPipeline.from_pretrained(tmp_path)
    assert loaded.model.get_base_model().config.sliding_window == 24
    assert answer((loaded.model, loaded.processor)) == answer(narrow)


def test_a_conversation_that_goes_on_uses_its_cache_beyond_the_window(narrow, answering):
    pipe = answering(narrow)
    session, messages = pipe.new_session(), list(TALK)
    reply = pipe(messages, session=session, **OPTIONS | {"max_new_tokens": 1})  # the cache holds the prompt alone
    messages += [reply.message, {"role": "user", "content": "ha"}]
    reply = pipe(messages, session=session, **OPTIONS)
    assert reply.timings.cached_tokens > 100
    assert reply.token_ids == pipe(messages, **OPTIONS).token_ids
    slides = [layer for layer in session.cache.layers if layer.is_sliding]
    assert slides and all(layer.keys.shape[2] == 23 for layer in slides)  # the rest is let go of


def test_one_that_is_changed_outside_the_window_starts_afresh_and_says_so(narrow, answering, caplog):
    pipe = answering(narrow)
    session = pipe.new_session()
    pipe(TALK, session=session, **OPTIONS)
    changed = [{"role": "user", "content": "What do you see? I see a dog, and another dog."}]
    with caplog.at_level(logging.WARNING):
        reply = pipe(changed, session=session, **OPTIONS)
    assert reply.timings.cached_tokens == 0
    assert reply.token_ids == pipe(changed, **OPTIONS).token_ids
    assert "left its sliding window" in caplog.text and "computed again" in caplog.text


def test_an_llm_without_a_window_is_refused_by_name(build):
    with pytest.raises(UserInputError, match="sliding_window: a llama has none"):
        build("short", sliding_window=24)
    with pytest.raises(
        UserInputError, match=r"sliding_window 32, and a llama knows none: take the key out of its config\.json"
    ):
        build("ignoring")


@pytest.mark.parametrize("other", [RecurrentGemmaConfig, ModernBertDecoderConfig, Gemma3TextConfig, Qwen2Config])
def test_a_window_by_another_name_is_one(other):
    assert has_window(other())
    check_own_window(other())


@pytest.mark.parametrize("other", [LlamaConfig, GemmaConfig, Qwen3NextConfig, NemotronHConfig])
def test_a_class_without_one_has_none(other):
    assert not has_window(other(sliding_window=24))


def test_one_of_which_no_layer_would_slide_too(build, parts):
    config = parts("sliding qwen2")
    config.text_config.max_window_layers = 2
    try:
        with pytest.raises(
            UserInputError, match=r"no layer of this qwen2 would slide \(max_window_layers is 2, of 2 layers\)"
        ):
            config.lengthen(sliding_window=24)
    finally:
        config.text_config.max_window_layers = 1


@pytest.mark.parametrize("window", [0, 1, -3, 2.5, "24", True])
def test_a_window_that_is_none_is_one_clear_line(build, narrow, tmp_path, window):
    with pytest.raises(UserInputError, match="sliding_window is .*, expected a whole number of at least 2"):
        build("sliding mistral", sliding_window=window)


def test_so_is_one_in_a_saved_configuration(narrow, tmp_path):
    for each in narrow:
        each.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"sliding_window": 24', '"sliding_window": 1'))
    with pytest.raises(ModelLoadError, match=r"config\.json: sliding_window is 1, expected a whole number"):
        NextGPTPipeline.from_pretrained(tmp_path)
