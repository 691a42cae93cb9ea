"""Many requests, clients that go away, answers that fail or take too long, and what is left of them."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from openai import APIError, OpenAI
from PIL import Image

from nextgpt.errors import DeadlineExceeded, EngineError, MachineLost, QueueFullError
from nextgpt.events import Finished, MediaDone, MediaStarted, Reply, TextDelta
from nextgpt.serve.gate import FairSemaphore
from nextgpt.serve.media_store import KeptAnswer, MediaStore
from nextgpt.serve.server import listen
from nextgpt.serve.settings import ServerSettings
from tiny_server import ASK, FAST, MODEL, error_of, run_async, send, serving

PICTURE = Image.new("RGB", (8, 8), "red")


class Scripted:
    """A pipeline that says what it is told to: words until it may end, or an error.

    Attributes:
        going_on: while it is not set, an answer goes on.
        stopped: answers that a cancel has ended.
    """

    input_modalities = ("text", "image")
    output_modalities = ("text", "image")
    decoders = {}

    def __init__(self, error: Exception | None = None):
        self.error, self.may_end = error, threading.Event()
        self.running = self.stopped = 0
        self.word = "."

    def new_session(self):
        return None

    def stream(self, messages, *, session, cancel, **options):
        self.running += 1
        yield TextDelta("a word")
        yield MediaStarted(0, "image", 1)
        yield MediaDone(0, "image", PICTURE, 1, 0.1)
        while not self.may_end.wait(0.01) and not cancel.is_set():
            yield TextDelta(self.word)
        if self.error:
            raise self.error
        self.running -= 1
        self.stopped += cancel.is_set()
        content = [{"type": "text", "text": "a word"}, {"type": "image", "image": PICTURE, "seed": 1}]
        yield Finished(Reply({"role": "assistant", "content": content}, finished=not cancel.is_set()))


def until(condition, seconds=10.0):
    """Waits for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def start(address, **more):
    """A request that is sent, and whose answer is not read yet."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    body = json.dumps(ASK | {"modalities": None} | more).encode()
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection


def test_requests_are_answered_together_each_as_it_would_be_alone(address, pipe):
    bodies = [ASK | {"messages": [{"role": "user", "content": f"hello {i}"}], "max_completion_tokens": 30} for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = [answer for _, _, answer in pool.map(lambda body: send(address, body), bodies)]
    alone = [pipe(body["messages"], output_modalities=("text",), max_new_tokens=30) for body in bodies]
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == [reply.text for reply in alone]
    sizes = [line for line in metrics(address).splitlines() if line.startswith("nextgpt_engine_steps_by_size_total")]
    assert any('size="1"' not in line for line in sizes), sizes


@pytest.mark.parametrize("error", [QueueFullError, DeadlineExceeded, EngineError, MachineLost])
def test_errors_of_the_engine_have_their_own_status(error):
    pipe = Scripted(error("the reason"))
    pipe.may_end.set()
    expected = {
        QueueFullError: (429, None, "rate_limit_exceeded"),
        DeadlineExceeded: (504, None, "deadline_exceeded"),
        EngineError: (503, None, "worker_crashed"),
        MachineLost: (503, None, "machine_lost"),
    }
    with serving(pipe) as address:
        assert error_of(address, ASK) == expected[error]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_stops_when_its_client_goes_away(stream):
    pipe = Scripted()
    with serving(pipe) as address:
        connection = start(address, stream=stream)
        until(lambda: pipe.running)
        connection.close()
        until(lambda: pipe.stopped == 1)
        until(lambda: "nextgpt_requests_in_progress 0.0" in metrics(address))
        assert "nextgpt_cancelled_total 1.0" in metrics(address)
        # Of a stream that was stopped the client has the picture; of a whole answer nobody got its address.
        assert f"nextgpt_kept_media {float(stream)}" in metrics(address)


def metrics(address):
    with urlopen(f"{address}/metrics") as answer:
        return answer.read().decode()


def test_more_than_may_wait_are_refused_and_the_others_answered():
    pipe = Scripted()
    with serving(pipe, max_running=2, max_waiting=1) as address:
        started = [start(address) for _ in range(3)]
        until(lambda: pipe.running == 2 and "nextgpt_requests_in_progress 3.0" in metrics(address))
        status, headers, answer = send(address, ASK)
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(headers["Retry-After"]) > 0 and "max_waiting" in answer["error"]["message"]
        pipe.may_end.set()
        assert [connection.getresponse().status for connection in started] == [200, 200, 200]
        assert send(address, ASK)[0] == 200


def test_one_key_cannot_take_all_places():
    pipe = Scripted()
    with serving(pipe, max_per_key=1, api_keys=("first-key", "second-key")) as address:
        with ThreadPoolExecutor() as pool:
            first = pool.submit(send, address, ASK, Authorization="Bearer first-key")
            until(lambda: pipe.running == 1)
            assert send(address, ASK, Authorization="Bearer first-key")[0] == 429
            second = pool.submit(send, address, ASK, Authorization="Bearer second-key")
            until(lambda: pipe.running == 2)
            pipe.may_end.set()
            assert first.result()[0] == second.result()[0] == 200


def test_an_answer_that_takes_too_long_is_stopped():
    pipe = Scripted()
    with serving(pipe, deadline=0.3) as address:
        assert error_of(address, ASK) == (504, None, "deadline_exceeded")
        until(lambda: pipe.stopped == 1)


def test_one_that_waits_too_long_is_told_so_while_others_still_run():
    pipe = Scripted()
    with serving(pipe, max_running=1, deadline=0.6) as address, ThreadPoolExecutor() as pool:
        first = pool.submit(error_of, address, ASK)
        until(lambda: pipe.running == 1)
        second = pool.submit(error_of, address, ASK)
        assert second.result() == first.result() == (504, None, "deadline_exceeded")
        until(lambda: "nextgpt_requests_in_progress 0.0" in metrics(address))


def test_of_those_who_wait_the_one_with_the_fewest_running_comes_next():
    async def order():
        turns, came = FairSemaphore(2), []

        async def ask(owner):
            await turns.take(owner)
            came.append(owner)

        await ask("many"), await ask("many")
        waiting = [asyncio.create_task(ask(owner)) for owner in ("many", "many", "few", "gone")]
        await asyncio.sleep(0)
        waiting[3].cancel()
        for _ in range(5):
            turns.give(came.pop(0)) if came else None
            await asyncio.sleep(0)
            order_of.extend(came[-1:])
        return turns.free

    order_of: list[str] = []
    assert run_async(order()) >= 0 and order_of[0] == "few"


def test_what_is_wrong_from_the_start_of_a_stream_has_its_status():
    pipe = Scripted()
    pipe.stream = lambda *_, **__: iter([]) if pipe.running else raise_error()

    def raise_error():
        raise QueueFullError("many wait")

    with serving(pipe) as address:
        assert error_of(address, ASK | {"stream": True}) == (429, None, "rate_limit_exceeded")


def test_a_client_that_does_not_read_its_stream_does_not_hold_its_place():
    pipe = Scripted()
    pipe.word = "x" * 100_000
    with serving(pipe, send_seconds=0.5) as address:
        connection = start(address, stream=True)
        until(lambda: pipe.running == 1)
        until(lambda: pipe.stopped == 1, seconds=20)
        until(lambda: "nextgpt_requests_in_progress 0.0" in metrics(address))
        connection.close()


def test_an_error_in_mid_stream_is_an_error_chunk(caplog):
    pipe = Scripted(RuntimeError("the details"))
    pipe.may_end.set()
    with serving(pipe) as address, OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        got = []
        with pytest.raises(APIError) as error:
            for chunk in client.chat.completions.create(model=MODEL, messages=ASK["messages"], stream=True):
                got.append(chunk)
        assert error.value.code == "internal_error" and "details" not in str(error.value)
        assert got[1].choices[0].delta.content == "a word"
        assert not any(choice.finish_reason for chunk in got for choice in chunk.choices)
        assert caplog.text.count("RuntimeError: the details") == 1
        assert error_of(address, ASK) == (500, None, "internal_error")
        assert "nextgpt_kept_media 1.0" in metrics(address), "that of the stream, whose client has it"
    assert caplog.text.count("RuntimeError: the details") == 2


def test_media_are_gone_when_their_time_is_over_and_at_the_end(pipe):
    with serving(pipe, media_seconds=2) as address:
        body = ASK | FAST | {"require": {"image": 1}, "max_completion_tokens": 12}
        body["modalities"] = ["text", "image"]
        (part,) = [each for each in send(address, body)[2]["choices"][0]["message"]["parts"] if each["type"] == "image"]
        with urlopen(part["url"]) as file:
            assert file.headers["X-Content-Type-Options"] == "nosniff"
        until(lambda: time.time() > part["expires_at"])
        with pytest.raises(HTTPError, match="404"):
            urlopen(part["url"])


def test_the_oldest_media_go_where_there_are_too_many():
    store = MediaStore(ServerSettings(max_kept_media=2))
    kept = [store.keep("image", PICTURE, seed, "", KeptAnswer()) for seed in range(3)]
    assert [store.find(each.id) is not None for each in kept] == [False, True, True]
    assert [each.path.exists() for each in kept] == [False, True, True]
    assert len({each.id for each in kept}) == 3 and all(len(each.id) >= 32 for each in kept)
    small = MediaStore(ServerSettings(max_kept_bytes=kept[0].size))
    kept = [small.keep("image", PICTURE, seed, "", KeptAnswer()) for seed in range(2)]
    assert [small.find(each.id) is not None for each in kept] == [False, True]
    folders = (store.folder, small.folder)
    store.close(), small.close()
    assert not any(folder.exists() for folder in folders)


def test_when_it_closes_answers_stop_and_nothing_stays():
    pipe = Scripted()
    with serving(pipe, max_running=1, max_waiting=4) as address:
        connection = start(address, stream=True)
        until(lambda: pipe.running)
        waiting = start(address)
        until(lambda: "nextgpt_requests_in_progress 2.0" in metrics(address))
    assert pipe.stopped == pipe.running + 1 == 1, "what waited is not begun any more"
    assert waiting.getresponse().status == 503
    connection.close()
    with pytest.raises(OSError):
        urlopen(f"{address}/health", timeout=2)


def test_requests_are_counted(address):
    before = metrics(address)
    body = ASK | FAST | {"require": {"image": 1}, "max_completion_tokens": 12, "modalities": None}
    assert send(address, body)[0] == 200
    after = metrics(address)

    def value(text, name):
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    assert value(after, 'nextgpt_engine_done_total{worker="language_model"}') > 0
    assert value(after, 'nextgpt_engine_batches_by_size_total{size="1",worker="image"') > 0
    assert value(after, 'nextgpt_engine_active{worker="language_model"}') == 0
    counted = (
        'nextgpt_requests_total{path="/v1/chat/completions",status="200"}',
        'nextgpt_media_seconds_count{kind="image"}',
        "nextgpt_first_token_seconds_count",
    )
    assert [value(after, name) - value(before, name) for name in counted] == [1, 1, 1]
    assert value(after, 'nextgpt_tokens_total{kind="completion"}') > value(before, 'nextgpt_tokens_total{kind="completion"}')


def test_what_is_written_is_sent_at_once():
    """Or an answer would wait 40 ms for the acknowledgement of its headers."""

    async def is_sent_at_once() -> bool:
        listening, found = listen("127.0.0.1", 0), asyncio.Queue()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            await found.put(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(connected, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            writer.close()
            return bool(await asyncio.wait_for(found.get(), 10))

    assert run_async(is_sent_at_once())
