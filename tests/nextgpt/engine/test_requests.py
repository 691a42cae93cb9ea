"""Calls and streams from many threads, answered together: what each gets, in which order, and what it does to others."""

import copy
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from media_values import assert_same
from nextgpt.engine.language import LanguageWorker
from nextgpt.engine.media import MediaWorker
from nextgpt.events import Finished, MediaDone, MediaProgress, MediaStarted, TextDelta
from nextgpt.hardware import SMALL, compute_alone

TALK = [{"role": "user", "content": "What do you see? I see a cat."}]
DRAW = [{"role": "user", "content": "draw a banana"}]
STEPS = {
    "image": {"num_inference_steps": 1},
    "audio": {"num_inference_steps": 1, "duration": 0.2},
    "video": {"num_inference_steps": 1},
}
TEXT_ONLY = {"output_modalities": ("text",), "require": {}}


class Hold:
    """Holds up one decoder's denoiser, after it has begun, until it is let go."""

    def __init__(self, pipeline, kind: str):
        self.reached, self.let_go = threading.Event(), threading.Event()
        self.module = pipeline.decoders[kind].pipeline.unet

    def __enter__(self):
        self.hook = self.module.register_forward_pre_hook(self._wait)
        return self

    def _wait(self, *_):
        self.reached.set()
        assert self.let_go.wait(120)

    def __exit__(self, *_):
        self.let_go.set()
        self.hook.remove()


def media_of(reply) -> list:
    return [part[part["type"]] for part in reply.message["content"] if part["type"] != "text"]


def assert_same_reply(one, other) -> None:
    assert one.token_ids == other.token_ids and one.text == other.text and one.finished == other.finished
    assert one.switched_off == other.switched_off
    assert_same(media_of(one), media_of(other))


def options_of(request) -> dict:
    options = {"max_new_tokens": request.budget, "require": request.require, "seed": request.seed or 0, **STEPS}
    if request.seed is not None:
        options |= {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p}
    return options


def answer_up_to(assistant, request, last_event: int | None):
    """The reply of a stream that is cancelled after so many events."""
    cancel, events = threading.Event(), []
    for event in assistant.stream(request.messages, cancel=cancel, **options_of(request)):
        events.append(event)
        if len(events) == last_event:
            cancel.set()
    return events[-1].reply, cancel.is_set()


@pytest.mark.slow
def test_300_requests_from_many_threads_are_answered_as_alone_media_included(assistant, draw):
    rng, requests = random.Random(5), draw(assistant, 300, seed=11)
    cancelled_at = [rng.randint(1, 6) if rng.random() < 0.2 else None for _ in requests]
    alone = [assistant(request.messages, **options_of(request)) for request in requests]
    before = assistant.engine.stats()
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda each: answer_up_to(assistant, *each), zip(requests, cancelled_at, strict=True)))
    after, apart = assistant.engine.stats(), 0
    for (reply, was_cancelled), expected in zip(together, alone, strict=True):
        if reply.token_ids != expected.token_ids[: len(reply.token_ids)]:
            apart += 1  # a near tie; tests of the language model's worker look at each
        elif was_cancelled:
            made = media_of(reply)
            assert_same(made, media_of(expected)[: len(made)])
        else:
            assert_same_reply(reply, expected)
    assert apart < 3
    grown = after.language.steps - before.language.steps
    assert sum(grown[rows] for rows in grown if rows > 1) > grown[1]  # they really were answered together
    assert any(size > 1 for decoder in after.decoders.values() for size in decoder.batches)


def test_a_list_of_conversations_is_so_many_rows_each_with_its_own_random_numbers(assistant):
    options = {"do_sample": True, "temperature": 1.3, "max_new_tokens": 12, "seed": 4, **STEPS}
    for conversation, reply in zip((TALK, DRAW), assistant([TALK, DRAW], **options), strict=True):
        assert_same_reply(assistant(conversation, **options), reply)


def test_the_text_of_one_is_not_held_up_by_the_video_of_another(assistant):
    assistant(DRAW, require={"video": 1}, max_new_tokens=40, **STEPS)
    with Hold(assistant, "video") as hold:
        film = assistant.stream(DRAW, require={"video": 1}, max_new_tokens=40, **STEPS)
        events = [next(event for event in film if isinstance(event, MediaStarted))]
        assert hold.reached.wait(120)
        talk = list(assistant.stream(TALK, max_new_tokens=12, **TEXT_ONLY))
        assert isinstance(talk[-1], Finished) and any(isinstance(event, TextDelta) for event in talk)
        draws = assistant(DRAW, require={"image": 1}, max_new_tokens=20, **STEPS)  # nor is another decoder
        assert draws.images
        hold.let_go.set()
        events += film
    assert events[-1].reply.videos


