"""The picture of a chat, with an assistant that answers at once."""

import shutil
from pathlib import Path

import numpy as np

from nextgpt.decoders import Audio, Video
from nextgpt.demo.transcript import as_picture, chat, render
from nextgpt.events import Reply
from nextgpt.media.stills import STRIP

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity" / "media"
SOUND = Audio(np.concatenate([np.zeros(8000), np.ones(8000)]).astype(np.float32), 16_000)
CLIP = Video(np.repeat(np.arange(4, dtype=np.uint8) * 60, 32 * 32 * 3).reshape(4, 32, 32, 3), 4)


def test_every_kind_of_media_has_its_place_in_the_picture(tmp_path):
    def answer(conversation, seed):
        content = [{"type": "text", "text": "Here."}, {"type": "audio", "audio": SOUND}, {"type": "video", "video": CLIP}]
        return Reply({"role": "assistant", "content": content})

    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    files = [shutil.copy(FIXTURES / name, folder) for name in ("shapes.png", "sweep.wav", "disc.mp4")]
    said = chat(answer, [f"{file} What is this?" for file in files], seed=0)
    assert [len(parts) for _, parts in said] == [2, 3] * 3
    assert [parts[1] for who, parts in said if who == "You"] == ["What is this?"] * 3
    only_words = render([(who, [part for part in parts if isinstance(part, str)]) for who, parts in said])
    pictures = [part for _, parts in said for part in parts if not isinstance(part, str)]
    assert render(said).height == only_words.height + sum(picture.height + 8 for picture in pictures)


def test_a_sound_is_drawn_as_loud_as_it_is_and_a_clip_from_beginning_to_end():
    wave = np.asarray(as_picture("audio", SOUND).convert("L")) < 250
    assert wave[:, : STRIP // 2 - 1].sum() < wave[:, STRIP // 2 + 1 :].sum() / 10
    strip = np.asarray(as_picture("video", CLIP))
    assert [int(strip[80, STRIP * i // 8, 0]) for i in (1, 3, 5, 7)] == [0, 60, 120, 180]
