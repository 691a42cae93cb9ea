"""Preprocessing: equal to the reference's on our own media; any size, length, rate and mode works."""

import json
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors import safe_open

from nextgpt.encoders import imagebind_huge_config, preprocessor_for
from tiny_encoders import tiny_imagebind_config

PARITY = Path(__file__).parent.parent / "fixtures" / "parity"
MEDIA = PARITY / "media"


@pytest.fixture(scope="module")
def reference():
    """Made by ImageBind's `data.py`, with the clip spacing of pytorchvideo 0.1.5, from the files in `media`."""
    with safe_open(PARITY / "preprocessing.safetensors", "pt") as file:
        yield file


@pytest.fixture(scope="module")
def official():
    return preprocessor_for(imagebind_huge_config())


@pytest.fixture
def tiny():
    return preprocessor_for(tiny_imagebind_config())


def decode_video(path: Path) -> tuple[np.ndarray, float]:
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames), float(container.streams.video[0].average_rate)


def test_image_equals_the_reference(official, reference):
    values = official.image(Image.open(MEDIA / "shapes.png"))
    torch.testing.assert_close(values, reference.get_tensor("image.shapes.png").float(), atol=1e-2, rtol=0)


def test_audio_equals_the_reference(official, reference):
    waveform, sampling_rate = soundfile.read(MEDIA / "sweep.wav", dtype="float32")
    values = official.audio(waveform, sampling_rate)
    torch.testing.assert_close(values, reference.get_tensor("audio.sweep.wav"), atol=1e-3, rtol=0)


def test_video_equals_the_reference(official, reference):
    values = official.video(*decode_video(MEDIA / "disc.mp4"))
    assert values.shape == (15, 3, 2, 224, 224)
    stored = reference.get_tensor("video.disc.mp4.views_0_7_14").float()
    torch.testing.assert_close(values[[0, 7, 14]], stored, atol=1e-2, rtol=0)
    means = reference.get_tensor("video.disc.mp4.view_means")
    torch.testing.assert_close(values.mean(dim=(1, 2, 3, 4)), means, atol=1e-4, rtol=0)


def test_text_tokens_equal_the_reference(official, reference):
    tokens = official.text(json.loads(reference.metadata()["texts"]))
    assert torch.equal(tokens, reference.get_tensor("text.tokens"))


def test_colour_numbers_are_open_clips():
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    config = imagebind_huge_config()
    assert (config.image_mean, config.image_std) == (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (300, 7), (5, 200)])
def test_pictures_of_any_mode_and_size(tiny, mode, size):
    values = tiny.image(Image.new(mode, size))
    assert values.shape == (3, 16, 16)
    assert values.isfinite().all()


def test_a_strip_of_a_picture_does_not_fill_the_memory(official):
    tracemalloc.start()
    assert official.image(Image.new("RGB", (30_000, 1))).shape == (3, 224, 224)
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()


@pytest.mark.parametrize("sampling_rate", [8000, 16000, 22050, 44100, 44101, 48000, 192000])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 4.5])
def test_sounds_of_any_rate_and_length(tiny, sampling_rate, seconds):
    tone = np.sin(2 * np.pi * 440 * np.arange(int(seconds * sampling_rate)) / sampling_rate).astype(np.float32)
    values = tiny.audio(tone, sampling_rate)
    assert values.shape == (2, 1, 16, 96)
    assert values.isfinite().all()


def test_a_sound_of_one_sample_and_silence_are_sounds(tiny):
    for waveform in (np.zeros(1, np.float32), np.zeros(40_000, np.float32)):
        assert tiny.audio(waveform, 44100).isfinite().all()


def test_the_same_tone_looks_the_same_at_any_rate(tiny):
    def tone(rate: int) -> np.ndarray:
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)

    low, high = tiny.audio(tone(16000), 16000), tiny.audio(tone(48000), 48000)
    peak = low[..., 10:80].mean(dim=(0, 1, 3)).argmax()
    assert high[..., 10:80].mean(dim=(0, 1, 3)).argmax() == peak


def test_stereo_is_the_mean_of_its_channels_and_is_left_unchanged(tiny):
    stereo = np.random.default_rng(0).normal(size=(2, 30_000)).astype(np.float32)
    before = stereo.copy()
    torch.testing.assert_close(tiny.audio(stereo, 16000), tiny.audio(stereo.mean(axis=0), 16000))
    assert np.array_equal(stereo, before)


@pytest.mark.parametrize("fps", [0.1, 1, 12, 23.976, 60])
@pytest.mark.parametrize("num_frames", [1, 3, 40])
def test_videos_of_any_rate_and_length(tiny, fps, num_frames):
    frames = np.zeros((num_frames, 9, 21, 3), np.uint8)
    assert tiny.video(frames, fps).shape == (6, 3, 2, 16, 16)


def test_crops_go_along_the_longer_side_and_frames_through_the_clip():
    frames = np.zeros((8, 16, 48, 3), np.uint8)
    frames[:, :, 32:] = 255  # white at the right
    frames[4:, :, :16] = 255  # and at the left, from the middle of the video on
    views = preprocessor_for(tiny_imagebind_config(video_clips=1, video_clip_seconds=2)).video(frames, 4)
    left, centre, right = (view.mean(dim=(0, 2, 3)) for view in views)
    assert left[0] < 0 < left[1]
    assert (centre < 0).all()
    assert (right > 0).all()


def test_every_frame_of_a_short_clip_is_seen_when_the_encoder_takes_as_many():
    config = tiny_imagebind_config(video_frames=8, kernel_size=[8, 8, 8], video_clips=1, video_clip_seconds=2)
    frames = np.zeros((8, 16, 16, 3), np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None, None] * 30
    brightness = preprocessor_for(config).video(frames, 4)[0].mean(dim=(0, 2, 3))
    assert (brightness.diff() > 0).all()


def test_long_text_is_cut_but_ended(tiny):
    tokens = tiny.text(["word " * 100, ""])
    assert tokens.shape == (2, 20)
    assert tokens[0, -1] == tokens[1, 1] == 49407


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: p.audio(np.zeros(0, np.float32), 16000), "at least one sample"),
        (lambda p: p.audio(np.zeros(10, np.int16), 16000), "int16"),
        (lambda p: p.audio(np.zeros(10, np.float32), 0), "sampling_rate is 0"),
        (lambda p: p.audio(np.array([0, np.nan, 0], np.float32), 16000), "NaN or infinite"),
        (lambda p: p.audio(np.array([0, 1e300, 0]), 16000), "NaN or infinite"),
        (lambda p: p.video(np.zeros((0, 4, 4, 3), np.uint8), 4), "T >= 1"),
        (lambda p: p.video(np.zeros((2, 4, 4, 3), np.float32), 4), "float32"),
        (lambda p: p.video(np.zeros((2, 4, 4, 3), np.uint8), float("nan")), "fps is nan"),
    ],
)
def test_what_cannot_be_used_is_said(tiny, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny)