def test_the_llm_goes_on_while_a_medium_is_made_and_the_events_keep_the_answers_order(assistant, until):
    options = {"require": {"image": 1, "audio": 1}, "max_new_tokens": 40, **STEPS}
    expected = [type(event) for event in assistant.stream(DRAW, seed=1, **options)]
    with Hold(assistant, "image") as hold:
        stream = assistant.stream(DRAW, seed=1, **options)
        events = [next(event for event in stream if isinstance(event, MediaStarted))]
        assert hold.reached.wait(120)
        until(lambda: not assistant.engine.stats().language.active)  # it has the whole answer, though a medium is missing
        hold.let_go.set()
        events += stream
    order = [type(event) for event in events]
    assert order == expected[expected.index(MediaStarted) :]
    media = [event for event in events if isinstance(event, MediaStarted | MediaProgress | MediaDone)]
    assert [event.index for event in media] == sorted(event.index for event in media)


def test_what_comes_after_a_medium_at_which_a_stream_was_stopped_is_not_in_the_reply(assistant, until):
    options = {"require": {"image": 1, "audio": 1}, "max_new_tokens": 40, "seed": 1, **STEPS}
    first, second = [part["type"] for part in assistant(DRAW, **options).message["content"] if part["type"] != "text"]
    made, cancel = assistant.engine.stats().decoders[second].made, threading.Event()
    with Hold(assistant, first) as hold:
        stream = assistant.stream(DRAW, cancel=cancel, **options)
        events = [next(event for event in stream if isinstance(event, MediaStarted))]
        assert hold.reached.wait(120)
        until(lambda: assistant.engine.stats().decoders[second].made > made)
        cancel.set()
        hold.let_go.set()
        events += stream
    reply = events[-1].reply
    assert not media_of(reply) and not reply.timings.media and not reply.finished
    assert reply.token_ids[-1] == assistant.model.vocabulary.runs[first][-1]
    assert not any(isinstance(event, TextDelta) for event in events)


def test_a_stream_that_is_stopped_at_an_event_tells_nothing_that_was_made_in_advance(assistant, until):
    options = {"require": {"image": 1, "audio": 1}, "max_new_tokens": 40, "seed": 1, **STEPS}
    first, second = [part["type"] for part in assistant(DRAW, **options).message["content"] if part["type"] != "text"]
    made, cancel = assistant.engine.stats().decoders[second].made, threading.Event()
    with Hold(assistant, first) as hold:
        stream = assistant.stream(DRAW, cancel=cancel, **options)
        next(event for event in stream if isinstance(event, MediaStarted))
        until(lambda: assistant.engine.stats().decoders[second].made > made)
        hold.let_go.set()
        next(event for event in stream if isinstance(event, MediaDone))
        cancel.set()
        *events, last = stream
    assert not events and [part["type"] for part in last.reply.message["content"]][-1] == first
    assert not last.reply.finished and len(last.reply.timings.media) == 1


def test_turns_of_one_session_take_turns_and_other_requests_do_not_wait_for_them(assistant):
    session, options = assistant.new_session(), {"max_new_tokens": 8, "seed": 1, **TEXT_ONLY}
    expected = assistant(TALK, **options)
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: assistant(TALK, session=session, **options), range(4)))
    assert all(reply.token_ids == expected.token_ids for reply in replies)
    assert sorted(reply.timings.cached_tokens > 0 for reply in replies) == [False, True, True, True]
    assert assistant(TALK, session=copy.deepcopy(session), **options).timings.cached_tokens > 0


def test_a_turn_may_begin_while_the_stream_of_the_one_before_is_still_being_read(assistant):
    session = assistant.new_session()
    stream = assistant.stream(TALK, session=session, max_new_tokens=4, **TEXT_ONLY)
    next(stream)
    assert assistant(TALK, session=session, max_new_tokens=4, **TEXT_ONLY).token_ids
    stream.close()


def test_each_worker_of_a_small_model_computes_in_one_thread_and_other_threads_keep_theirs(assistant, monkeypatch):
    seen: dict[str, int] = {}
    for name, worker in (("LLM", LanguageWorker), ("decoder", MediaWorker)):

        def work(self, name=name, really=worker.work):
            seen[name] = torch.get_num_threads()
            really(self)

        monkeypatch.setattr(worker, "work", work)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(2):  # how large a decoder is, is known when its first batch has loaded it
            assistant([{"role": "user", "content": "hello"}], require={"image": 1}, max_new_tokens=8)
        assert seen == {"LLM": 1, "decoder": 1} and torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: (compute_alone(SMALL), torch.get_num_threads())[1]).result() == 2
            assert pool.submit(lambda: (compute_alone(SMALL - 1), torch.get_num_threads())[1]).result() == 1
    finally:
        torch.set_num_threads(before)
