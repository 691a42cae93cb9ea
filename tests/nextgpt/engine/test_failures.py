"""A request that fails harms no other; a worker that crashes starts again and says so; threads end with the pipeline."""

import gc
import logging
import random
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from nextgpt import NextGPTPipeline
from nextgpt.engine.language import LanguageWorker
from nextgpt.engine.limits import Limits
from nextgpt.engine.workers import Worker
from nextgpt.errors import EngineError, NextGPTError, UserInputError

REPOSITORY = Path(__file__).parents[3]
TALK = [{"role": "user", "content": "What do you see? I see a cat."}]
DRAW = [{"role": "user", "content": "draw a banana"}]
TEXT_ONLY = {"output_modalities": ("text",), "require": {}}
PICTURE = {"require": {"image": 1}, "max_new_tokens": 20, "image": {"num_inference_steps": 2}}


@contextmanager
def hooked(module, hook, after: bool = False):
    """A hook before (or after) each pass of a module."""
    handle = module.register_forward_hook(hook) if after else module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def answer_all(assistant):
    """Answers rows together; gives the error of each."""
    workers = []

    def answer(requests: list, rows: list) -> list:
        workers.append(LanguageWorker(assistant.model, threading.RLock(), Limits()))
        workers[-1].submit(rows)
        return [request.wait().error for request in requests]

    yield answer
    for worker in workers:
        worker.close()


def check_as_alone(request) -> None:
    tokens = request.stop.row.answer.tokens
    assert tokens == request.alone().sequences[0][: len(tokens)]
    assert request.stop.is_set() or len(tokens) == len(request.alone().sequences[0])


def drawn(assistant, draw, seed: int) -> tuple[list, list]:
    requests = draw(assistant, 8, seed)
    return requests, [request.row() for request in requests]


def test_a_request_with_bad_media_fails_alone(assistant, draw, answer_all):
    requests, rows = drawn(assistant, draw, seed=3)
    bad = next(i for i, row in enumerate(rows) if row.features is not None)
    rows[bad].features = rows[bad].features * torch.nan
    errors = answer_all(requests, rows)
    assert isinstance(errors.pop(bad), UserInputError) and errors == [None] * 7
    for request in requests[:bad] + requests[bad + 1 :]:
        check_as_alone(request)


def test_a_row_whose_numbers_are_none_fails_alone(assistant, draw, answer_all):
    requests, rows = drawn(assistant, draw, seed=4)
    spoilt = []

    def spoil(module, args, output):
        if len(output.last_hidden_state) >= 4 and output.last_hidden_state.shape[1] == 1 and not spoilt:
            spoilt.append(True)
            output.last_hidden_state[1] = torch.nan

    with hooked(assistant.model.get_decoder(), spoil, after=True):
        errors = answer_all(requests, rows)
    assert spoilt
    [bad] = [i for i, error in enumerate(errors) if error is not None]
    assert isinstance(errors[bad], NextGPTError) and "NaN or infinite" in str(errors[bad])
    for request in requests[:bad] + requests[bad + 1 :]:
        check_as_alone(request)


@pytest.mark.parametrize("often", [1, 5])
def test_a_batch_that_fails_is_answered_row_by_row(assistant, draw, answer_all, often):
    requests, rows = drawn(assistant, draw, seed=5)
    rng, failures = random.Random(1), []

    def fail(module, args, kwargs):
        if len(kwargs["inputs_embeds"]) >= 3 and len(failures) < often and rng.random() < 0.3:
            failures.append(True)
            raise RuntimeError("out of memory")

    with hooked(assistant.model.get_decoder(), fail):
        assert answer_all(requests, rows) == [None] * 8
    assert len(failures) == often
    for request in requests:
        check_as_alone(request)


def test_a_medium_that_cannot_be_made_fails_its_own_answer_only(assistant, until, monkeypatch):
    monkeypatch.setattr(assistant.engine.limits, "max_wait_seconds", 60.0)
    monkeypatch.setattr(assistant.engine.limits, "max_media_rows", 2)
    failing = ["together", "alone"]

    def fail(module, args, kwargs):
        if failing and len(args[0]) == (4 if failing[0] == "together" else 2):
            raise RuntimeError(failing.pop(0))

    unet = assistant.decoders["image"].pipeline.unet
    with hooked(unet, fail), ThreadPoolExecutor(2) as pool:
        with assistant._lock:
            calls = [pool.submit(assistant, DRAW, seed=5, **PICTURE) for _ in range(2)]
            until(lambda: assistant.engine.stats().language.waiting == 2)
        errors = [call.exception(60) for call in calls]
    assert sorted(map(repr, errors)) == ["None", "RuntimeError('alone')"]
    assert calls[errors.index(None)].result().images


