"""`nextgpt serve` as a process of its own, and the README's example of it, word for word."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nextgpt.hub.parts import preset_names

README = Path(__file__).parents[3] / "README.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("nano" not in preset_names(), reason="the nano weights are not in this checkout"),
]


def example() -> str:
    """The README's lines from the client's import on."""
    lines = README.read_text(encoding="utf-8").partition("    from openai import OpenAI\n")[2].splitlines()
    own = [line for i, line in enumerate(lines) if all(not each or each.startswith("    ") for each in lines[: i + 1])]
    return "\n".join(["from openai import OpenAI", *(line.removeprefix("    ") for line in own)])


def test_the_readme_s_example_runs_and_nothing_stays(tmp_path):
    command = [sys.executable, "-m", "nextgpt", "serve", "--port", "0"]
    surroundings = {**os.environ, "TMPDIR": str(tmp_path), "NEXTGPT_API_KEY": "a-key-of-the-test"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=surroundings) as server:
        try:
            address = server.stdout.readline().split(" at ")[1].split(" ")[0]
            program = example().replace("http://127.0.0.1:8000/v1", address).replace("unused", "a-key-of-the-test")
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count(f"![image]({address}/media/") == 2
            assert list(tmp_path.glob("nextgpt-media-*/*.png"))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=30)
    assert not list(tmp_path.glob("nextgpt-media-*"))


def test_what_is_wrong_is_told_before_anything_is_loaded():
    for arguments, expected in ((["--host", "0.0.0.0"], "--api-key"), (["--api-key", "short"], "8 printable")):
        command = [sys.executable, "-m", "nextgpt", "serve", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr


def test_a_taken_port_is_told_before_anything_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "nextgpt", "serve", "--port", port, "--model", str(tmp_path / "nothing")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"cannot listen on 127.0.0.1, port {port}" in done.stderr
