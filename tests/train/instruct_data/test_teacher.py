"""A teacher that is slow, fails, limits, refuses or talks nonsense; runs that are killed, out of budget or out of disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nextgpt.errors import UserInputError
from nextgpt.train.instruct_data.generate import GenerationReport, generate
from nextgpt.train.instruct_data.record import Record


def run(folder: Path, teacher, count: int = 2, recipe: str = "evol-instruct", **changes) -> GenerationReport:
    return generate(recipe, folder / "out.jsonl", count, teacher.settings(**changes), model=None)


def entries(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out.jsonl.requests.jsonl").read_text().splitlines()][1:]


def conversations(folder: Path) -> list[list[dict]]:
    return [json.loads(line)["messages"] for line in (folder / "out.jsonl").read_text().splitlines()]


def failure(status: int, message: str = "busy", headers: dict | None = None, **error: str) -> dict:
    return {"status": status, "body": json.dumps({"error": {"message": message, **error}}), "headers": headers or {}}


def test_what_fails_for_a_time_is_asked_again_and_every_try_is_recorded(good, tmp_path) -> None:
    good.faults = [{}, failure(500), {"seconds": 3}, {"status": 502, "body": "<html>Bad gateway</html>"}]
    report = run(tmp_path, good, count=1, timeout=1.5)
    assert not report.stopped and report.conversations == 1
    assert [entry.get("failed", "")[:9] for entry in entries(tmp_path)] == [
        "",
        "500: busy",
        "no answer",
        "502: <htm",
        "",
        "",
    ]
    assert report.requests == len(good.asked) == 6 and report.tokens == 300


@pytest.mark.parametrize("name", ["Retry-After", "Retry-After-Ms"])
def test_retry_after_is_obeyed(name, good, tmp_path) -> None:
    value = {"Retry-After": "0.6", "Retry-After-Ms": "600"}[name]
    good.faults = [failure(429, headers={name: value})]
    assert not run(tmp_path, good, count=1).stopped
    assert good.times[1] - good.times[0] >= 0.6


def test_all_requests_wait_when_the_server_says_so(good, tmp_path) -> None:
    good.seconds, good.faults = 0.1, [failure(429, headers={"Retry-After": "0.6"})]
    assert not run(tmp_path, good, count=3, concurrency=2).stopped
    assert not [moment for moment in good.times[2:] if moment - good.times[0] < 0.6]


def test_a_request_that_waits_for_our_others_is_not_given_up(good, tmp_path) -> None:
    good.seconds, first = 0.05, []

    def busy(body: dict) -> bool:
        first.append(body)
        return body == first[0] and good.answered < 3

    good.busy = busy
    report = run(tmp_path, good, count=2, concurrency=2, retries=3, first_wait=0.02)
    assert not report.stopped and not report.dropped and report.conversations == 2


def test_a_wait_of_an_hour_ends_the_run_in_one_line(good, tmp_path) -> None:
    good.faults = [failure(429, "come back later", headers={"Retry-After": "3600"})]
    assert "asks to wait 3,600 s (429: come back later)" in run(tmp_path, good).stopped


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (failure(401, "Incorrect API key"), "refuses the key in NEXTGPT_TEACHER_API_KEY (401: Incorrect"),
        (failure(404, "no model tiny"), "has no model 'tiny'; check --teacher-model"),
        (failure(429, "quota", code="insufficient_quota"), "the quota is used up (429: quota)"),
    ],
)
def test_what_gets_no_better_ends_the_run_at_once_and_keeps_what_there_is(fault, expected, good, tmp_path) -> None:
    good.faults = [*[{}] * 4, fault]
    report = run(tmp_path, good, count=3)
    assert expected in report.stopped and "the same command goes on" in report.stopped
    assert report.conversations == len(conversations(tmp_path)) == 1 and len(good.asked) == 5


def test_a_refused_key_ends_the_run_though_others_were_answered_meanwhile(good, tmp_path) -> None:
    good.faults = [failure(401, "who are you?") | {"seconds": 0.5}]
    report = run(tmp_path, good, count=2, concurrency=2, retries=0)
    assert "refuses the key" in report.stopped and not report.dropped


def test_a_teacher_that_always_fails_ends_the_run(good, tmp_path) -> None:
    good.faults = [failure(503)] * 20
    assert "failed 3 times in a row, at last with 503: busy" in run(tmp_path, good, retries=2).stopped
    assert len(good.asked) == 3 and not (tmp_path / "out.jsonl").exists()


def test_answers_of_another_protocol_end_the_run_after_a_few(good, tmp_path) -> None:
    good.faults = [{"body": "<html>Welcome</html>", "headers": {"Content-Type": "text/html"}}] * 20
    stopped = run(tmp_path, good).stopped
    assert "5 answers in a row were of no use (not a chat completion: <html>Welcome</html>)" in stopped


@pytest.mark.parametrize("thoughts", ["<think>What is it?</think>\n\n", "What is it?</think>"])
def test_the_reasoning_of_a_teacher_is_no_part_of_its_answers(thoughts, good, tmp_path) -> None:
    good.answers["Compare two tasks."] = f"{thoughts}Yes, it asks for more."
    good.answers["Answer a task."] = f"{thoughts}It is made of salt."
    report = run(tmp_path, good, count=1)
    assert conversations(tmp_path)[0][1]["content"] == "It is made of salt." and report.cleaned == {"reasoning": 2}


def said(content: object, **more: object) -> str:
    return json.dumps({"choices": [{"message": {"content": content}, **more}]})


@pytest.mark.parametrize(
    "body",
    ['{"choices": []}', "[]", "{", said(None), said([{"type": "text", "text": 5}]), said("So.", finish_reason=[]), said(5)],
)
def test_a_malformed_completion_costs_its_candidate_alone(body, good, tmp_path) -> None:
    good.faults = [{"body": body}]
    report = run(tmp_path, good, count=1)
    assert not report.stopped and report.dropped.total() == 1 and report.conversations == 1


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_that_was_cut_off_costs_its_candidate_alone(reason, good, tmp_path) -> None:
    good.faults = [{"body": json.dumps({"choices": [{"message": {"content": "It is"}, "finish_reason": reason}]})}]
    (dropped,) = run(tmp_path, good, count=1).dropped
    assert "cut off" in dropped and len(conversations(tmp_path)) == 1


def test_a_refused_request_costs_its_candidate_alone_and_is_not_asked_again(good, tmp_path) -> None:
    good.faults = [failure(400, "content policy")]
    report = run(tmp_path, good, count=1)
    assert report.dropped == {"refused by the teacher (400)": 1} and not report.stopped
    asked = len(good.asked)
    assert run(tmp_path, good, count=1).dropped == report.dropped and len(good.asked) == asked


def test_a_model_that_takes_other_parameters_gets_those(good, tmp_path) -> None:
    good.faults = [failure(400, "use max_completion_tokens"), failure(400, "temperature: only the default is supported")]
    assert not run(tmp_path, good, count=1, retries=0).stopped, "that is no failure"
    assert "max_completion_tokens" in good.asked[-1] and not {"max_tokens", "temperature"} & set(good.asked[-1])


def test_an_unreachable_teacher_is_said_at_once(tmp_path, good) -> None:
    settings = good.settings()
    good.server.shutdown()
    good.server.server_close()
    report = generate("evol-instruct", tmp_path / "out.jsonl", 1, settings, model=None)
    assert f"{settings.url}: cannot be reached" in report.stopped and report.requests == 0


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://[1/v1"])
def test_an_address_that_is_none_is_refused_by_name(url, tmp_path, good) -> None:
    with pytest.raises(UserInputError, match="--teacher: not an address"):
        generate("evol-instruct", tmp_path / "out.jsonl", 1, replace(good.settings(), url=url), model=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [("temperature", float("nan")), ("timeout", 0), ("retries", -1)])
def test_a_number_that_cannot_be_is_refused_by_its_option(name, value, good, tmp_path) -> None:
    with pytest.raises(UserInputError, match=f"--{name} is {value:g}, expected 0"):
        run(tmp_path, good, **{name: value})


@pytest.mark.parametrize("limit", ["max_requests", "max_tokens"])
def test_a_budget_holds_for_all_runs_together_and_can_be_raised(limit, good, tmp_path) -> None:
    budget = {"max_requests": 5, "max_tokens": 2700}[limit]
    report = run(tmp_path, good, count=9, concurrency=4, **{limit: budget})
    assert f"the budget of {budget:,}" in report.stopped and f"raise --{limit.replace('_', '-')}" in report.stopped
    used = report.requests if limit == "max_requests" else report.tokens
    assert 0 < used <= budget and len(good.asked) == report.requests
    assert limit == "max_tokens" or used == budget
    again = run(tmp_path, good, count=9, **{limit: budget})
    assert again.requests == report.requests == len(good.asked), "a spent budget asks nothing more"
    raised = run(tmp_path, good, count=2, **{limit: 10 * budget})
    assert not raised.stopped and raised.conversations == 2


@pytest.mark.parametrize("recipe", ["self-instruct", "evol-instruct", "modality-switching"])
def test_a_run_that_is_killed_goes_on_and_asks_nothing_twice(recipe, good, tmp_path) -> None:
    assert run(tmp_path, good, count=3, recipe=recipe).conversations == 3
    file, record = tmp_path / "out.jsonl", tmp_path / "out.jsonl.requests.jsonl"
    before, lines = conversations(tmp_path), record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines[:-1]) + lines[-1][:30])  # killed while it wrote the last line
    file.unlink()
    good.asked.clear()
    report = run(tmp_path, good, count=3, recipe=recipe, concurrency=3)
    assert good.asked[0] == json.loads(lines[-1])["request"], "the answer that was cut off is asked for again"
    kept = [json.loads(line)["request"] for line in lines[1:-1]]
    assert report.conversations == 3 and not [body for body in good.asked if body in kept]
    assert conversations(tmp_path)[0] == before[0]
    good.asked.clear()
    run(tmp_path, good, count=3, recipe=recipe)
    assert not good.asked


def test_a_run_goes_on_to_more_conversations_than_it_was_begun_with(good, tmp_path) -> None:
    first = run(tmp_path, good, count=2)
    kept, asked = conversations(tmp_path), len(good.asked)
    more = run(tmp_path, good, count=4)
    assert conversations(tmp_path)[:2] == kept and more.conversations == 4
    assert run(tmp_path, good, count=2).conversations == len(conversations(tmp_path)) == 4, "none is lost"
    assert more.requests == len(good.asked) and first.requests == asked


def test_another_run_on_the_same_file_is_refused_by_what_differs(good, tmp_path) -> None:
    run(tmp_path, good, count=1)
    with pytest.raises(UserInputError, match="was begun with recipe evol-instruct, now it is self-instruct; give"):
        run(tmp_path, good, recipe="self-instruct")
    with pytest.raises(UserInputError, match="was begun with temperature 1.0, now it is 0.5"):
        run(tmp_path, good, temperature=0.5)
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(UserInputError, match="is there already, and no run made it"):
        generate("evol-instruct", tmp_path / "other.jsonl", 1, good.settings(), model=None)


def test_two_runs_on_one_file_at_once_are_refused(good, tmp_path) -> None:
    with (
        Record(tmp_path / "out.jsonl.requests.jsonl"),
        pytest.raises(
            UserInputError, match="out.jsonl.requests.jsonl: another run is at work on it; wait for its end, or name"
        ),
    ):
        run(tmp_path, good, count=1)
    assert not good.asked and run(tmp_path, good, count=1).conversations == 1


def test_a_run_that_is_stopped_before_it_is_as_far_as_the_one_before_it_leaves_its_file(good, tmp_path) -> None:
    run(tmp_path, good, count=3)
    before = (tmp_path / "out.jsonl").read_bytes()
    record = tmp_path / "out.jsonl.requests.jsonl"
    record.write_bytes(b"".join(record.read_bytes().splitlines(keepends=True)[:-4]))  # as if restored from elsewhere
    good.faults = [failure(401, "who are you?")]
    report = run(tmp_path, good, count=3)
    assert report.stopped and report.conversations == 3 and (tmp_path / "out.jsonl").read_bytes() == before


def test_requests_that_ctrl_c_breaks_off_count(good, tmp_path) -> None:
    good.answers["Answer a task."] = lambda prompt, number: os.kill(os.getpid(), signal.SIGINT) or time.sleep(0.5) or "So."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs lack
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, good, count=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [entry.get("failed") for entry in entries(tmp_path)] == [None, None, "broken off"]
    good.answers["Answer a task."] = "So it is made of salt."
    assert run(tmp_path, good, count=1).requests == len(good.asked) == 4


def test_a_run_that_got_no_answer_may_be_begun_anew_with_other_settings(good, tmp_path) -> None:
    good.faults = [failure(404, "no such model")]
    assert "has no model" in run(tmp_path, good, count=1).stopped
    assert run(tmp_path, good, count=1, temperature=0.5).conversations == 1


def test_a_full_disk_in_mid_run_is_one_line_and_loses_nothing(good, tmp_path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))  # a line of the record has some 1,000 bytes
    try:
        report = run(tmp_path, good, count=9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "out.jsonl.requests.jsonl: cannot be written (File too large); make room" in report.stopped
    kept = entries(tmp_path)
    assert 0 < len(kept) == report.requests and report.conversations == len(conversations(tmp_path)) > 0
    asked = len(good.asked)
    assert asked == len(kept) + 1
    assert run(tmp_path, good, count=2).conversations == 2
    assert not [body for body in good.asked[asked:] if body in [entry["request"] for entry in kept]]


def test_the_key_is_sent_and_stands_in_no_record_and_no_message(good, tmp_path, caplog) -> None:
    caplog.set_level("DEBUG")
    good.answers["Compare two tasks."] = f"Yes. Your key is {good.key}."
    good.faults = [{}, {}, {}, failure(500, f"key {good.key} is overloaded"), failure(401, f"{good.key} is wrong")]
    report = run(tmp_path, good, count=3)
    assert set(good.keys) == {f"Bearer {good.key}"} and "*** is wrong" in report.stopped
    written = "".join(file.read_text() for file in tmp_path.iterdir()) + caplog.text + report.stopped
    assert "***" in written and good.key not in written


def test_a_key_that_a_server_escapes_or_that_stands_where_its_words_are_cut_is_in_no_record(good, tmp_path) -> None:
    escaped = json.dumps({"choices": [{"message": {"content": f"It is {good.key}."}}]}).replace("sk-", "\\u0073k-")
    good.faults = [{"body": escaped}, failure(500, f"{'x' * 190} {good.key}"), {"body": f"{'x' * 190} {good.key}"}]
    run(tmp_path, good, count=1)
    assert "It is ***." in [entry.get("answer") for entry in entries(tmp_path)]
    assert "sk-" not in "".join(file.read_text() for file in tmp_path.iterdir())


@pytest.mark.parametrize("key", ["sk-with a-space", "sk-two\nlines", "sk-schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_by_its_variable_and_not_shown(key, good, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NEXTGPT_TEACHER_API_KEY", key)
    with pytest.raises(UserInputError, match="NEXTGPT_TEACHER_API_KEY: holds a space") as refused:
        run(tmp_path, good)
    assert "sk-" not in str(refused.value) and not good.asked and not list(tmp_path.iterdir())


def test_openais_key_goes_to_openai_alone_and_an_address_holds_none(good, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("NEXTGPT_TEACHER_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-openai-alone")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-for-openai-alone")
    good.faults = [failure(401, "who are you?")]
    assert "asks for a key: set NEXTGPT_TEACHER_API_KEY" in run(tmp_path, good).stopped
    assert good.keys == ["Bearer none"] and "for-openai-alone" not in str(good.headers)
    with pytest.raises(UserInputError, match="give the key in NEXTGPT_TEACHER_API_KEY"):
        generate(
            "evol-instruct", tmp_path / "b.jsonl", 1, replace(good.settings(), url="http://me:pw@localhost:1/v1"), model=None
        )