def test_a_language_worker_that_crashes_starts_again_and_says_so(assistant, caplog):
    before = assistant.engine.stats().restarts
    crashed = []

    def crash(module, args, kwargs):
        if not crashed:
            crashed.append(True)
            raise SystemExit("something broke")

    with caplog.at_level(logging.ERROR), hooked(assistant.model.get_decoder(), crash):
        with pytest.raises(EngineError, match=r"crashed \(SystemExit: something broke\) and has started again"):
            assistant(TALK, max_new_tokens=4)
        assert assistant(TALK, max_new_tokens=4, **TEXT_ONLY).token_ids
    assert assistant.engine.stats().restarts == before + 1
    assert "The worker of the language model crashed and starts again" in caplog.text


def test_a_decoders_worker_that_crashes_starts_again_and_answers_who_waited(assistant, until):
    assert assistant(DRAW, **PICTURE).images
    before = assistant.engine.stats().decoders["image"].restarts
    reached, go_on, crashed = threading.Event(), threading.Event(), []

    def crash(module, args, kwargs):
        reached.set()
        assert go_on.wait(60)
        if not crashed:
            crashed.append(True)
            raise SystemExit("something broke")

    with hooked(assistant.decoders["image"].pipeline.unet, crash), ThreadPoolExecutor(2) as pool:
        running = pool.submit(assistant, DRAW, **PICTURE)
        assert reached.wait(60)
        waiting = pool.submit(assistant, DRAW, **PICTURE)
        until(lambda: assistant.engine.stats().decoders["image"].waiting)
        go_on.set()
        assert isinstance(running.exception(60), EngineError)
        assert waiting.result(60).images
    assert assistant.engine.stats().decoders["image"].restarts == before + 1


def engine_threads() -> set:
    return {thread for thread in threading.enumerate() if thread.name.startswith("nextgpt-engine")}


def test_closing_breaks_off_what_is_under_way_and_a_later_call_works(assistant):
    pipeline, others = NextGPTPipeline(assistant.model, assistant.processor, assistant.decoders), engine_threads()
    reached = threading.Event()
    with ThreadPoolExecutor(1) as pool, hooked(pipeline.model.get_decoder(), lambda *_: reached.set()):
        running = pool.submit(pipeline, TALK, max_new_tokens=400, require={})
        assert reached.wait(60)
        pipeline.close()
        assert isinstance(running.exception(60), EngineError) or running.result().finished
    assert not engine_threads() - others
    assert pipeline(TALK, max_new_tokens=4, **TEXT_ONLY).token_ids
    pipeline.close()
    pipeline.close()


def test_threads_start_with_the_first_request_and_end_with_the_pipeline(assistant):
    others = engine_threads()
    pipeline = NextGPTPipeline(assistant.model, assistant.processor, assistant.decoders)
    assert engine_threads() == others
    pipeline(DRAW, **PICTURE)
    own, gone = engine_threads() - others, weakref.ref(pipeline)
    assert len(own) == 2 and all(thread.daemon for thread in own)
    del pipeline
    gc.collect()
    assert gone() is None
    for thread in own:
        thread.join(60)
        assert not thread.is_alive()


LEAVING = """
import threading
from nextgpt import NextGPTPipeline

pipe, began = NextGPTPipeline.from_pretrained("nano", device="cpu"), threading.Event()

def film():
    messages = [{"role": "user", "content": "Film a bird."}]
    for _ in pipe.stream(messages, require={"video": 1}, video={"num_inference_steps": 900}):
        began.set()

threading.Thread(target=film, daemon=True).start()
assert began.wait(120)
"""


@pytest.mark.slow
def test_a_program_may_end_in_the_middle_of_an_answer():
    done = subprocess.run([sys.executable, "-c", LEAVING], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


CLOSED_AND_LEFT = """
import threading
import torch
from nextgpt.engine.workers import Worker

class Busy(Worker):
    began = threading.Event()

    def has_work(self):
        return True

    def work(self):
        self.began.set()
        for _ in range(20):
            torch.randn(400, 400) @ torch.randn(400, 400)

    def fail_running(self, message):
        pass

    fail_waiting = fail_running

worker = Busy("a test")
worker.wake()
assert worker.began.wait(60)
worker.close(wait=False)
"""


def test_a_program_may_end_right_after_its_pipeline_has_gone():
    """The collector closes a pipeline without waiting; its thread is still computing then."""
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_AND_LEFT], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_a_thread_that_cannot_start_starts_with_the_next_work(monkeypatch):
    done = threading.Event()

    class Once(Worker):
        def has_work(self) -> bool:
            return not done.is_set()

        def work(self) -> None:
            done.set()

        def fail_waiting(self, message: str) -> None:
            """Nothing waits."""

        fail_running = fail_waiting

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    worker = Once("a test")
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="can't start"):
        patched.setattr(threading.Thread, "start", refuse)
        worker.wake()
    worker.wake()
    assert done.wait(60)
    worker.close()
