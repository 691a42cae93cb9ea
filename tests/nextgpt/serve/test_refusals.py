"""What a server refuses: each with OpenAI's error object, its status, and the name of the field or limit."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from nextgpt.errors import UserInputError
from nextgpt.media.addresses import is_public
from nextgpt.serve.settings import ServerSettings
from tiny_server import ASK, FAST, data_url, error_of, send, serving

KEY = "a-secret-key"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model": "gpt-9"}, (404, "model", "model_not_found")),
        ({"nonsense": 1}, (400, "nonsense", "unknown_parameter")),
        ({"messages": []}, (400, "messages", "invalid_value")),
        ({"messages": [{"role": "user"}]}, (400, "messages.0.content", "missing_required_parameter")),
        ({"messages": [{"role": "tool", "content": "x"}]}, (400, "messages.0", "invalid_value")),
        ({"frequency_penalty": 1}, (400, "frequency_penalty", "unsupported_parameter")),
        ({"tools": [{"type": "function"}]}, (400, "tools", "unsupported_parameter")),
        (
            {"messages": [*ASK["messages"], {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
            (400, "messages.1.tool_calls", "unsupported_parameter"),
        ),
        ({"modalities": ["text"] * 17}, (400, "modalities", "invalid_value")),
        ({"video": {"fps": 1000.0}}, (400, "video.fps", "invalid_value")),
        ({"response_format": {"type": "json_object"}}, (400, "response_format", "unsupported_parameter")),
        ({"logprobs": True}, (400, "logprobs", "unsupported_parameter")),
        ({"temperature": "1"}, (400, "temperature", "invalid_value")),
        ({"temperature": 3}, (400, "temperature", "invalid_value")),
        ({"n": 100}, (400, "n", "invalid_value")),
        ({"modalities": ["image"]}, (400, "modalities", "invalid_value")),
        ({"modalities": ["text", "smell"]}, (400, "modalities.1", "invalid_value")),
        ({"require": {"image": 1}, "modalities": ["text"]}, (400, "require", "cannot_be_given")),
        ({"image": {"num_inference_steps": 0}}, (400, "image.num_inference_steps", "invalid_value")),
        ({"image": {"height": 33}}, (400, "image.height", "invalid_value")),
        ({"stream_options": {"include_usage": True}}, (400, "stream_options", "invalid_value")),
        ({"max_tokens": 5}, (400, "max_tokens", "invalid_value")),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, (400, "messages", "context_length_exceeded")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_named(address, change, expected):
    assert error_of(address, ASK | change) == expected


def test_neutral_values_are_taken(address):
    neutral = {
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False, "tools": [], "functions": [],
        "tool_choice": "auto", "response_format": {"type": "text"}, "user": "me", "store": True, "metadata": {},
        "parallel_tool_calls": True, "service_tier": "auto", "n": 1, "stop": None, "prediction": None,
    }  # fmt: skip
    status, _, answer = send(address, ASK | neutral | {"modalities": ["text"]})
    assert status == 200 and answer["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1, 2", b"\xff\xfe", b"[" * 200_000, b'{"a": ' + b"9" * 10_000 + b"}"],
    ids=lambda body: repr(body[:5]),
)
def test_what_is_not_json_is_refused(address, body):
    status, _, code = error_of(address, body)
    assert status == 400 and code in ("invalid_json", "missing_required_parameter", "invalid_value")


def test_half_a_character_is_named_and_hurts_nothing(address):
    body = json.dumps(ASK | {"messages": [{"role": "user", "content": "x \ud83d"}]}).encode()
    status, _, answer = send(address, body)
    assert status == 400 and answer["error"]["param"].startswith("messages")
    assert send(address, b'{"model": "\\ud83d", "messages": []}')[0] == 400


def test_paths_and_methods_that_are_not_there(address):
    assert error_of(address, None, path="/v1/nothing", method="GET") == (404, None, "unknown_url")
    assert error_of(address, None, path="/v1/models/gpt-9", method="GET") == (404, "model", "model_not_found")
    assert error_of(address, None, path="/v1/chat/completions", method="GET") == (405, None, "method_not_allowed")
    for path in ("/v1/media/nothing.png", "/v1/media/..%2f..%2fetc%2fpasswd", "/v1/media/"):
        assert send(address, None, path=path, method="GET")[0] == 404


# -- who may ask --------------------------------------------------------------------------------------------------


def test_only_json_is_taken_so_that_no_form_of_a_page_can_ask(address):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert error_of(address, ASK, Content_Type=kind) == (415, None, "unsupported_media_type")


def test_a_page_cannot_use_a_server_of_this_machine(address):
    port = urlsplit(address).port
    assert error_of(address, ASK, Origin="https://evil.example") == (403, None, "origin_not_allowed")
    assert error_of(address, ASK, Origin="null") == (403, None, "origin_not_allowed")
    assert error_of(address, ASK, Host="evil.example") == (403, None, "host_not_allowed")
    assert error_of(address, ASK, Host=f"127.0.0.1.evil.example:{port}") == (403, None, "host_not_allowed")
    assert send(address, ASK, Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200


def test_pages_of_an_allowed_origin_may_ask(pipe):
    page = "https://chat.example.org"
    with serving(pipe, allowed_origins=(page,), api_keys=(KEY,)) as address:
        asking = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,content-type"}
        status, headers, _ = send(address, None, method="OPTIONS", Origin=page, **asking)
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, page)
        status, headers, _ = send(address, ASK, Origin=page, Authorization=f"Bearer {KEY}")
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, page)
        assert send(address, ASK, Origin="https://evil.example", Authorization=f"Bearer {KEY}")[0] == 403


def test_a_key_is_asked_for(pipe, caplog):
    caplog.set_level("DEBUG")
    with serving(pipe, api_keys=("another-key", KEY)) as address:
        assert error_of(address, ASK) == (401, None, "invalid_api_key")
        assert error_of(address, ASK, Authorization="Bearer wrong") == (401, None, "invalid_api_key")
        assert error_of(address, None, path="/metrics", method="GET") == (401, None, "invalid_api_key")
        assert send(address, ASK, Authorization=f"Bearer {KEY}")[0] == 200
        assert send(address, None, path="/health", method="GET")[2] == {"status": "ok"}
    assert KEY not in caplog.text


def test_what_belongs_to_one_key_is_unknown_to_another(pipe):
    with serving(pipe, api_keys=("another-key", KEY)) as address:
        body = ASK | FAST | {"require": {"image": 1}, "max_completion_tokens": 12, "modalities": None}
        _, _, answer = send(address, body, Authorization=f"Bearer {KEY}")
        content = answer["choices"][0]["message"]["content"]
        again = [*ASK["messages"], {"role": "assistant", "content": content}, *ASK["messages"]]
        assert send(address, ASK | {"messages": again}, Authorization=f"Bearer {KEY}")[0] == 200
        found = error_of(address, ASK | {"messages": again}, Authorization="Bearer another-key")
        assert found == (400, "messages.1.content", "unknown_medium")


def test_without_a_key_it_listens_to_this_machine_alone():
    for host in ("0.0.0.0", "::", "", "192.168.1.5", "example.org"):
        with pytest.raises(UserInputError, match="--api-key"):
            ServerSettings(host=host)
        ServerSettings(host=host, api_keys=(KEY,))
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        ServerSettings(host=host)


# -- how much -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(pipe):
    """A server with narrow limits."""
    limits = {
        "max_body": 20_000, "max_messages": 4, "max_parts": 6, "max_text": 100, "max_media": 2, "max_media_bytes": 5000,
        "upload_seconds": 0.5, "max_header": 4096, "max_redirects": 2, "max_fetch_seconds": 2,
    }  # fmt: skip
    with serving(pipe, **limits) as address:
        yield address


def asking(*parts, times=1):
    return ASK | {"messages": [{"role": "user", "content": list(parts)}] * times}


PICTURE = {"type": "image_url", "image_url": {"url": data_url()}}
LARGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 8000}}
WORD = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (asking(WORD, times=5), "max_messages"),
        (asking(*[WORD] * 7), "max_parts"),
        (asking({"type": "text", "text": "x" * 101}), "max_text"),
        (asking(PICTURE, PICTURE, PICTURE), "max_media"),
        (asking(LARGE), "max_media_bytes"),
        (asking({"type": "text", "text": "x" * 30_000}), "max_body"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_too_large_is_refused_with_the_limit_s_name(small, body, limit):
    status, _, answer = send(small, body)
    assert status == 413 and f"({limit})" in answer["error"]["message"]


def test_a_body_of_no_stated_length_is_cut_off_too(small):
    connection = http.client.HTTPConnection(urlsplit(small).netloc, timeout=30)
    chunks = (b"x" * 1000 for _ in range(1000))
    try:
        connection.request("POST", "/v1/chat/completions", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):  # refused while it was still sending
        pass
    finally:
        connection.close()


def raw(address, data, seconds=5.0):
    """What comes back for bytes sent as they are; nothing more is sent."""
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname, parts.port), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def test_a_body_that_comes_too_slowly_is_given_up(small):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = raw(small, head + b"Content-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408") and b"upload_timeout" in answer


def test_headers_that_are_too_large_are_refused(small):
    with pytest.raises((http.client.HTTPException, OSError, AssertionError)):  # cut off, or answered with 431
        status, _, _ = send(small, None, path="/health", method="GET", X_Long="x" * 300_000)
        assert status == 200
    assert error_of(small, None, path="/health", method="GET", X_Long="x" * 5000) == (431, None, "header_too_large")


def test_a_small_file_that_unpacks_to_a_huge_picture_is_refused(address):
    import base64
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    picture = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 30_001 * 1000))
        + chunk(b"IEND", b"")
    )
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    status, _, answer = send(address, asking({"type": "image_url", "image_url": {"url": url}}))
    assert status == 400 and "pixels" in answer["error"]["message"]


# -- what it fetches ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere():
    """A web server of this machine that sends a picture, redirects, or never ends."""
    import base64

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
                return
            self.send_response(200)
            if self.path == "/packed":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            try:
                if self.path == "/endless":
                    while True:
                        self.wfile.write(b"x" * 1000)
                if self.path == "/slow":
                    time.sleep(1.5)
                self.wfile.write(base64.b64decode(data_url().partition(",")[2]))
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def show(address, url):
    status, _, answer = send(address, asking(WORD, {"type": "image_url", "image_url": {"url": url}}))
    return status, answer["error"]["code"] if "error" in answer else None


def test_nothing_of_a_private_network_is_fetched(address, elsewhere):
    port = elsewhere.server_port
    for host in (
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "127.1",
        "2130706433",
        "0.0.0.0",
        "169.254.169.254",
        "10.0.0.1",
    ):
        assert show(address, f"http://{host}:{port}/picture")[0] == 400
    assert show(address, f"http://127.0.0.1:{port}/picture") == (400, "private_address")
    assert not elsewhere.asked


def test_nothing_of_the_server_s_own_disk_is_read(address, tmp_path):
    from PIL import Image

    file = tmp_path / "mine.png"
    Image.new("RGB", (8, 8)).save(file)
    for url in (
        str(file),
        f"file://{file}",
        f"FILE://{file}",
        "ftp://example.org/x",
        "http:///x",
        "http://a b/",
        "gopher://x/",
    ):
        assert show(address, url) == (400, "invalid_url")
    status, _, code = error_of(address, asking({"type": "image", "path": str(file)}))
    assert status == 400


def test_redirects_are_followed_and_each_of_them_is_checked(pipe, elsewhere):
    limits = {"max_media_bytes": 5000, "max_redirects": 2, "max_fetch_seconds": 1}
    with serving(pipe, allow_private_addresses=True, **limits) as address:
        here = f"http://127.0.0.1:{elsewhere.server_port}"
        assert show(address, f"{here}/picture") == (200, None)
        assert show(address, f"{here}/to//picture") == (200, None)
        assert show(address, f"{here}/to//to//picture") == (200, None)
        assert show(address, f"{here}/to//to//to//picture") == (400, "too_many_redirects")
        assert show(address, f"{here}/to/file:///etc/passwd") == (400, "invalid_url")
        assert show(address, f"{here}/to/http://[") == (400, "invalid_url")
        assert show(address, f"{here}/endless") == (413, "request_too_large")
        assert show(address, f"{here}/packed") == (400, "fetch_failed")
        assert show(address, f"{here}/slow") == (400, "fetch_timeout")
        assert show(address, "http://127.0.0.1:1/") == (400, "fetch_failed")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.215.14", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False), ("100.64.0.1", False),
        ("169.254.169.254", False), ("224.0.0.1", False), ("0.0.0.0", False), ("::", False), ("fe80::1%eth0", False),
        ("fc00::1", False), ("fec0::1", False),
        ("::ffff:10.0.0.1", False), ("64:ff9b::a00:1", False), ("2002:7f00:1::", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address, expected):
    assert is_public(address) is expected
