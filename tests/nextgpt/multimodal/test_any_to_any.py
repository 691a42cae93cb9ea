"""transformers' own pipeline, `any-to-any`: pictures and sounds in its form, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList, pipeline, set_seed
from transformers.utils import logging

import nextgpt
from nextgpt import NextGPTPipeline
from nextgpt.errors import ContractError, UserInputError
from nextgpt.events import MAX_SEED

nextgpt.register()

RED = Image.new("RGB", (40, 30), "red")
CHAT = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "draw a banana"}]}]
TALK = [{"role": "user", "content": "What do you see? I see a cat."}]
STEPS = {"image": {"num_inference_steps": 2}, "audio": {"num_inference_steps": 2, "duration": 0.2}}


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline("any-to-any", model=folder)


@pytest.fixture(scope="module")
def own(folder):
    return NextGPTPipeline.from_pretrained(folder)


def ask(pipe, chat, mode: str, seed: int = 0, **options):
    set_seed(seed)
    return pipe(chat, generation_mode=mode, generate_kwargs={"decoder_kwargs": STEPS[mode]}, max_new_tokens=12, **options)


def drawn_seed(seed: int) -> int:
    """The seed that `generate` draws for its first piece of media."""
    set_seed(seed)
    return int(torch.randint(MAX_SEED, (1,)))


def test_it_says_what_the_model_takes_and_gives(pipe):
    assert pipe.model.input_modalities == pipe.model.output_modalities == ("text", "image", "audio", "video")
    assert "'output_modalities': ('text', 'image', 'audio', 'video')" in repr(pipe)


def test_it_answers_with_the_picture_that_nextgpts_own_pipeline_makes(pipe, own):
    (record,) = ask(pipe, CHAT, "image", seed=3)
    assert record["input_text"] == CHAT and isinstance(record["generated_image"], Image.Image)
    reply = own(CHAT, require={"image": 1}, seed=drawn_seed(3), max_new_tokens=12, **STEPS)
    assert np.abs(np.asarray(record["generated_image"], int) - np.asarray(reply.images[0])).max() <= 1
    (other,) = ask(pipe, CHAT, "image", seed=4)
    assert np.abs(np.asarray(record["generated_image"], int) - np.asarray(other["generated_image"])).max() > 1


def test_it_answers_with_the_sound_that_nextgpts_own_pipeline_makes(pipe, own):
    (record,) = ask(pipe, TALK, "audio", seed=3)
    (sound,) = own(TALK, require={"audio": 1}, seed=drawn_seed(3), max_new_tokens=12, **STEPS).audios
    assert record["generated_audio"].dtype == np.float32
    np.testing.assert_allclose(record["generated_audio"], sound.array, atol=1e-4)
    assert pipe.model.sampling_rate == sound.sampling_rate


@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_chats_get_a_picture_each(pipe, batch_size):
    records = [record for (record,) in ask(pipe, [CHAT, CHAT], "image", batch_size=batch_size)]
    first, second = (np.asarray(record["generated_image"]) for record in records)
    assert first.shape == second.shape and not np.array_equal(first, second), "each has a seed of its own"


def test_words_and_media_without_a_chat_are_one_users_message(pipe):
    (record,) = pipe(text="draw a banana", images=RED, max_new_tokens=8, return_full_text=False)
    (same,) = pipe(CHAT, max_new_tokens=8, return_full_text=False)
    assert record["generated_text"] == same["generated_text"]


def test_an_answer_that_has_begun_goes_on(pipe):
    begun = [*TALK, {"role": "assistant", "content": [{"type": "text", "text": "I see a"}]}]
    (record,) = pipe(begun, max_new_tokens=4)
    assert [message["role"] for message in record["generated_text"]] == ["user", "assistant"]
    inputs = pipe.processor(begun, add_generation_prompt=False, continue_final_message=True)
    whole = pipe.processor(begun, add_generation_prompt=False)["input_ids"]
    assert torch.equal(inputs["input_ids"], whole[:, :-1]), "all but the end of the turn"
    answer = pipe.model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    words = pipe.tokenizer.decode(answer, skip_special_tokens=True)
    assert record["generated_text"][-1]["content"][-1]["text"] == f"I see a{words}"


class _Begin(LogitsProcessor):
    """Lets every answer begin with one token."""

    def __init__(self, token: int, length: int):
        self.token, self.length = token, length

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] == self.length:
            scores = torch.full_like(scores, -torch.inf)
            scores[:, self.token] = 0
        return scores


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_in_text_mode_a_run_is_whole_and_the_call_for_a_picture_is_told(pipe, caplog, options):
    logging.warning_once.cache_clear()
    run, inputs = pipe.model.vocabulary.runs["image"], pipe.processor(TALK)
    length = inputs["input_ids"].shape[1]
    begin = LogitsProcessorList([_Begin(run[0], length)])
    rows = pipe.model.generate(**inputs, logits_processor=begin, max_new_tokens=10, **options)[:, length:]
    assert all(row[: len(run)] == list(run) for row in rows.tolist())
    signals = {token for each in pipe.model.vocabulary.runs.values() for token in each}
    starts = set(pipe.model.vocabulary.starts)
    for row in rows.tolist():
        assert all(before + 1 == token for before, token in zip(row, row[1:], strict=False) if token in signals - starts)
    assert "An answer calls for image" in caplog.text and "generation_mode='image'" in caplog.text


def test_a_mode_that_the_pipeline_does_not_have_is_refused_by_name(pipe):
    with pytest.raises(ValueError, match=r"generation_mode\[=video\]"):
        pipe(TALK, generation_mode="video")


def test_generate_alone_films_too(pipe):
    options = {"num_inference_steps": 2, "num_frames": 3, "height": 16, "width": 16}
    output = pipe.model.generate(
        **pipe.processor([TALK, CHAT]),
        generation_mode="video",
        decoder_kwargs=options,
        max_new_tokens=30,
        return_dict_in_generate=True,
    )
    assert output.media.shape == (2, 3, 16, 16, 3) and output.media.dtype == torch.uint8
    run = torch.tensor(pipe.model.vocabulary.runs["video"])
    for row in output.sequences:
        assert torch.equal(row[torch.isin(row, run)], run)
    clips = pipe.processor.post_process_multimodal_output(output, generation_mode="video")
    assert [clip.shape for clip in clips] == [(3, 16, 16, 3)] * 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"generation_mode": "smell"}, "generation_mode is 'smell': this model's modes are text, image, audio, video"),
        ({"generation_mode": "image", "decoder_kwargs": {"steps": 2}}, "the image decoder has no option 'steps'"),
        ({"generation_mode": "image", "num_beams": 2}, "num_beams is 2"),
        ({"generation_mode": "audio", "num_return_sequences": 2}, "num_return_sequences is 2"),
        ({"generation_mode": "image", "steps": 2}, "steps"),
        ({"decoder_kwargs": {"num_inference_steps": 2}}, "in text mode no decoder runs"),
    ],
)
def test_what_a_mode_does_not_know_is_refused_by_name(pipe, options, told):
    with pytest.raises(ValueError, match=told):
        pipe.model.generate(**pipe.processor(TALK), **options)


def test_too_few_tokens_for_the_media_are_told(pipe):
    with pytest.raises(ContractError, match="raise max_new_tokens"):
        pipe.model.generate(**pipe.processor(TALK), generation_mode="image", max_new_tokens=3)


def test_a_model_without_sounds_has_no_such_mode(saved):
    pipe = pipeline("any-to-any", model=saved)
    assert pipe.model.output_modalities == ("text", "image") and not hasattr(pipe.model, "sampling_rate")
    with pytest.raises(ValueError, match="can only output the following modalities"):
        pipe(TALK, generation_mode="audio")
    with pytest.raises(UserInputError, match="modes are text, image"):
        pipe.processor.post_process_multimodal_output(torch.zeros(1, 1), generation_mode="audio")
