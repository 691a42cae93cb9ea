"""A server over a tiny random model, in this process, on a port of its own."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from urllib.parse import urlsplit

import numpy as np
import soundfile
from PIL import Image

from nextgpt import NextGPTPipeline
from nextgpt.serve.server import Server
from nextgpt.serve.settings import ServerSettings
from tiny_models import DECODERS, save_tiny_any_to_any

FAST = {"image": {"num_inference_steps": 1}, "audio": {"num_inference_steps": 1, "duration": 0.2}}
FAST |= {"video": {"num_inference_steps": 1}}
MODEL = "tiny"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
ASK |= {"max_completion_tokens": 4, "modalities": ["text"]}


def tiny_pipeline(folder: Path, kinds: Sequence[str] = tuple(DECODERS)) -> NextGPTPipeline:
    """A model that answers with these kinds of media."""
    return NextGPTPipeline.from_pretrained(save_tiny_any_to_any(folder, kinds))


@contextmanager
def serving(pipe: NextGPTPipeline, **settings) -> Iterator[str]:
    """A server with these settings; gives its address."""
    addresses: Queue[str] = Queue()
    running = Server(pipe, ServerSettings(model=MODEL, port=0, **settings))
    thread = threading.Thread(target=running.run, kwargs={"on_ready": addresses.put})
    thread.start()
    try:
        yield addresses.get(timeout=30)
    finally:
        running.stop()
        thread.join()


def data_url(kind: str = "image", size: int = 32) -> str:
    """A small file as a data: URL: `image`, `audio`, or `moving`, which is a picture and a clip."""
    file = io.BytesIO()
    if kind == "image":
        Image.new("RGB", (size, size), "red").save(file, "PNG")
    elif kind == "moving":
        frames = [Image.new("RGB", (size, size), color) for color in ("red", "blue", "green", "white")]
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=250)
    else:
        soundfile.write(file, np.sin(np.arange(16_000) / 10), 16_000, format="WAV")
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def send(address: str, body: object, path: str = "/v1/chat/completions", method: str = "POST", **headers: str) -> tuple:
    """Status, headers and JSON of an answer; `body` is sent as it is where it is bytes."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    given = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, data, given)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, answer.headers, json.loads(text) if text.startswith(b"{") else text
    finally:
        connection.close()


def error_of(address: str, body: object, **more: str) -> tuple[int, str | None, str | None]:
    """Status, field and code of an error."""
    status, _, answer = send(address, body, **more)
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return status, error["param"], error["code"]


def run_async(coroutine: Coroutine) -> object:
    """Its result, from a thread of its own: a browser's tests leave an event loop running in theirs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
