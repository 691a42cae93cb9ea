"""The chat as a program uses it, through `gradio_client`."""

import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from nextgpt.demo.app import Chat, launch
from nextgpt.errors import UserInputError
from nextgpt.events import Finished, Reply, TextDelta

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity" / "media"
PICTURE, SOUND = FIXTURES / "shapes.png", FIXTURES / "sweep.wav"


@pytest.fixture(scope="module")
def client(served) -> Client:
    return Client(served[1], verbose=False)


@pytest.fixture
def conversation(client) -> str:
    return client.predict(api_name="/new_conversation")


def kinds(message: dict) -> list[str]:
    return [part["type"] for part in message["content"] if part["type"] != "text"]


def test_every_endpoint_is_documented_with_typed_parameters(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {
        *("/new_conversation", "/ask", "/retry", "/undo", "/stop", "/messages", "/clear"),
        *("/export_conversation", "/import_conversation"),
    }
    for name, endpoint in endpoints.items():
        assert endpoint["description"], name
        assert all(parameter["type"] for parameter in endpoint["parameters"]), name
    types = {parameter["parameter_name"]: parameter["type"]["type"] for parameter in endpoints["/ask"]["parameters"][:2]}
    assert types == {"conversation": "string", "text": "string"}


def test_an_answer_streams_and_ends_with_its_picture(client, conversation, pipeline):
    job = client.submit(conversation, "draw what you see", [handle_file(PICTURE)], seed=5, api_name="/ask")
    message = job.result(timeout=120)
    assert kinds(message) == ["image"] and len(job.outputs()) > 1
    [part] = [part for part in message["content"] if part["type"] == "image"]
    assert Image.open(part["path"]).size == (32, 32) and part["seed"] == 5
    assert [part["type"] for part in pipeline.asked[-1]["content"]] == ["image", "text"]


def test_options_reach_the_pipeline(client, conversation, pipeline):
    media = {"image": {"height": 16}}
    client.predict(
        *(conversation, "hello"), answer_with=["text"], temperature=0.5, max_new_tokens=7, media=media, api_name="/ask"
    )
    given = pipeline.options
    assert (given["output_modalities"], given["temperature"], given["do_sample"]) == (["text"], 0.5, True)
    assert (given["max_new_tokens"], given["image"]) == (7, {"height": 16})


def test_a_kind_that_is_switched_off_is_named_in_the_last_message(client, conversation, pipeline, monkeypatch):
    reply = Reply({"role": "assistant", "content": [{"type": "text", "text": "Here."}]}, switched_off=["image"])
    monkeypatch.setattr(pipeline, "stream", lambda *args, **options: [TextDelta("Here."), Finished(reply)])
    message = client.predict(conversation, "draw", answer_with=["text"], api_name="/ask")
    assert message["switched_off"] == ["image"] and not kinds(message)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"media": {"image": {"num_inference_steps": 501}}}, "Steps of the image is 501: expected more than 0, at most 500"),
        ({"media": {"video": {"num_frames": 17}}}, "Frames of the video is 17: expected more than 0, at most 16"),
        ({"media": {"audio": {"duration": 61}}}, "Duration, seconds of the audio is 61: expected more than 0, at most 60"),
        ({"media": {"audio": {"duration": "long"}}}, "Duration, seconds of the audio is 'long'"),
        ({"media": {"max_new_tokens": 10**9}}, "media holds 'max_new_tokens'"),
        ({"max_new_tokens": 10**9}, "Longest answer, tokens is 1000000000: expected more than 0, at most 2048"),
    ],
)
def test_what_would_hold_up_the_others_is_refused(client, conversation, options, told):
    with pytest.raises(AppError, match=told):
        client.predict(conversation, "draw", **options, api_name="/ask")
    assert client.predict(conversation, api_name="/messages") == []


def test_the_next_turn_reuses_what_the_model_has_read(client, conversation, served):
    for text in ("hello", "and again"):
        client.predict(conversation, text, max_new_tokens=4, api_name="/ask")
    first, second = (turn.timings for turn in served[0].store.get(conversation).turns)
    assert first.cached_tokens == 0
    assert second.cached_tokens >= first.prompt_tokens


