"""What a user gets for input that is not what it should be: one line that names the thing and what to do.

It knows broken files, broken messages and broken checkpoints; what good ones become is tested elsewhere.
"""

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from nextgpt import NextGPTPipeline
from nextgpt.__main__ import main
from nextgpt.errors import ModelLoadError, NextGPTError, UserInputError
from nextgpt.media import load_media

MEDIA = Path(__file__).parents[1] / "fixtures" / "parity" / "media"


@pytest.fixture(scope="module")
def pipeline(saved: Path) -> NextGPTPipeline:
    return NextGPTPipeline.from_pretrained(saved, device="cpu")


# ---------------------------------------------------------------------- files


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, without the pixels."""
    chunks = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return chunks


def video_without_frames(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()


def half(name: str):
    data = (MEDIA / name).read_bytes()
    return lambda path: path.write_bytes(data[: len(data) // 2])


def text(path: Path) -> None:
    path.write_text("Just some words.\n" * 50)


def copy_of(name: str):
    return lambda path: shutil.copy(MEDIA / name, path)


BAD_FILES = [
    ("image", "missing.png", lambda path: None, "no such file"),
    ("audio", "missing.wav", lambda path: None, "no such file"),
    ("image", "a-folder.png", lambda path: path.mkdir(), "is a folder"),
    ("video", "a-folder.mp4", lambda path: path.mkdir(), "is a folder"),
    ("image", "empty.png", lambda path: path.touch(), "the file is empty"),
    ("audio", "empty.wav", lambda path: path.touch(), "the file is empty"),
    ("video", "empty.mp4", lambda path: path.touch(), "the file is empty"),
    ("image", "truncated.png", half("shapes.png"), "truncated"),
    ("audio", "truncated.wav", half("sweep.wav"), "breaks off"),
    ("video", "truncated.mp4", half("disc.mp4"), "not a video"),
    ("image", "really-a-sound.png", copy_of("sweep.wav"), "not a picture"),
    ("image", "really-text.png", text, "not a picture"),
    ("audio", "really-text.wav", text, "not a sound"),
    ("audio", "silent-video.wav", copy_of("disc.mp4"), "holds no sound"),
    ("audio", "no-samples.wav", lambda path: soundfile.write(path, np.zeros(0), 16000), "no samples"),
    ("video", "really-text.txt", text, "not a video"),
    ("video", "a-still.mp4", copy_of("shapes.png"), "holds one picture, expected a clip; give it as an image"),
    ("video", "really-a-sound.mp4", copy_of("sweep.wav"), "holds no pictures, only sound; give it as an audio"),
    ("video", "no-frames.mp4", video_without_frames, "no pictures"),
    ("image", "huge.png", lambda path: path.write_bytes(png_header(30_000, 30_000)), "64,000,000 pixels"),
    ("image", "big.png", lambda path: path.write_bytes(png_header(9_000, 9_000)), "9000 x 9000"),
]


@pytest.mark.parametrize(("modality", "name", "make", "reason"), BAD_FILES, ids=lambda value: str(value)[:20])
def test_a_bad_file_is_named_in_one_line(tmp_path, modality, name, make, reason):
    path = tmp_path / name
    make(path)
    with pytest.raises(UserInputError) as caught:
        load_media(modality, path)
    message = str(caught.value)
    assert reason in message and name in message and "\n" not in message
    assert message.count(";") or "check" in message, "it says what to do"


@pytest.mark.parametrize("playlist", ["#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n"])
def test_a_playlist_cannot_reach_other_files(tmp_path, playlist):
    shutil.copy(MEDIA / "disc.mp4", tmp_path / "disc.mp4")
    path = tmp_path / "clip.mp4"
    path.write_text(playlist.format("disc.mp4"))
    with pytest.raises(UserInputError, match="not a video"):
        load_media("video", path)


def test_a_video_that_breaks_off_is_refused(tmp_path):
    import av

    path = tmp_path / "streamable.mp4"
    with av.open(str(MEDIA / "disc.mp4")) as source:
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    container.mux(packet)
    assert len(load_media("video", path).frames) == 72
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(UserInputError, match="breaks off after .* of 72 frames"):
        load_media("video", path)


@pytest.mark.parametrize("value", [5, np.zeros((4, 4)), (np.zeros(0), 16000), ("frames", 5)], ids=str)
@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_ready_made_media_of_another_form_are_refused(modality, value):
    with pytest.raises(UserInputError, match=f"{modality} given as .*expected"):
        load_media(modality, value)


@pytest.mark.parametrize("name", ["a\0b.png", "a" * 5000, "~nobody-of-that-name/x.png"], ids=["nul", "long", "home"])
def test_a_name_that_no_file_can_have_is_just_missing(name):
    with pytest.raises(UserInputError, match="no such file"):
        load_media("image", name)


# ---------------------------------------------------------------------- messages and options


def user(*content) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


BAD_MESSAGES = [
    (user({"type": "smell", "path": "rose"}), "unknown part type 'smell'"),
    (user("hi"), "unknown part type 'hi'"),
    (user({"type": "image"}), "needs one of path, url or image"),
    (user({"type": "image", "path": "a.png", "url": "b.png"}), "found 2"),
    (user({"type": "text"}), "text None"),
    ([{"content": "hi"}], "no role"),
    ([{"role": "tool", "content": "hi"}], "role 'tool'"),
    ([{"role": "user"}], "no content"),
    ([{"role": "user", "content": 5}], "content 5"),
    ([], "at least one message|list of messages"),
    (user({"type": "text", "text": "word " * 1000}), r"has \d+ tokens, the model takes 5\d\d: shorten"),
]


@pytest.mark.parametrize(("messages", "reason"), BAD_MESSAGES, ids=lambda value: str(value)[:30])
def test_a_bad_message_is_named_in_one_line(pipeline, messages, reason):
    for answer in (pipeline, lambda *args, **kwargs: list(pipeline.stream(*args, **kwargs))):
        with pytest.raises(UserInputError, match=reason) as caught:
            answer(messages, max_new_tokens=2)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_tokens": 5}, "did you mean 'max_new_tokens'"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": "5"}, "max_new_tokens is '5'"),
        ({"require": ["image"]}, "require is"),
        ({"output_modalities": "text"}, "output_modalities is 'text'"),
        ({"seed": -1}, "seed is -1"),
        ({"require": {"audio": 1}}, "cannot give audio"),
        ({"require": {"image": 1}, "image": {"num_inference_steps": 0}}, "num_inference_steps must be"),
        ({"require": {"image": 1}, "image": {"colour": "red"}}, "no option 'colour'"),
    ],
    ids=str,
)
def test_a_bad_option_is_named(pipeline, options, reason):
    with pytest.raises(NextGPTError, match=reason):
        pipeline(user({"type": "text", "text": "hi"}), **({"max_new_tokens": 8} | options))


# ---------------------------------------------------------------------- models


def edit_config(**changes):
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def truncate(name: str):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:200])


BAD_MODELS = [
    (edit_config(signal_tokens={"image": 5}), r"signal_rows\.input has shape \[4, 32\], this model needs \[5, 32\]"),
    (edit_config(adapter={"peft_type": "LORA", "r": 8}), "does not fit the language model"),
    (edit_config(encoder={"kind": "imagebind", "source": "/nowhere"}), "encoder: no folder /nowhere"),
    (edit_config(decoders={"image": {"kind": "magic", "source": "/nowhere"}}), "magic|/nowhere"),
    (edit_config(model_type="llama"), "llama"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    (lambda folder: (folder / "config.json").unlink(), "config.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    (lambda folder: shutil.rmtree(folder / "lora"), "adapter_model.safetensors"),
    (truncate("model.safetensors"), "model.safetensors"),
    (truncate("lora/adapter_model.safetensors"), "adapter_model.safetensors"),
]


@pytest.mark.parametrize(("damage", "reason"), BAD_MODELS, ids=[reason[:25] for _, reason in BAD_MODELS])
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, saved, damage, reason):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(ModelLoadError, match=reason):
        NextGPTPipeline.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("options", [{"device": "warp"}, {"dtype": "float7"}], ids=str)
def test_an_unknown_device_or_dtype_is_named(saved, options):
    with pytest.raises(UserInputError, match=next(iter(options.values()))):
        NextGPTPipeline.from_pretrained(saved, **options)


# ---------------------------------------------------------------------- on the command line


@pytest.mark.parametrize("command", [["generate", "hi", "--model"], ["info"], ["params"]], ids=lambda c: c[0])
def test_an_unknown_preset_is_one_line_and_exit_code_2(capsys, command):
    assert main([*command, "nanoo"]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("nextgpt: error: model 'nanoo' is neither a preset (7b")
    assert output.err.count("\n") == 1 and not output.out


@pytest.mark.parametrize(("modality", "name", "make", "reason"), BAD_FILES[::4], ids=lambda value: str(value)[:20])
def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path, capsys, saved, modality, name, make, reason):
    path = tmp_path / name
    make(path)
    arguments = ["generate", "what is it?", f"--{modality}", str(path), "--model", str(saved), "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("nextgpt: error: ") and reason in errors and errors.count("\n") == 1


def test_debug_shows_the_traceback_before_or_after_the_command(tmp_path):
    for arguments in (["--debug", "info", "nanoo"], ["info", "nanoo", "--debug"]):
        with pytest.raises(ModelLoadError):
            main(arguments)


def test_a_picture_that_is_fine_passes(tmp_path):
    Image.new("RGBA", (40, 30)).save(tmp_path / "fine.png")
    assert load_media("image", tmp_path / "fine.png").size == (40, 30)
