"""A small world to train in, one for each file: some tests damage what lies in it. And a small server to ask."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.instruct_data.teacher import TeacherSettings
from nextgpt.train.stages import load_for_training
from tiny_training import build_world, config_for

KEY = "sk-a-secret-key"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build_world(tmp_path_factory.mktemp("a world"))


@pytest.fixture(scope="module")
def processor(world: Path) -> NextGPTProcessor:
    return load_for_training(config_for(world, "instruct", world / "unused"))[1]


class TinyTeacher:
    """A local server that speaks OpenAI's chat completions, answers by a script and fails as it is told.

    Attributes:
        answers: first line of a prompt → its answer, or a function of the whole prompt and of its number.
        faults: what comes of the next requests, one by one: `status`, `body` in place of a completion, `headers`, and
            `seconds` before it; an empty one is no fault.
        busy: of a request, whether it is answered with 429; seconds: that a completion takes.
        key: what it may be authorised with.
        asked: the bodies of requests, in order of arrival; `keys`: what they were authorised with; `times`: when they came;
            `headers`: those of the last.
    """

    def __init__(self) -> None:
        self.answers: dict[str, str | dict | Callable] = {}
        self.faults: list[dict] = []
        self.busy: Callable[[dict], bool] = lambda body: False
        self.seconds = 0.0
        self.key = KEY
        self.asked: list[dict] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.answered = 0
        self.lock = threading.Lock()
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fault = teacher._arrive(body, self.headers)
                time.sleep(fault.get("seconds", 0))
                payload = (fault.get("body") or teacher._completion(body)).encode()
                self.send_response(fault.get("status", 200))
                for name, value in {"Content-Type": "application/json", **fault.get("headers", {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *arguments: None  # a client that hangs up
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def _arrive(self, body: dict, headers: Message) -> dict:
        with self.lock:
            self.asked.append(body)
            self.keys.append(headers.get("Authorization", ""))
            self.headers = headers
            self.times.append(time.monotonic())
            if self.busy(body):
                return {"status": 429, "body": '{"error": {"message": "busy"}}'}
            return self.faults.pop(0) if self.faults else {"seconds": self.seconds}

    @property
    def contents(self) -> list[str | list]:
        """The messages that it was asked."""
        return [body["messages"][0]["content"] for body in self.asked]

    def _completion(self, body: dict) -> str:
        content = body["messages"][0]["content"]
        prompt = content if isinstance(content, str) else "".join(part.get("text", "[shown]") for part in content)
        answer = self.answers.get(prompt.partition("\n")[0], self.answers.get("*", "So it is."))
        with self.lock:
            self.answered += 1
            answer = answer(prompt, self.answered) if callable(answer) else answer
        content = answer if isinstance(answer, str) else json.dumps(answer)
        message = {"role": "assistant", "content": content}
        return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"total_tokens": 100}})

    def settings(self, **changes) -> TeacherSettings:
        """How it is asked in tests: one by one, with short waits."""
        return TeacherSettings(self.url, "tiny", **{"concurrency": 1, "first_wait": 0.01, "timeout": 20.0, **changes})


@pytest.fixture
def teacher(monkeypatch) -> Iterator[TinyTeacher]:
    monkeypatch.setenv("NEXTGPT_TEACHER_API_KEY", KEY)
    tiny = TinyTeacher()
    yield tiny
    tiny.server.shutdown()
    tiny.server.server_close()
