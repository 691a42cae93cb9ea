"""A small teacher: a local server that speaks OpenAI's chat completions, answers by a script and fails as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nextgpt.train.instruct_data.teacher import TeacherSettings

KEY = "sk-a-secret-key"


class TinyTeacher:
    """The server, what it was asked, and what it answers.

    Attributes:
        answers: first line of a prompt → its answer, or a function of the whole prompt and of its number.
        faults: what comes of the next requests, one by one: `status`, `body` in place of a completion, `headers`, and
            `seconds` before it; an empty one is no fault.
        busy: of a request, whether it is answered with 429; seconds: that a completion takes.
        key: what it may be authorised with.
        asked: the bodies of requests, in order of arrival; `keys`: what they were authorised with; `times`: when they came.
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
                fault = teacher._arrive(body, self.headers.get("Authorization", ""))
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

    def _arrive(self, body: dict, key: str) -> dict:
        with self.lock:
            self.asked.append(body)
            self.keys.append(key)
            self.times.append(time.monotonic())
            if self.busy(body):
                return {"status": 429, "body": '{"error": {"message": "busy"}}'}
            return self.faults.pop(0) if self.faults else {"seconds": self.seconds}

    def _completion(self, body: dict) -> str:
        prompt = body["messages"][0]["content"]
        first = prompt.partition("\n")[0]
        answer = self.answers.get(first, self.answers.get("*", "So it is."))
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


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Three of a user's media, with captions. Only their names count here."""
    folder = tmp_path / "my"
    (folder / "images").mkdir(parents=True)
    (folder / "audios").mkdir()
    found = [("image", "a red barn in the snow"), ("image", "two boats on a lake"), ("audio", "a church bell rings twice")]
    records = []
    for number, (kind, caption) in enumerate(found):
        name = f"{number}.{'png' if kind == 'image' else 'wav'}"
        _write(kind, folder / f"{kind}s" / name, number)
        records.append({f"{kind}_name": name, "caption": caption})
    file = folder / "captions.json"
    file.write_text(json.dumps(records))
    return file


def _write(kind: str, file: Path, number: int) -> None:
    if kind == "image":
        from PIL import Image

        Image.new("RGB", (64, 64), (40 * number + 40, 90, 200)).save(file)
    else:
        import numpy as np
        import soundfile

        soundfile.write(file, 0.1 * np.sin(np.arange(16000) * 0.2), 16000)


WISH = {"user": "I would like a recording or a picture, please.", "assistant": "Here it is for you."}
TALK = {"exchanges": [{"user": "What do we have here?", "assistant": "Something quite ordinary."}]}


def dialogue(prompt: str, number: int) -> dict:
    """Three exchanges that no others are like; the user shows what the prompt offers."""
    word = [f"{letter}{number}" for letter in "abcdefghijkl"]
    shown = "[image: a red barn in the snow]" if "[image: a red barn in the snow]" in prompt else "Please."
    return {
        "exchanges": [
            {"user": f"{shown} Draw {word[0]} {word[1]}.", "assistant": f"{word[2]} {word[3]} [image: river {number}]"},
            {"user": f"Play {word[4]} {word[5]}.", "assistant": f"{word[6]} {word[7]} [audio: water {number}]"},
            {"user": f"Thanks {word[8]} {word[9]}.", "assistant": f"{word[10]} {word[11]}"},
        ]
    }


def tasks(prompt: str, number: int) -> dict:
    """Four new tasks that no others are like."""
    fields = "tea fog rust owls maps salt jazz ice".split()
    words = [f"{field}{number}" for field in fields]
    return {
        "tasks": [
            {"kind": "generation", "instruction": f"Tell about {words[0]} and {words[1]} briefly."},
            {"kind": "generation", "instruction": f"Draw {words[2]} beside {words[3]}."},
            {"kind": "classification", "instruction": f"Does {words[4]} mean {words[5]}, yes or no?"},
            {"kind": "generation", "instruction": f"Compare {words[6]} with {words[7]} in a table."},
        ]
    }


@pytest.fixture
def good(teacher: TinyTeacher) -> TinyTeacher:
    """A teacher that does what it is asked."""
    teacher.answers = {
        "Invent tasks for an assistant.": tasks,
        "Do a task.": lambda prompt, number: {"input": "", "output": f"It is number {number}."},
        "Make examples of a classification.": {
            "labels": ["yes", "no"],
            "examples": [{"label": "yes", "input": "It does."}, {"label": "no", "input": "It never will."}],
        },
        "Compare two tasks.": "Yes, it asks for more.",
        "Answer a task.": lambda prompt, number: f"First comes part {number}, then the rest of it.",
        "Write a conversation in words and media.": dialogue,
        "Write a wish for a medium.": WISH,
        "Write a conversation about a medium.": TALK,
        "Describe a medium.": TALK,
        "Think about a medium.": TALK,
        "*": lambda prompt, number: {"instruction": f"Explain step number {number} of {number + 3} in detail."},
    }
    return teacher
