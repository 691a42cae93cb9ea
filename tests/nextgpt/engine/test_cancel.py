"""What is stopped stops soon, and its neighbours do not notice: shown by counters, not by time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nextgpt.errors import DeadlineExceeded, QueueFullError
from nextgpt.events import Finished, MediaProgress, MediaStarted

TALK = [{"role": "user", "content": "What do you see? I see a cat."}]
DRAW = [{"role": "user", "content": "draw a banana"}]
TEXT_ONLY = {"output_modalities": ("text",), "require": {}}


class Gate:
    """Lets the passes of a module through one by one, and counts them with their batch sizes."""

    def __init__(self, module, batch_of=lambda args, kwargs: len(args[0])):
        self.module, self.batch_of, self.sizes = module, batch_of, []
        self.here, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.is_open = False

    def __enter__(self):
        self.hook = self.module.register_forward_pre_hook(self._pass, with_kwargs=True)
        return self

    def _pass(self, module, args, kwargs):
        self.sizes.append(self.batch_of(args, kwargs))
        if not self.is_open:
            self.here.release()
            assert self.go.acquire(timeout=120)

    def step(self, count: int = 1) -> None:
        """Waits until a pass has come, and lets it through."""
        for _ in range(count):
            self.arrive()
            self.go.release()

    def arrive(self) -> None:
        """Waits until a pass has come."""
        assert self.here.acquire(timeout=120)

    def open(self) -> None:
        """Lets all further passes through."""
        self.is_open = True
        self.go.release(1000)

    def __exit__(self, *_):
        self.open()
        self.hook.remove()


def llm(pipeline) -> Gate:
    return Gate(pipeline.model.get_decoder(), lambda args, kwargs: len(kwargs["inputs_embeds"]))


def test_a_row_that_is_cancelled_leaves_after_the_next_token_and_the_others_go_on(assistant, until):
    options = {"max_new_tokens": 12, **TEXT_ONLY}
    expected, cancel = assistant(TALK, **options), threading.Event()
    with llm(assistant) as gate, ThreadPoolExecutor(2) as pool:
        first = pool.submit(assistant, TALK, **options)
        gate.step()
        second = pool.submit(assistant, DRAW, cancel=cancel, max_new_tokens=200, **TEXT_ONLY)
        until(lambda: (stats := assistant.engine.stats().language).active + stats.waiting == 2)
        while gate.sizes[-1] < 2:
            gate.step()
        cancel.set()
        gate.step(2)
        seen = len(gate.sizes)
        gate.open()
        stopped = second.result(60)
        assert first.result(60).token_ids == expected.token_ids
    assert not stopped.finished and 1 <= len(stopped.token_ids) <= 5
    assert all(size == 1 for size in gate.sizes[seen:])


def test_a_request_that_waits_is_let_go_at_once(assistant):
    cancel = threading.Event()
    with assistant._lock, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(assistant, TALK, cancel=cancel, max_new_tokens=4)
        cancel.set()
        reply = waiting.result(60)
    assert not reply.finished and not reply.token_ids and not reply.timings.prompt_tokens


def test_media_with_the_same_options_are_one_batch_which_shrinks_when_one_is_cancelled(assistant, monkeypatch):
    monkeypatch.setattr(assistant.engine.limits, "max_wait_seconds", 60.0)
    monkeypatch.setattr(assistant.engine.limits, "max_media_rows", 3)
    options = {"require": {"image": 1}, "max_new_tokens": 20, "image": {"num_inference_steps": 4}}
    expected, cancel = assistant(DRAW, seed=5, **options), threading.Event()
    before = assistant.engine.stats().decoders["image"]
    unet = assistant.decoders["image"].pipeline.unet
    with Gate(unet) as gate, ThreadPoolExecutor(3) as pool, assistant._lock:
        calls = [pool.submit(assistant, DRAW, seed=5, **options) for _ in range(2)]
        calls.append(pool.submit(assistant, DRAW, cancel=cancel, **options))
        assistant._lock.release()
        try:
            gate.step()
            gate.arrive()
            cancel.set()
            gate.open()
            assert not calls[2].result(60).images
            replies = [call.result(60) for call in calls[:2]]
        finally:
            assistant._lock.acquire()
    after = assistant.engine.stats().decoders["image"]
    assert [reply.token_ids for reply in replies] == [expected.token_ids] * 2 and all(reply.images for reply in replies)
    assert gate.sizes == [6, 6, 4, 4]  # with guidance twice as many as pictures
    assert after.batches[3] - before.batches[3] == 1 and after.steps - before.steps == 4
    assert after.row_steps - before.row_steps == 10 and after.stopped - before.stopped == 1


def test_a_batch_of_which_nothing_is_wanted_any_more_stops_within_one_step(assistant):
    options, cancel = (
        {"require": {"image": 1}, "max_new_tokens": 20, "image": {"num_inference_steps": 50}},
        threading.Event(),
    )
    assistant(DRAW, require={"image": 1}, max_new_tokens=20, image={"num_inference_steps": 1})
    with Gate(assistant.decoders["image"].pipeline.unet) as gate:
        stream = assistant.stream(DRAW, cancel=cancel, **options)
        assert any(isinstance(event, MediaStarted) for event in stream)
        gate.step()
        gate.arrive()
        cancel.set()
        gate.open()
        steps = [event.step for event in stream if isinstance(event, MediaProgress)]
    assert len(gate.sizes) == 2 and steps in ([], [1])
    stats = assistant.engine.stats()
    assert not stats.decoders["image"].active and not stats.language.active


def test_media_with_other_options_come_next_the_oldest_first(assistant, until):
    made = []

    def ask(steps: int):
        options = {"num_inference_steps": steps}
        reply = assistant(DRAW, require={"image": 1}, max_new_tokens=20, image=options)
        made.append(steps)
        return reply

    unet = assistant.decoders["image"].pipeline.unet
    with Gate(unet) as gate, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(ask, 2)]
        gate.step()
        for steps, waiting in ((3, 1), (2, 2), (3, 3)):
            calls.append(pool.submit(ask, steps))
            until(lambda waiting=waiting: assistant.engine.stats().decoders["image"].waiting == waiting)
        gate.open()
        assert all(call.result(60).images for call in calls)
    assert gate.sizes == [2] * 2 + [4] * 3 + [2] * 2  # the first; both of three steps; the last


def test_a_full_queue_refuses_and_a_list_is_let_in_as_a_whole(assistant, until, monkeypatch):
    monkeypatch.setattr(assistant.engine.limits, "max_waiting", 2)
    monkeypatch.setattr(assistant.engine.limits, "max_batch_rows", 1)
    options = {"max_new_tokens": 2, **TEXT_ONLY}
    with ThreadPoolExecutor(1) as pool, assistant._lock:
        waiting = pool.submit(assistant, [TALK, DRAW, TALK], **options)
        until(lambda: assistant.engine.stats().language.waiting == 3)
        for ask in (assistant, lambda *args, **more: list(assistant.stream(*args, **more))):
            with pytest.raises(QueueFullError, match="3 conversations are waiting for an answer already"):
                ask(TALK, **options)
        assistant._lock.release()
        try:
            assert all(reply.token_ids for reply in waiting.result(60))
        finally:
            assistant._lock.acquire()
    assert assistant(TALK, **options).token_ids


def test_an_answer_ends_at_its_deadline_and_says_so(assistant):
    with assistant._lock, pytest.raises(DeadlineExceeded, match="within 0.1 seconds, its deadline"):
        assistant(TALK, max_new_tokens=4, deadline=0.1)
    options = {"require": {"image": 1}, "max_new_tokens": 20, "image": {"num_inference_steps": 900}}
    events = []
    with pytest.raises(DeadlineExceeded):
        for event in assistant.stream(DRAW, deadline=1.0, **options):
            events.append(event)
    assert not any(isinstance(event, Finished) for event in events)
    assert assistant(TALK, max_new_tokens=4, deadline=60, **TEXT_ONLY).token_ids
