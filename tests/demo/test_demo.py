"""The page with a tiny random model, driven as a client does. It knows no browser."""

import socket
from pathlib import Path

import pytest
from PIL import Image

from nextgpt import NextGPTPipeline
from nextgpt.decoders import load_decoder
from nextgpt.demo.app import build, launch, to_messages
from nextgpt.errors import UserInputError
from tiny_models import tiny_model

PICTURE = Path(__file__).parents[1] / "fixtures" / "parity" / "media" / "shapes.png"


class DrawingPipeline(NextGPTPipeline):
    """Random weights would draw by chance only; here the contract makes every answer hold one picture."""

    def stream(self, messages, **options):
        self.asked = messages
        drawing = {"require": {"image": 1}, "image": {"num_inference_steps": 2}, "max_new_tokens": 12}
        return super().stream(messages, **(drawing | options))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> NextGPTPipeline:
    folder = tmp_path_factory.mktemp("demo")
    model, processor = tiny_model(folder)
    return DrawingPipeline(model, processor, {"image": load_decoder("stable-diffusion", str(folder / "image_decoder"))})


@pytest.fixture(scope="module")
def client(pipeline):
    from gradio_client import Client

    page = build(pipeline)
    _, address, _ = page.launch(server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, ssr_mode=False)
    yield Client(address, verbose=False)
    page.close()


def ask(client, text: str, *files: Path):
    """All that the page shows of the answer, from the first event to the last."""
    from gradio_client import handle_file

    message = {"text": text, "files": [handle_file(file) for file in files]}
    job = client.submit(message=message, api_name="/chat")
    job.result(timeout=60)
    return job.outputs()


def picture(shown) -> str:
    """The picture of the finished answer, which the client has downloaded."""
    return next(message["content"] for message in shown[-1] if message["content"].endswith(".png"))


def test_an_answer_streams_text_then_progress_then_the_picture(client, pipeline):
    shown = ask(client, "draw what you see", PICTURE)
    notes = [message["metadata"]["title"] for messages in shown for message in messages if message.get("metadata")]
    assert "Making the image: step 2 of 2" in notes
    assert Image.open(picture(shown)).size == (32, 32)
    assert [part["type"] for part in pipeline.asked[-1]["content"]] == ["image", "text"]


def test_the_next_turn_holds_the_answer_with_its_picture(client, pipeline):
    ask(client, "and again")
    kinds = [[part["type"] for part in message["content"]] for message in pipeline.asked]
    assert [message["role"] for message in pipeline.asked] == ["user", "assistant", "user"]
    assert "image" in kinds[1] and kinds[2] == ["text"]


def test_a_bad_file_is_told_in_the_chat_which_goes_on(client, pipeline, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    [note] = ask(client, "what is this?", broken)[-1]
    assert "broken.png: not a picture" in note["metadata"]["title"]
    assert picture(ask(client, "draw"))
    texts = [part["text"] for message in pipeline.asked for part in message["content"] if part["type"] == "text"]
    assert "what is this?" not in texts, "a question that failed is not asked again"


def test_a_defect_is_a_short_message_and_the_page_goes_on(client, pipeline, monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "stream", broken)
        [note] = ask(client, "hello")[-1]
    assert note["metadata"]["title"] == "The answer failed (ZeroDivisionError); see the log."


def test_what_is_shown_becomes_messages():
    shown = [
        {"role": "user", "content": [{"type": "file", "file": {"path": "cat.png"}}]},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}], "metadata": None},
        {"role": "user", "content": [{"type": "text", "text": "Play it."}]},
        {"role": "assistant", "content": [{"type": "text", "text": ""}], "metadata": {"title": "Error: no"}},
        {"role": "user", "content": [{"type": "text", "text": "Thanks."}]},
    ]
    assert to_messages(shown) == [
        {"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": [{"type": "text", "text": "Thanks."}]},
    ]


def test_a_taken_port_is_refused_with_what_to_do(pipeline):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserInputError, match="give another --port"):
            launch(pipeline, port=taken.getsockname()[1])
