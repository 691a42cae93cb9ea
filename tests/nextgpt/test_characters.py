"""Characters that are none: half an emoji, and bytes that are not UTF-8, in messages, arguments, names and typed lines."""

import io
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
from PIL import Image

from nextgpt import NextGPTPipeline
from nextgpt.__main__ import main
from nextgpt.cli.terminal import Chat
from nextgpt.errors import ModelLoadError, NextGPTError, UserInputError
from nextgpt.events import Finished, Reply, TextDelta
from nextgpt.media.text import whole_characters

HALF = "hi \ud83d"
BYTES = os.fsdecode(b"caf\xe9")  # as an argument of a Latin-1 terminal comes in


@pytest.fixture
def options(saved) -> list[str]:
    return ["--model", str(saved), "--device", "cpu", "--max-new-tokens", "12", "--steps", "1"]


@pytest.fixture(scope="module")
def pipeline(saved) -> NextGPTPipeline:
    return NextGPTPipeline.from_pretrained(saved, device="cpu")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": HALF},
        {"role": "user", "content": [{"type": "text", "text": HALF}]},
        {"role": "system", "content": HALF},
        {"role": "assistant", "content": HALF},
    ],
    ids=str,
)
def test_a_message_with_half_a_character_is_refused_by_name(pipeline, message):
    messages = [message, {"role": "user", "content": "hi"}]
    for answer in (pipeline, lambda *args, **kwargs: list(pipeline.stream(*args, **kwargs)), pipeline.processor):
        with pytest.raises(
            UserInputError, match=r"^message 0: the text holds half a character .*U\+D83D.*; write the whole"
        ):
            answer(messages)
    assert pipeline([{"role": "user", "content": "hi 😀"}], max_new_tokens=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["generate", BYTES], "the text holds the byte 0xE9, which is not UTF-8"),
        (["generate", HALF], "half a character"),
        (["generate", "hi", "--image", f"{BYTES}.png"], "caf\\udce9.png: no such file"),
        (["generate", "hi", "--image", "http://\ud83d/x.png"], "could not be fetched"),
        (["generate", "hi", "--require", f"{BYTES}=1"], "cannot give caf\\udce9"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_an_argument_that_is_not_utf8_is_one_line_and_exit_code_2(options, capsys, arguments, told):
    assert main([*arguments, *options]) == 2
    errors = capsys.readouterr().err
    assert told in errors and errors.startswith("nextgpt: error: ") and errors.count("\n") == 1
    errors.encode()


def test_files_whose_names_are_not_utf8_are_read_and_written(options, tmp_path, capsys):
    folder = tmp_path / BYTES
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    picture = folder / f"{BYTES}.png"
    Image.new("RGB", (32, 32)).save(picture)
    command = ["generate", "hi", "--image", str(picture), *options, "--require", "image=1", "--out", str(folder / "out")]
    assert main(command) == 0
    assert "image-001.png" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    [file] = json.loads(capsys.readouterr().out)["files"]
    assert Path(file).is_file()


class Echo:
    """Stands for a pipeline: keeps what it was asked."""

    input_modalities = ("text", "image")

    def __init__(self):
        self.asked: list[str] = []

    def new_session(self):
        return object()

    def stream(self, messages, session, cancel):
        self.asked.append(messages[-1]["content"][-1]["text"])
        yield TextDelta("yes")
        yield Finished(Reply({"role": "assistant", "content": [{"type": "text", "text": "yes"}]}))


def test_a_slip_of_the_keyboard_does_not_end_a_chat(tmp_path, monkeypatch):
    for typed in (io.TextIOWrapper(io.BytesIO(b"hi \xf0\x9f\nand you?\n"), "utf-8"), io.StringIO(f"{HALF}\nand you?\n")):
        monkeypatch.setattr(sys, "stdin", typed)
        pipeline = Echo()
        Chat(pipeline, tmp_path, {}).run()
        assert len(pipeline.asked) == 2 and pipeline.asked[0].startswith("hi \ufffd")


def test_a_chat_attaches_a_file_whose_name_is_not_utf8(tmp_path, monkeypatch, capsys):
    try:
        Image.new("RGB", (32, 32)).save(tmp_path / f"{BYTES}.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    typed = io.TextIOWrapper(io.BytesIO(os.fsencode(f"/attach {tmp_path / BYTES}.png\n")), "utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    sys.stdout.reconfigure(errors="backslashreplace")
    chat = Chat(Echo(), tmp_path, {})
    chat.run()
    assert [part["type"] for part in chat.attached] == ["image"]


def test_an_error_can_always_be_written():
    for kind in (NextGPTError, UserInputError, ModelLoadError):
        error = pickle.loads(pickle.dumps(kind(f"{HALF} é")))
        assert type(error) is kind and str(error) == "hi \\ud83d é"


def test_halves_that_belong_together_are_joined():
    assert whole_characters("a \ud83d\ude00 b \ud83d \udcff é") == "a 😀 b \ufffd \ufffd é"