def test_retry_takes_another_seed_and_the_same_options_and_undo_takes_back(client, conversation, pipeline):
    first = client.predict(conversation, "draw", seed=7, max_new_tokens=9, api_name="/ask")
    second = client.predict(conversation, api_name="/retry")
    assert pipeline.options["max_new_tokens"] == 9
    seeds = [part["seed"] for message in (first, second) for part in message["content"] if part["type"] == "image"]
    assert seeds[0] == 7 and seeds[1] != 7
    assert [message["role"] for message in client.predict(conversation, api_name="/messages")] == ["user", "assistant"]
    assert client.predict(conversation, api_name="/undo") == []


def test_clear_deletes_the_files(client, conversation, served, tmp_path):
    own = tmp_path / "a picture of this test alone.png"
    shutil.copy(PICTURE, own)
    client.predict(conversation, "draw", [handle_file(own)], api_name="/ask")
    folder, uploads = served[0].store.get(conversation).folder, served[0].store.uploads
    assert len(list(folder.iterdir())) == 2
    assert [path for path in uploads.rglob("*.png") if path.name.startswith("a")]
    client.predict(conversation, api_name="/clear")
    assert not [path for path in uploads.rglob("*.png") if path.name.startswith("a")]
    assert not list(folder.iterdir()) and client.predict(conversation, api_name="/messages") == []


def test_an_export_holds_the_chat_and_can_be_imported(client, conversation):
    client.predict(conversation, "draw", [handle_file(PICTURE)], api_name="/ask")
    archive = client.predict(conversation, api_name="/export_conversation")
    with zipfile.ZipFile(archive) as packed:
        messages = json.loads(packed.read("messages.json"))["messages"]
        media = {part["path"] for message in messages for part in message["content"] if part["type"] != "text"}
        assert media | {"messages.json"} == set(packed.namelist())
    assert [kinds(message) for message in messages] == [["image"], ["image"]]
    other = client.predict(handle_file(archive), api_name="/import_conversation")
    assert other != conversation
    assert [kinds(message) for message in client.predict(other, api_name="/messages")] == [["image"], ["image"]]


def test_a_refused_import_leaves_nothing(client, served, tmp_path):
    with zipfile.ZipFile(tmp_path / "strange.zip", "w") as packed:
        content = [{"type": "image", "path": "a.png"}, {"type": "image", "path": "broken.png"}]
        packed.writestr("messages.json", json.dumps({"messages": [{"role": "user", "content": content}]}))
        packed.write(PICTURE, "a.png")
        packed.writestr("broken.png", "no picture")
    before = set(served[0].store.folder.iterdir())
    with pytest.raises(AppError, match="not a picture"):
        client.predict(handle_file(tmp_path / "strange.zip"), api_name="/import_conversation")
    assert set(served[0].store.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "told"),
    [("broken.png", "^broken.png: not a picture"), ("notes.txt", "^notes.txt: not a picture, sound or video")],
)
def test_a_bad_file_is_refused_in_the_pipelines_words_and_nothing_changes(client, conversation, tmp_path, name, told):
    (tmp_path / name).write_text("no picture")
    with pytest.raises(AppError, match=told) as refused:
        client.predict(conversation, "what is this?", [handle_file(tmp_path / name)], api_name="/ask")
    assert "/" not in str(refused.value), "the server's folders are not the visitor's business"
    assert client.predict(conversation, api_name="/messages") == []


def test_a_sound_that_is_too_long_is_refused(client, conversation, tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(601_000, dtype=np.int16), 1000)
    with pytest.raises(AppError, match="long.wav: 601 s long, at most 600 s are taken"):
        client.predict(conversation, "what is this?", [handle_file(tmp_path / "long.wav")], api_name="/ask")


def test_a_file_that_is_too_large_is_refused(pipeline):
    chat = Chat(pipeline, max_upload="100kb")
    address = chat.serve("127.0.0.1")
    for path, status in ((SOUND, 413), (PICTURE, 200)):
        with path.open("rb") as file:
            assert httpx.post(f"{address}gradio_api/upload", files={"files": file}, timeout=60).status_code == status
    chat.close()


