"""The waiting line and the one who answers, without a server."""

import threading
import time

from nextgpt.demo.answers import STOPPED, Answers
from nextgpt.demo.conversations import Store


def test_closing_stops_the_answer_under_way_and_drops_those_that_wait(pipeline):
    store = Store(pipeline.new_session)
    answers = Answers(pipeline, store)
    first, second = store.create(), store.create()
    began = threading.Event()

    class Watched(threading.Event):
        def is_set(self):  # the pipeline looks at it in every step
            began.set()
            return super().is_set()

    first.cancel = Watched()
    answers.ask(first, "draw", [], {"image": {"num_inference_steps": 900}})
    answers.ask(second, "draw", [], {})
    assert began.wait(60)
    answers.close()
    assert first.turns[0].note == STOPPED and not first.busy
    assert not second.turns[0].answer
    store.close()


def test_a_stopped_answer_keeps_what_was_finished_and_the_next_one_works(pipeline, monkeypatch):
    store = Store(pipeline.new_session)
    answers, conversation = Answers(pipeline, store), store.create()
    save = conversation.keep_media

    def stop_after_the_first(*details, **more):
        conversation.cancel.set()
        return save(*details, **more)

    monkeypatch.setattr(conversation, "keep_media", stop_after_the_first)
    answers.ask(conversation, "draw and play", [], {})
    wait(conversation)
    [turn] = conversation.turns
    assert [part["type"] for part in turn.answer if part["type"] != "text"] in (["image"], ["audio"])
    assert turn.note == STOPPED
    answers.ask(conversation, "hello", [], {})
    wait(conversation)
    assert conversation.turns[1].answer and not conversation.turns[1].failed
    answers.close()
    store.close()


def wait(conversation) -> None:
    while conversation.busy:
        time.sleep(0.02)
