"""The waiting line and the one who answers, without a server."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nextgpt.demo.answers import SAME, STOPPED, AnswerQueue
from nextgpt.demo.conversations import Store, Turn
from nextgpt.errors import UserInputError
from nextgpt.events import Finished, Reply, TextDelta

PICTURE = Path(__file__).parents[1] / "fixtures" / "parity" / "media" / "shapes.png"


@pytest.fixture
def answers(pipeline):
    store = Store(pipeline.new_session)
    answers = AnswerQueue(pipeline, store, places=1)
    yield answers
    answers.close()
    store.close()


@pytest.fixture
def conversation(answers):
    return answers.store.create()


@pytest.fixture
def slow(pipeline, monkeypatch):
    """Makes the check of a message with the word "slow" last until `go_on`; tells when it `began`."""
    began, go_on, check = threading.Event(), threading.Event(), pipeline.check

    def check_slowly(messages):
        if "slow" in str(messages):
            began.set()
            assert go_on.wait(60)
        check(messages)

    monkeypatch.setattr(pipeline, "check", check_slowly)
    yield began, go_on
    go_on.set()


def words(text: str) -> list[dict]:
    return [{"type": "text", "text": text}]


def test_closing_stops_the_answer_under_way_and_drops_those_that_wait(answers):
    first, second = answers.store.create(), answers.store.create()
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
    assert not second.turns[0].answer and not second.busy


def test_a_stopped_answer_keeps_what_was_finished_and_the_next_one_works(answers, conversation, monkeypatch):
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


def test_what_happened_is_kept_of_what_the_model_really_emitted(answers, conversation, pipeline, monkeypatch):
    answers.ask(conversation, "draw and play", [], {})
    wait(conversation)
    [turn] = conversation.turns
    assert [kind for kind, _ in turn.signals] == [part["type"] for part in turn.answer if part["type"] != "text"]
    assert all(run == pipeline.signal_tokens[kind] for kind, run in turn.signals)
    with pipeline._lock:
        answers.ask(conversation, "draw", [], {})
        answers.stop(conversation)  # it waits for another of the pipeline's callers
        wait(conversation)
    assert conversation.turns[1].note == STOPPED and conversation.turns[1].timings is None


def test_a_question_that_waits_leaves_the_line_as_soon_as_it_is_stopped(answers, pipeline):
    first, second = answers.store.create(), answers.store.create()
    with pipeline._lock:  # as if a long answer were being given
        answers.ask(first, "hello", [], {})
        answers.ask(second, "hello", [], {})
        answers.stop(second)
        assert second.turns[0].note == STOPPED and not second.busy and first.busy
        answers.ask(second, "its place is free", [], {})
    wait(first)
    wait(second)
    assert first.turns[0].answer and second.turns[1].answer and not second.turns[0].answer


def test_whose_files_take_long_to_check_stands_behind_whoever_asked_meanwhile(answers, pipeline, slow):
    began, go_on = slow
    first, second = answers.store.create(), answers.store.create()
    asking = threading.Thread(target=answers.ask, args=(first, "slow", [], {}))
    asking.start()
    assert began.wait(60)
    with pipeline._lock:
        answers.ask(second, "hello", [], {})
        go_on.set()
        asking.join()
        assert (answers.place(second), answers.place(first)) == (0, 1)
    wait(first)


def test_nothing_else_is_done_to_a_conversation_while_another_is_put_in_its_place(answers, conversation, slow):
    began, go_on = slow
    other = answers.store.create()
    other.turns = [Turn(words("slow"), words("Yes."))]
    importing = threading.Thread(target=answers.take_over, args=(conversation, answers.export(other)))
    importing.start()
    assert began.wait(60)
    conversation.turns = [Turn(words("one"), words("1"))]
    changes = [
        lambda: answers.ask(conversation, "hello", [], {}),
        lambda: answers.retry(conversation, 0, {}),
        lambda: answers.edit(conversation, 0, {}, "other words"),
        lambda: answers.take_over(conversation, "conversation.zip"),
        *(lambda: answers.undo(conversation, 0), lambda: answers.clear(conversation), lambda: answers.export(conversation)),
    ]
    for change in changes:
        with pytest.raises(UserInputError, match="being read or changed at the moment"):
            change()
    go_on.set()
    importing.join()
    assert [turn.question for turn in conversation.turns] == [words("slow")] and not conversation.busy


def test_what_an_import_replaces_goes_with_its_files(answers, conversation):
    other = answers.store.create()
    other.turns = [Turn([other.keep_file(PICTURE), *words("What is this?")], words("Shapes."))]
    conversation.turns = [Turn([conversation.keep_file(PICTURE)], words("1"))]
    before = list(conversation.folder.iterdir())
    answers.take_over(conversation, answers.export(other))
    [turn] = conversation.turns
    assert list(conversation.folder.iterdir()) == [Path(turn.question[0]["path"])] != before


def test_whose_place_is_taken_while_the_files_are_checked_is_refused_and_nothing_stays(answers, pipeline, slow):
    began, go_on = slow
    conversation, *others = (answers.store.create() for _ in range(3))
    with pipeline._lock, ThreadPoolExecutor(1) as visitor:
        asking = visitor.submit(answers.ask, conversation, "slow", [str(PICTURE)], {})
        assert began.wait(60)
        for other in others:
            answers.ask(other, "hello", [], {})
        go_on.set()
        with pytest.raises(UserInputError, match="too many are waiting"):
            asking.result(60)
    assert not conversation.busy and not conversation.turns and not list(conversation.folder.iterdir())
    for other in others:
        wait(other)


def test_an_edit_that_is_refused_takes_nothing_back(answers, conversation):
    conversation.turns = [Turn(words("one"), words("1")), Turn(words("two"), words("2"))]
    with pytest.raises(UserInputError, match="tokens"):
        answers.edit(conversation, 0, {}, "long " * 10_000)
    with pytest.raises(UserInputError, match="seed is -1"):
        answers.edit(conversation, 0, {"seed": -1}, "short")
    assert [turn.answer for turn in conversation.turns] == [words("1"), words("2")] and not conversation.busy


def test_what_is_checked_is_what_is_answered(answers, conversation, pipeline, monkeypatch):
    checked = []
    monkeypatch.setattr(pipeline, "check", lambda messages, **options: checked.append(messages))
    conversation.turns = [Turn(words("lost"), note="Error: it failed", failed=True)]
    answers.ask(conversation, "hello", [], {})
    wait(conversation)
    answers.edit(conversation, 1, {}, "hello again")
    wait(conversation)
    assert [message["content"] for message in checked[0]] == [words("hello")]
    assert checked[1] == pipeline.asked


def test_a_retry_of_words_alone_gives_other_words(answers, conversation, pipeline):
    answers.ask(conversation, "hello", [], {"max_new_tokens": 8})
    wait(conversation)
    before = conversation.turns[0].answer
    answers.retry(conversation, 0, {"max_new_tokens": 8, "seed": 1})  # any could be one whose words are none
    wait(conversation)
    [turn] = conversation.turns
    assert [part["type"] for part in turn.answer] == ["text"] and turn.answer != before
    answers.retry(conversation, 0, {"max_new_tokens": 8, "do_sample": True, "temperature": 1e-6})
    wait(conversation)
    assert pipeline.options["temperature"] == 1e-6, "a temperature of the visitor's own stays"


def test_a_retry_that_finds_the_same_words_says_so(answers, conversation):
    answers.ask(conversation, "hello", [], {"max_new_tokens": 8})
    wait(conversation)
    before = conversation.turns[0].answer
    answers.retry(conversation, 0, {"max_new_tokens": 8, "do_sample": True, "temperature": 1e-6})
    wait(conversation)
    [turn] = conversation.turns
    assert turn.answer == before and turn.note == SAME


def test_what_is_switched_off_is_told_beside_the_answer(answers, conversation, pipeline, monkeypatch):
    reply = Reply({"role": "assistant", "content": words("Here.")}, token_ids=[5], switched_off=["image"])
    monkeypatch.setattr(pipeline, "stream", lambda *args, **options: [TextDelta("Here."), Finished(reply)])
    answers.ask(conversation, "draw", [], {"output_modalities": ["text"]})
    wait(conversation)
    [turn] = conversation.turns
    assert (turn.answer, turn.note) == (words("Here."), "Not made, because switched off: image.")


def test_a_turn_that_is_gone_is_told(answers, conversation):
    with pytest.raises(UserInputError, match="has changed meanwhile"):
        answers.undo(conversation, 0)


def wait(conversation) -> None:
    while conversation.busy:
        time.sleep(0.02)


def test_half_an_emoji_in_the_box_is_sent_as_the_replacement_character(answers, conversation):
    answers.ask(conversation, "hello \ud83d", [], {"max_new_tokens": 2})
    [turn] = conversation.turns
    assert turn.question == words("hello \ufffd")
    while conversation.busy:
        time.sleep(0.01)
    assert not turn.failed
