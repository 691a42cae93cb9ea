"""What is attached to a message is kept as what it holds, under a name by which a browser shows it."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from nextgpt.demo.conversations import Store
from nextgpt.errors import UserInputError
from nextgpt.media import load_media
from nextgpt.session import Session

TONE = (np.sin(np.arange(16_000) * 0.2) / 2).astype(np.float32)
FRAMES = [Image.new("RGB", (32, 24), (value, 0, 0)) for value in (0, 100, 200)]


@pytest.fixture
def conversation():
    store = Store(Session)
    yield store.create()
    store.close()


def voice(path: Path) -> None:
    """As a browser records it: WebM with sound only."""
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.repeat(TONE, 3)[None], "flt", "mono")
        frame.sample_rate = 48_000
        for part in [*av.AudioResampler("flt", "mono", 48_000, frame_size=960).resample(frame), None]:
            for packet in stream.encode(part):
                container.mux(packet)


def moving(path: Path) -> None:
    FRAMES[0].save(path, save_all=True, append_images=FRAMES[1:], duration=100)


ATTACHED = {
    "voice.webm": (voice, "audio", ".wav"),
    "funny.gif": (moving, "video", ".mp4"),
    "funny.webp": (moving, "video", ".mp4"),
    "photo.jfif": (lambda path: FRAMES[0].save(path, "JPEG"), "image", ".png"),
    "photo.avif": (lambda path: FRAMES[0].save(path), "image", ".png"),
    "still.gif": (lambda path: FRAMES[0].save(path), "image", ".gif"),
    "photo.png": (lambda path: FRAMES[0].save(path), "image", ".png"),
    "tone.flac": (lambda path: soundfile.write(path, TONE, 16_000), "audio", ".flac"),
    "tone.aiff": (lambda path: soundfile.write(path, TONE, 16_000), "audio", ".wav"),
    "page.html": (lambda path: FRAMES[0].save(path, "PNG"), "image", ".png"),
}


@pytest.mark.parametrize("name", ATTACHED)
def test_an_attachment_is_kept_as_what_it_holds(conversation, tmp_path, name):
    write, kind, suffix = ATTACHED[name]
    write(tmp_path / name)
    kept = conversation.keep_file(tmp_path / name)
    assert kept["type"] == kind and Path(kept["path"]).suffix == suffix
    loaded, original = load_media(kind, kept["path"]), load_media(kind, tmp_path / name)
    if kind == "video":
        assert loaded.frames.shape == original.frames.shape and loaded.fps == pytest.approx(original.fps)
    assert conversation.keep_file(kept["path"]) == kept, "asked again, it is the same"


def test_what_is_no_media_is_not_kept(conversation, tmp_path):
    (tmp_path / "song.mp3").write_text("la la la")
    with pytest.raises(UserInputError, match="song.mp3: not a picture, sound or video"):
        conversation.keep_file(tmp_path / "song.mp3")
    assert list(conversation.folder.iterdir()) == []
