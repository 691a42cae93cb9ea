"""Media come by path, address, data: URI or bytes; what goes wrong is told in a short line."""

from __future__ import annotations

import base64
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from nextgpt.cli.terminal import Chat
from nextgpt.errors import UserInputError
from nextgpt.media import guess_modality, load_media
from tiny_models import tiny_model

MEDIA = Path(__file__).parents[2] / "fixtures" / "parity" / "media"
FILES = {"image": "shapes.png", "audio": "sweep.wav", "video": "disc.mp4"}


def encoded(name: str) -> str:
    return base64.b64encode((MEDIA / name).read_bytes()).decode()


def arrays(loaded) -> list:
    return [np.asarray(part) for part in (loaded if isinstance(loaded, tuple) else [loaded])]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("header", ["data:{}/x;base64,", "data:;base64,", "DATA:application/octet-stream;name=a;BASE64,"])
def test_a_data_uri_is_read_as_the_file_that_it_holds(kind, header):
    uri = header.format(kind) + encoded(FILES[kind])
    assert guess_modality(uri) == kind
    for one, other in zip(arrays(load_media(kind, uri)), arrays(load_media(kind, MEDIA / FILES[kind])), strict=True):
        assert np.array_equal(one, other)


def test_lines_and_percent_signs_in_base64_are_read():
    text = encoded("shapes.png")
    lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for payload in (lines, text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")):
        assert load_media("image", "data:image/png;base64," + payload).size == (500, 340)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("data:image/png;base64," + "A" * 4100, "not a picture that can be read"),
        ("data:image/png;base64," + "A" * 4101, "broken base64 .*; encode it again"),
        ("data:image/png;base64," + "?" * 4100, "broken base64"),
        ("data:image/png;base64,é", "broken base64"),
        ("data:image/png;base64,", "holds no bytes"),
        ("data:image/svg+xml,<svg/>" + " " * 4000, "not a base64 data URI"),
        ("data:nothing", "not a base64 data URI"),
    ],
)
def test_a_broken_data_uri_is_refused_in_a_short_line(uri, reason):
    with pytest.raises(UserInputError, match=f"^data:.*{reason}") as caught:
        load_media("image", uri)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_bare_base64_is_refused_in_a_short_line_that_says_how():
    with pytest.raises(UserInputError, match="no such file; .*data:image/png;base64") as caught:
        load_media("image", encoded("shapes.png"))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", ["/tmp/" + "a/" * 3000 + "cat.png", "http://localhost:1/" + "a" * 5000])
def test_long_names_are_shortened_and_keep_their_ends(value):
    with pytest.raises(UserInputError) as caught:
        load_media("image", value)
    message = str(caught.value)
    assert value[-20:] in message and value[:20] in message and len(message) < 700


def test_a_device_is_no_file():
    with pytest.raises(UserInputError, match="/dev/zero: is no ordinary file"):
        load_media("audio", "/dev/zero")


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("sources"))[1]


def test_a_part_may_hold_base64_as_in_transformers(processor):
    def values(part: dict):
        return processor([{"role": "user", "content": [{"type": "image"} | part]}])["image_values"]

    expected = values({"path": str(MEDIA / "shapes.png")})
    text = encoded("shapes.png")
    for part in ({"base64": text}, {"url": "data:image/png;base64," + text}, {"image": "data:image/png;base64," + text}):
        assert np.array_equal(values(part), expected)
    with pytest.raises(UserInputError, match="broken base64"):
        values({"base64": "?"})


class Silent:
    """Stands for a pipeline that is never asked."""

    input_modalities = ("text", "image", "audio", "video")

    def new_session(self):
        return object()


class Counting(SimpleHTTPRequestHandler):
    """Serves the test media and counts what is fetched."""

    fetched = 0

    def __init__(self, *arguments):
        super().__init__(*arguments, directory=MEDIA)

    def do_GET(self):
        type(self).fetched += 1
        super().do_GET()

    def log_message(self, *arguments):
        """Says nothing."""


def test_the_chat_fetches_an_address_once(tmp_path, capsys):
    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chat = Chat(Silent(), tmp_path, {})
        chat.attach(f"http://127.0.0.1:{server.server_port}/shapes.png")
        server.shutdown()
    assert Counting.fetched == 1
    assert "attached image" in capsys.readouterr().out and chat.attached[0]["image"].size == (500, 340)


def test_the_chat_takes_a_data_uri_and_names_it_shortly(tmp_path, capsys):
    chat = Chat(Silent(), tmp_path, {})
    chat.attach("data:image/png;base64," + encoded("shapes.png"))
    told = capsys.readouterr().out
    assert "attached image data:image/png;base64,…" in told and len(told) < 200
    with pytest.raises(UserInputError, match="no such file"):
        chat.attach("a" * 5000)
