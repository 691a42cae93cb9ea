"""Downloads from a server on this machine that speaks what huggingface_hub asks for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nextgpt.__main__ import main
from nextgpt.hub.download import RemoteFile, _needed
from nextgpt.hub.parts import is_repository_name
from tiny_models import tiny_config

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[3]
COMMIT = "a" * 40
WEIGHTS = os.urandom(24_000_000)  # huggingface_hub takes a connection up after every ten megabytes
BREAK = 21_000_000
FILES = {
    "org/llm": {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"the same weights once more",
        "README.md": b"# not needed",
    },
    "org/decoder": {
        "model_index.json": b"{}",
        "unet/config.json": b'{"sample_size": 8}',
        "unet/diffusion_pytorch_model.safetensors": WEIGHTS[:1000],
        "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
        "safety_checker/model.safetensors": b"unused",
        "v1-5-pruned.safetensors": b"a whole checkpoint",
    },
}


class Hub(BaseHTTPRequestHandler):
    """Answers for repositories, and for their files by byte ranges; breaks the connection in the first large file."""

    protocol_version = "HTTP/1.1"
    asked: Counter = Counter()
    breaks_left = 0
    damaged: set[str] = set()
    stalls = False  # in the first large file, until the one who asks is gone
    stalled = threading.Event()

    def do_HEAD(self) -> None:
        self.answer(send=False)

    def do_GET(self) -> None:
        self.answer(send=True)

    def answer(self, send: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            describe = self.list_tree if "/tree/" in path else self.describe
            return describe("/".join(path.split("/")[2:4]), send)
        repository, name = "/".join(path.split("/")[:2]), "/".join(path.split("/")[4:])
        content = FILES.get(repository, {}).get(name)
        if content is None:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, send)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if send:
            Hub.asked[name, start > 0] += 1
        if send and name in Hub.damaged:
            Hub.damaged.discard(name)
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.reply(206 if start else 200, content[start:], headers, send)

    def describe(self, repository: str, send: bool) -> None:
        if repository not in FILES:
            return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, send)
        siblings = []
        for name, content in FILES[repository].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            sibling = {"rfilename": name, "size": len(content), "blobId": blob}
            if not name.endswith(".json"):
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 100}
            siblings.append(sibling)
        info = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, send)

    def list_tree(self, repository: str, send: bool) -> None:
        entries = []
        for name, content in FILES[repository].items():
            entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if not name.endswith(".json"):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 100}
            entries.append(entry)
        self.reply(200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, send)

    def reply(self, code: int, content: bytes, headers: dict, send: bool) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not send:
            return
        if Hub.stalls and len(content) > BREAK:
            self.wfile.write(content[:BREAK])
            Hub.stalls = False
            Hub.stalled.set()
            with suppress(ConnectionError):
                self.rfile.read(1)
            self.close_connection = True
            return
        if Hub.breaks_left and len(content) > BREAK:
            Hub.breaks_left -= 1
            self.wfile.write(content[:BREAK])
            self.close_connection = True
            return
        self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        """Says nothing."""


@pytest.fixture
def hub():
    Hub.asked.clear()
    Hub.breaks_left, Hub.damaged, Hub.stalls = 0, set(), False
    Hub.stalled.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(tmp_path) -> Path:
    """A configuration whose language model and decoder are on the Hub."""
    tiny_config(tmp_path / "parts").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    parts = tmp_path / "parts"
    config["language_model"] = {"source": "org/llm", "config": str(parts / "language_model"), "license": "free"}
    config["decoders"]["image"] |= {"source": "org/decoder", "config": str(parts / "image_decoder")}
    file.write_text(json.dumps(config))
    return tmp_path / "model"


def start_download(hub: str, model: Path, *words: str) -> subprocess.Popen:
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(model / "hub")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "nextgpt", "download", str(model), *words]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def download(hub: str, model: Path, *words: str) -> subprocess.CompletedProcess:
    process = start_download(hub, model, *words)
    printed = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, *printed)


def test_sizes_come_first_then_what_is_needed_and_nothing_twice(hub, model) -> None:
    done = download(hub, model)
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()
    assert first[1].split()[:4] == ["language_model", "org/llm", "2", "0.02"] and "0.02 GB in all" in done.stdout
    fetched = {name for name, _ in Hub.asked}
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert fetched == {"config.json", "model.safetensors", "model_index.json", "unet/config.json", weights}
    folder = Path(done.stdout.split("language_model: ")[1].splitlines()[0])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS

    Hub.asked.clear()
    again = download(hub, model, "--only", "language_model")
    assert again.returncode == 0 and not Hub.asked
    assert "org/decoder" not in again.stdout


def test_a_broken_connection_is_taken_up_where_it_broke(hub, model) -> None:
    Hub.breaks_left = 1
    done = download(hub, model, "--only", "language_model")
    assert done.returncode == 0, done.stderr
    assert Hub.asked["model.safetensors", True] == 1, "the rest was asked for by its range"
    folder = Path(done.stdout.split("language_model: ")[1].splitlines()[0])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_killed_download_goes_on_with_the_files_that_are_not_there_and_leaves_no_parts(hub, model) -> None:
    Hub.stalls = True
    process = start_download(hub, model, "--only", "language_model")
    assert Hub.stalled.wait(60)
    process.kill()
    process.communicate()
    (left,) = (model / "hub").rglob("*.incomplete")
    os.utime(left, (0, 0))  # older than any download that still runs
    fetched = {name for name, _ in Hub.asked}
    done = download(hub, model, "--only", "language_model")
    assert done.returncode == 0, done.stderr
    assert "config.json" in fetched and Hub.asked["config.json", False] == 1
    assert not left.exists()
    folder = Path(done.stdout.split("language_model: ")[1].splitlines()[0])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_that_came_damaged_is_fetched_again(hub, model) -> None:
    Hub.damaged = {"model.safetensors"}
    done = download(hub, model, "--only", "language_model")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.split("language_model: ")[1].splitlines()[0])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert Hub.asked["model.safetensors", False] == 2


def test_what_the_hub_does_not_have_is_said_in_one_line(hub, model) -> None:
    wrong = download(hub, model, "--only", "tongue")
    assert wrong.returncode == 2 and "has the parts language_model, encoder, image" in wrong.stderr
    file = model / "config.json"
    file.write_text(file.read_text().replace("org/llm", "org/none"))
    absent = download(hub, model)
    assert absent.returncode == 2
    assert "org/none could not be fetched from the Hub" in absent.stderr and "Traceback" not in absent.stderr


def test_without_a_network_the_known_sizes_come_first_then_one_line(model) -> None:
    file = model / "config.json"
    config = json.loads(file.read_text())
    config["language_model"]["size"] = 13_500_000_000
    file.write_text(json.dumps(config))
    done = download("http://127.0.0.1:1", model)  # nobody listens there
    assert done.returncode == 2
    assert (
        re.search(r"^language_model +org/llm +\? +13.50 +free$", done.stdout, re.MULTILINE) and "about 14 GB" in done.stdout
    )
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"nextgpt: error: org/llm could not be fetched from the Hub \(no connection: .*\): .*run it again.*", line
    )


def test_a_model_on_the_hub_is_one_line_in_every_command_without_a_network(tmp_path) -> None:
    names = (
        "info",
        "params",
        "download",
        "evaluate",
        "chat --model",
        "generate hi --model",
        "data check README.md --model",
    )
    calls = [[*command.split(), "org/none"] for command in names]
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    program = f"from nextgpt.__main__ import main\nfor call in {calls}: print(main(call))"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.stdout.split() == ["2"] * len(calls), done.stderr
    assert len(lines) == len(calls)
    assert all(line.startswith("nextgpt: error: org/none: there is no such folder here") for line in lines), lines


def test_nothing_to_fetch_is_said(capsys) -> None:
    assert main(["download", "nano"]) == 0
    assert capsys.readouterr().out == "nothing to fetch: all that was asked for of nano is on this machine\n"


@pytest.mark.parametrize(
    "name", ["./org/llm", "~/llm", "/org/llm", "a/b/c", "runs/pytorch_model.pt", "org\\llm", "llm", "org/"]
)
def test_what_looks_like_a_path_is_none_of_the_hubs(name) -> None:
    assert not is_repository_name(name)


def test_names_of_repositories_may_hold_dots() -> None:
    assert is_repository_name("lmsys/vicuna-7b-v1.5")


def test_old_weights_are_taken_where_there_are_no_others() -> None:
    files = [RemoteFile(name, 1, None, None) for name in ("config.json", "pytorch_model.bin", "tf_model.h5")]
    assert [file.path for file in _needed(files, weights=True)] == ["config.json", "pytorch_model.bin"]