def test_a_failure_inside_an_answer_leaves_the_conversation_usable(client, conversation):
    with pytest.raises(AppError, match="guidance"):
        client.predict(conversation, "draw", media={"image": {"guidance": 3}}, api_name="/ask")
    assert kinds(client.predict(conversation, "draw", api_name="/ask")) == ["image"]


def test_a_defect_is_told_shortly(client, conversation, pipeline, monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("secret detail")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "stream", broken)
        with pytest.raises(AppError, match=r"The answer failed \(ZeroDivisionError\); see the log"):
            client.predict(conversation, "hello", api_name="/ask")


def test_a_full_line_is_refused_and_a_place_becomes_free(client, served, pipeline):
    """`served` has one place to wait."""
    conversations = [client.predict(api_name="/new_conversation") for _ in range(3)]
    chat, _ = served
    with pipeline._lock:  # as if a long answer were being given
        jobs = [client.submit(each, "hello", max_new_tokens=2, api_name="/ask") for each in conversations[:2]]
        wait_until(lambda: all(chat.store.get(each).busy for each in conversations[:2]))
        with pytest.raises(AppError, match="too many are waiting"):
            client.predict(conversations[2], "hello", api_name="/ask")
        assert [chat.answers.place(chat.store.get(each)) for each in conversations] in ([0, 1, 0], [1, 0, 0])
        with pytest.raises(AppError, match="an answer is under way"):
            client.predict(conversations[0], "hello", api_name="/ask")
    for job in jobs:
        job.result(timeout=60)
    client.predict(conversations[2], "hello", max_new_tokens=2, api_name="/ask")


def test_stop_works_while_waiting(client, conversation, served, pipeline):
    with pipeline._lock:
        job = client.submit(conversation, "draw", api_name="/ask")
        wait_until(lambda: served[0].store.get(conversation).busy)
        client.predict(conversation, api_name="/stop")
        assert job.result(timeout=60)["content"] == []


@pytest.mark.parametrize("path", ["/etc/passwd", "{store}/secret.png", "{cache}/../../etc/passwd"])
def test_no_file_outside_the_uploads_can_be_sent_in(served, client, conversation, path):
    chat, address = served
    (chat.store.folder / "secret.png").write_bytes(PICTURE.read_bytes())
    path = path.format(store=chat.store.folder, cache=chat.page.chatbot.GRADIO_CACHE)
    body = {"data": [conversation, "what is this?", [{"path": path}], None, 0, 1, 4, None, {}]}
    event = httpx.post(f"{address}gradio_api/call/ask", json=body, timeout=60).json()["event_id"]
    told = httpx.get(f"{address}gradio_api/call/ask/{event}", timeout=60).text
    assert "event: error" in told and "was not uploaded" in told


@pytest.mark.parametrize("path", ["/etc/passwd", __file__, "{store}/../../etc/passwd"])
def test_no_file_outside_the_folder_is_served(served, path):
    chat, address = served
    answer = httpx.get(f"{address}gradio_api/file={path.format(store=chat.store.folder)}", timeout=60)
    assert answer.status_code in (403, 404)


def test_a_taken_port_is_refused_with_what_to_do(pipeline):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserInputError, match="give another --port"):
            launch(pipeline, port=taken.getsockname()[1])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_sigterm_takes_all_files_along(pipeline, monkeypatch, tmp_path):
    def too_early(*_):
        pytest.fail("SIGTERM was not waited for")

    def ready(address: str):
        with PICTURE.open("rb") as file:
            assert httpx.post(f"{address}gradio_api/upload", files={"files": file}, timeout=60).status_code == 200
        assert [path for path in tmp_path.rglob("*") if path.is_file()]
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = signal.signal(signal.SIGTERM, too_early)
    try:
        with pytest.raises(SystemExit):
            launch(pipeline, port=free_port(), on_ready=ready)
        assert signal.getsignal(signal.SIGTERM) is too_early
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())


def test_launch_tells_the_address_when_the_page_answers(pipeline):
    told = []

    class Enough(Exception):
        pass

    def ready(address: str):
        told.append(httpx.get(address, timeout=60).status_code)
        raise Enough

    with pytest.raises(Enough):
        launch(pipeline, port=free_port(), on_ready=ready)
    assert told == [200]


def wait_until(condition, seconds: float = 60) -> None:
    moment = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        moment.wait(0.02)
