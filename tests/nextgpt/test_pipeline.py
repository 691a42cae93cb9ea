"""The pipeline with a tiny random model: calls, batches, streams, sessions, cancelling, threads, saving."""

import copy
import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from nextgpt import NextGPTPipeline
from nextgpt.errors import ContractError, ModelLoadError, UserInputError
from nextgpt.events import Finished, MediaDone, MediaProgress, MediaStarted, TextDelta
from nextgpt.media import load_media
from nextgpt.signals import answer_only
from nextgpt.train.nano.dialogues.composer import SYSTEM_PROMPT
from tiny_models import save_tiny_any_to_any

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")
STEPS = {"image": {"num_inference_steps": 2}, "audio": {"num_inference_steps": 2, "duration": 0.2}}
STEPS |= {"video": {"num_inference_steps": 2}}
ASK = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "draw a banana"}]}]
TALK = [{"role": "user", "content": "What do you see? I see a cat."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_any_to_any(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def pipe(folder):
    return NextGPTPipeline.from_pretrained(folder)


def same_media(one, other):
    return len(one) == len(other) and all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True)
    )


def test_a_reply_can_be_appended_and_answered(pipe):
    reply = pipe(ASK, require={"image": 1}, max_new_tokens=20, seed=1, **STEPS)
    assert reply.message["role"] == "assistant" and isinstance(reply.images[0], Image.Image)
    second = pipe(
        [*ASK, reply.message, {"role": "user", "content": "again"}], require={"audio": 1}, max_new_tokens=20, **STEPS
    )
    assert second.audios[0].array.dtype == np.float32 and second.audios[0].sampling_rate > 0
    assert second.timings.prompt_tokens > reply.timings.prompt_tokens


def test_a_string_is_one_message_of_the_users(pipe):
    asked = [{"role": "user", "content": "hello"}]
    assert pipe("hello", max_new_tokens=4).text == pipe(asked, max_new_tokens=4).text
    assert [*pipe.stream("hello", max_new_tokens=4)][-1].reply.text == pipe(asked, max_new_tokens=4).text
    pipe.check("hello")


def test_check_refuses_what_a_call_would_refuse_and_answers_nothing(pipe, tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    assert pipe.check(ASK) is None
    for part, told in (
        ({"type": "image", "path": str(tmp_path / "broken.png")}, "not a picture"),
        ({"type": "text", "text": "word " * 1000}, r"the model takes \d{3}:"),
    ):
        with pytest.raises(UserInputError, match=told):
            pipe.check([{"role": "user", "content": [part]}])


def test_the_signal_tokens_are_told_as_the_model_writes_them(pipe):
    assert pipe.signal_tokens["image"] == ["[IMG0]", "[IMG1]", "[IMG2]", "[IMG3]"]
    assert list(pipe.signal_tokens) == ["image", "audio", "video"]


def test_the_seed_decides_the_media(pipe):
    first, again, other = (pipe(ASK, require={"image": 1}, max_new_tokens=20, seed=seed, **STEPS) for seed in (1, 1, 2))
    assert same_media(first.images, again.images) and not same_media(first.images, other.images)


def test_a_batch_equals_its_singles(pipe):
    conversations = [ASK, TALK, [{"role": "user", "content": "hi"}]]
    options = {"require": {"image": 2}, "max_new_tokens": 30, "seed": 3, **STEPS}
    for conversation, reply in zip(conversations, pipe(conversations, **options), strict=True):
        single = pipe(conversation, **options)
        assert single.token_ids == reply.token_ids and len(reply.images) == 2
        for one, other in zip(single.images, reply.images, strict=True):
            assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1


def test_a_stream_tells_the_same_answer_piece_by_piece(pipe):
    options = {"require": {"image": 1, "audio": 1}, "max_new_tokens": 40, "seed": 1, **STEPS}
    events = list(pipe.stream(ASK, **options))
    reply = pipe(ASK, **options)
    assert isinstance(events[-1], Finished) and events[-1].reply.token_ids == reply.token_ids
    assert same_media(events[-1].reply.images, reply.images)
    streamed = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert "".join(streamed.split()) == "".join(reply.text.split())
    media = [event for event in events if not isinstance(event, (TextDelta, Finished))]
    order = [(type(event), event.index) for event in media]
    assert order[0] == (MediaStarted, 0) and order[-1] == (MediaDone, 1)
    assert [i for _, i in order] == sorted(i for _, i in order)
    progress = [event for event in media if isinstance(event, MediaProgress) and event.modality == "image"]
    assert [(event.step, event.total) for event in progress] == [(1, 2), (2, 2)]
    assert isinstance(progress[0].preview(), Image.Image)


@pytest.mark.parametrize("kinds", [("text",), ("text", "image"), ("text", "audio")])
def test_what_is_switched_off_is_left_out_and_told_and_nothing_comes_instead(pipe, kinds):
    options = {"max_new_tokens": 60, "seed": 1, **STEPS, "video": {"num_inference_steps": 1}}
    told = [{"role": "system", "content": f"{SYSTEM_PROMPT} {answer_only(kinds)}"}]
    free, bound = pipe([told + ASK, told + TALK], **options), pipe([ASK, TALK], output_modalities=kinds, **options)
    assert any(reply.switched_off for reply in bound)
    for conversation, whole, rest in zip((ASK, TALK), free, bound, strict=True):
        asked_for = [part["type"] for part in whole.message["content"] if part["type"] != "text"]
        given = [part["type"] for part in rest.message["content"] if part["type"] != "text"]
        assert given == [kind for kind in asked_for if kind in kinds]
        assert set(rest.switched_off) == set(asked_for) - set(kinds) and not whole.switched_off
        assert "".join(rest.text.split()) == "".join(whole.text.split())
        assert not any(first["type"] == second["type"] == "text" for first, second in pairwise(rest.message["content"]))
        *events, last = pipe.stream(conversation, output_modalities=kinds, **options)
        assert last.reply.switched_off == rest.switched_off and last.reply.token_ids == rest.token_ids
        assert [event.modality for event in events if isinstance(event, MediaStarted)] == given
        streamed = "".join(event.text for event in events if isinstance(event, TextDelta))
        assert streamed.split() == " ".join(p["text"] for p in rest.message["content"] if p["type"] == "text").split()


@pytest.mark.slow
def test_a_session_reuses_its_cache_and_answers_the_same(pipe):
    session = pipe.new_session()
    options = {"max_new_tokens": 16, "seed": 1, **STEPS}
    messages = list(ASK)
    for turn in range(3):
        with_session, without = pipe(messages, session=session, **options), pipe(messages, **options)
        assert with_session.token_ids == without.token_ids
        assert (with_session.timings.cached_tokens > 0) == (turn > 0)
        messages += [with_session.message, {"role": "user", "content": f"and {turn}?"}]


@pytest.mark.slow
def test_a_session_sees_another_picture_in_the_same_place(pipe):
    session = pipe.new_session()
    other = [{"role": "user", "content": [{"type": "image", "image": BLUE}, ASK[0]["content"][1]]}]
    options = {"max_new_tokens": 8, **STEPS}
    pipe(ASK, session=session, **options)
    assert pipe(other, session=session, **options).token_ids == pipe(other, **options).token_ids


def test_cancel_stops_and_leaves_the_callers_event_alone(pipe):
    cancel = threading.Event()
    events = []
    for event in pipe.stream(ASK, require={"image": 1}, max_new_tokens=20, image={"num_inference_steps": 50}, cancel=cancel):
        events.append(event)
        if isinstance(event, MediaProgress):
            cancel.set()
    steps = [event.step for event in events if isinstance(event, MediaProgress)]
    assert steps[-1] <= 3 and not any(isinstance(event, MediaDone) for event in events)
    assert not events[-1].reply.finished and not events[-1].reply.images
    fresh = threading.Event()
    list(pipe.stream(TALK, max_new_tokens=4, output_modalities=("text",), cancel=fresh))
    assert not fresh.is_set()


@pytest.mark.parametrize("moment", [TextDelta, MediaProgress])
def test_a_session_goes_on_after_a_stop_as_if_it_knew_the_conversation_alone(pipe, moment):
    session, cancel = pipe.new_session(), threading.Event()
    for event in pipe.stream(ASK, session=session, require={"image": 1}, max_new_tokens=20, cancel=cancel, **STEPS):
        if isinstance(event, moment):
            cancel.set()
    stopped = event.reply
    assert not stopped.finished and not stopped.images
    messages = [*ASK, stopped.message, {"role": "user", "content": "hi"}]
    options = {"max_new_tokens": 16, "seed": 1, **STEPS}
    after = pipe(messages, session=session, **options)
    assert after.timings.cached_tokens > 0
    assert after.token_ids == pipe(messages, **options).token_ids


def test_an_abandoned_stream_stops(pipe):
    stream = pipe.stream(ASK, require={"image": 1}, max_new_tokens=20, image={"num_inference_steps": 900})
    for event in stream:
        if isinstance(event, MediaProgress):
            break
    stream.close()
    assert not any(thread.name.startswith("nextgpt-stream") for thread in threading.enumerate())
    assert pipe(TALK, max_new_tokens=2, output_modalities=("text",)).token_ids


@pytest.mark.slow
def test_threads_take_turns(pipe):
    options = {"max_new_tokens": 12, "seed": 1, **STEPS}
    expected = [pipe(messages, **options).token_ids for messages in (ASK, TALK)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda messages: pipe(messages, **options).token_ids, [ASK, TALK] * 3))
    assert found == expected * 3


def test_sampling_follows_the_seed_and_leaves_the_global_generator_alone(pipe):
    state = torch.get_rng_state()
    options = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 12, "output_modalities": ("text",)}
    first, again, other = (pipe(TALK, seed=seed, **options).token_ids for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_temperature_may_be_a_whole_number(pipe):
    whole, point = (pipe(TALK, do_sample=True, temperature=each, seed=3, max_new_tokens=8).text for each in (2, 2.0))
    assert whole == point


def test_what_a_generation_configuration_says_of_caches_and_beams_does_not_matter(pipe, monkeypatch):
    expected = pipe(ASK, require={"image": 1}, max_new_tokens=20, seed=1, **STEPS).text
    for name, value in {"use_cache": False, "cache_implementation": "static", "num_beams": 4}.items():
        monkeypatch.setattr(pipe.model.generation_config, name, value)
        assert pipe(ASK, require={"image": 1}, max_new_tokens=20, seed=1, **STEPS).text == expected


def test_a_processor_of_another_vocabulary_is_refused(pipe):
    other = copy.copy(pipe.processor)
    other.vocabulary = dataclasses.replace(pipe.processor.vocabulary, offset=7)
    with pytest.raises(ModelLoadError, match="the vocabulary that was trained with"):
        NextGPTPipeline(pipe.model, other, pipe.decoders)


def test_nothing_is_saved_where_an_upload_is_asked_for(pipe, tmp_path):
    for each in (pipe.model, pipe.processor):
        with pytest.raises(UserInputError, match="hf upload"):
            each.save_pretrained(tmp_path / "out", push_to_hub=True)
    assert not (tmp_path / "out").exists()


def test_the_coldest_sampling_takes_the_likeliest(pipe):
    options = {"max_new_tokens": 12, "output_modalities": ("text",)}
    assert pipe(TALK, do_sample=True, temperature=1e-300, **options).token_ids == pipe(TALK, **options).token_ids


def test_a_reply_saves_its_media_and_itself(pipe, tmp_path):
    reply = pipe(ASK, require={"image": 1, "audio": 1, "video": 1}, max_new_tokens=80, seed=7, **STEPS)
    *media, record = reply.save(tmp_path)
    assert sorted(path.suffix for path in media) == [".mp4", ".png", ".wav"]
    content = json.loads(record.read_text())["message"]["content"]
    for part in content:
        if part["type"] != "text":
            assert part["seed"] >= 7
            load_media(part["type"], tmp_path / part["path"])
    assert len(load_media("video", next(path for path in media if path.suffix == ".mp4")).frames) == len(
        reply.videos[0].frames
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: expected 1 or more"),
        ({"temprature": 1.0}, "unknown option 'temprature'; did you mean 'temperature'"),
        ({"require": ["image"]}, "require is"),
        ({"image": {"num_steps": 3}}, "has no option 'num_steps'; did you mean"),
        ({"seed": -1}, "seed is -1"),
        ({"do_sample": True, "temperature": float("inf")}, "temperature is inf"),
        ({"image": {"guidance_scale": float("inf")}}, "guidance_scale must be a number above 0"),
    ],
)
def test_bad_options_are_named(pipe, options, message):
    with pytest.raises(UserInputError, match=message):
        pipe(TALK, **options)


def test_what_the_model_cannot_give_is_an_error(pipe):
    with pytest.raises(ContractError, match="cannot give smell"):
        pipe(TALK, require={"smell": 1})


def test_missing_parts_are_all_listed(folder, tmp_path):
    parts = {"language_model": str(tmp_path / "llm"), "image": str(tmp_path / "sd")}
    with pytest.raises(ModelLoadError) as error:
        NextGPTPipeline.from_pretrained(folder, parts=parts)
    assert all(path in str(error.value) for path in parts.values())


def test_the_full_size_model_says_what_it_lacks_and_where_it_goes(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError) as error:
        NextGPTPipeline.from_pretrained("7b")
    message = str(error.value)
    for repository in ("lmsys/vicuna-7b-v1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "cvssp/audioldm-l-full"):
        assert repository in message
    assert "GB" in message and "parts=" in message and "`nextgpt download 7b`" in message
