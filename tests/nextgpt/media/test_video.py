"""A clip is read as a player shows it: upright, with square pixels, on white, every frame for as long as it is shown."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from nextgpt.decoders import Video
from nextgpt.encoders import preprocessor_for
from nextgpt.errors import UserInputError
from nextgpt.media import load_media
from tiny_models import tiny_encoder_config

RATE, COUNT, HEIGHT, WIDTH = 10, 16, 48, 96
SHARP = {"libx264": {"crf": "4", "preset": "fast"}, "libvpx-vp9": {"crf": "4", "b": "0", "auto-alt-ref": "0"}}
SHARP["libvpx"] = {"crf": "4", "b": "4M", "auto-alt-ref": "0"}


def scene(count: int = COUNT) -> np.ndarray:
    """Frames `[count, HEIGHT, WIDTH, 3]` without any symmetry, in space or time."""
    frames = np.full((count, HEIGHT, WIDTH, 3), 60, np.uint8)
    frames[:, : HEIGHT // 2, : WIDTH // 2] = (220, 40, 40)
    frames[:, HEIGHT // 2 :, WIDTH // 2 :] = (40, 60, 220)
    for i in range(count):
        frames[i, 8:24, 60 - 3 * i : 76 - 3 * i] = (240, 230, 60)
        frames[i, 32:] = np.maximum(frames[i, 32:], 255 * i // count)
    return frames


def write(path: Path, frames: np.ndarray, codec="libx264", pix_fmt="yuv420p", times=None, turn=None, aspect=None) -> Path:
    """A clip; `times` in seconds in place of a constant rate; `turn`: degrees and whether mirrored; `aspect` of a pixel."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=SHARP.get(codec, {}))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        if turn:
            stream.set_display_rotation(turn[0], hflip=turn[1])
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgba" if pixels.shape[-1] == 4 else "rgb24")
            frame.pts, frame.time_base = round(1000 * (times[i] if times else i / RATE)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def seen(video: Video) -> np.ndarray:
    """What an encoder is given, in pixel values 0..1."""
    config = tiny_encoder_config(video_clips=2, video_crops=3, video_frames=4, kernel_size=[4, 16, 16])
    config.image_mean, config.image_std = [0.0] * 3, [1.0] * 3
    return preprocessor_for(config).video(*video).numpy()


def difference(one: Video, other: Video) -> float:
    return float(np.abs(seen(one) - seen(other)).mean())


def assert_reads_like(found: Video, plain: Video, wrong: Video) -> None:
    """Near what it is meant to be, and far nearer than to the reading of the bare pixels."""
    assert found.frames.shape[1:] == plain.frames.shape[1:]
    right = difference(found, plain)
    assert right <= 0.02
    assert difference(wrong, plain) >= 5 * right


@pytest.mark.parametrize("mirrored", [False, True], ids=["", "mirrored"])
@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_turned_clip_is_upright(tmp_path, degrees, mirrored):
    shown = scene()
    stored = np.flip(shown, 2) if mirrored else shown  # what the camera saw before it was mirrored, then turned
    stored = np.rot90(stored, -degrees // 90, axes=(1, 2))
    found = load_media("video", write(tmp_path / "phone.mp4", stored, turn=(degrees, mirrored)))
    plain = load_media("video", write(tmp_path / "plain.mp4", shown))
    assert_reads_like(found, plain, load_media("video", write(tmp_path / "bare.mp4", stored)))


@pytest.mark.parametrize("aspect", ["2", "1/2"])
def test_pixels_that_are_not_square_are_stretched(tmp_path, aspect):
    shown = scene()
    halves = (shown[:, :, ::2], shown[:, :, 1::2]) if aspect == "2" else (shown[:, ::2], shown[:, 1::2])
    stored = np.mean(halves, axis=0).astype(np.uint8)
    found = load_media("video", write(tmp_path / "dvd.mp4", stored, pix_fmt="yuv444p", aspect=aspect))
    plain = load_media("video", write(tmp_path / "plain.mp4", shown, pix_fmt="yuv444p"))
    assert found.frames.shape == plain.frames.shape
    assert_reads_like(found, plain, Video(stored, RATE))


def with_alpha(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scene cut out in a moving window, on black that must not be seen; the same laid on white."""
    alpha = np.zeros((*frames.shape[:3], 1), np.uint8)
    for i in range(len(frames)):
        alpha[i, 8:40, 2 * i : 2 * i + 48] = 255
        alpha[i, 8:40, 2 * i + 48 : 2 * i + 64] = 128
    hidden = np.where(alpha > 0, frames, 0).astype(np.uint8)
    white = (hidden * (alpha / 255) + 255 * (1 - alpha / 255)).round().astype(np.uint8)
    return np.concatenate([hidden, alpha], axis=-1), white


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [("libvpx-vp9", "yuva420p", "webm"), ("libvpx", "yuva420p", "webm"), ("qtrle", "argb", "mov"), ("ffv1", "bgra", "mkv")],
)
def test_what_is_transparent_lies_on_white(tmp_path, codec, pix_fmt, suffix):
    cut_out, white = with_alpha(scene())
    found = load_media("video", write(tmp_path / f"cut-out.{suffix}", cut_out, codec, pix_fmt))
    assert found.fps == RATE and len(found.frames) == COUNT
    assert_reads_like(found, Video(white, RATE), Video(cut_out[..., :3], RATE))


HELD = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4, 5]  # which of six pictures is on show, every tenth of a second
STARTS = [HELD.index(i) / RATE for i in range(6)]


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("libvpx-vp9", "webm"), ("ffv1", "mkv")])
def test_each_frame_is_shown_for_its_time(tmp_path, codec, suffix):
    pictures = scene()[::3]
    found = load_media("video", write(tmp_path / f"screen.{suffix}", pictures, codec, "yuv420p", times=STARTS))
    plain = load_media("video", write(tmp_path / f"plain.{suffix}", pictures[HELD], codec, "yuv420p"))
    assert len(found.frames) / found.fps == pytest.approx(COUNT / RATE, abs=0.01)
    wrong = Video(pictures, len(pictures) * RATE / COUNT)
    assert_reads_like(found, plain, wrong)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "avif"])
def test_a_picture_that_moves_is_a_clip_with_its_delays(tmp_path, suffix):
    pictures = scene()[::3]
    delays = [100 * HELD.count(i) for i in range(6)]
    first, *others = map(Image.fromarray, pictures)
    options = {"webp": {"lossless": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}.get(suffix, {})
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others, duration=delays, **options)
    found = load_media("video", tmp_path / f"a.{suffix}")
    assert_reads_like(found, Video(pictures[HELD], RATE), Video(pictures, len(pictures) * RATE / COUNT))


def test_a_gif_that_names_no_delay_runs_as_in_a_browser(tmp_path):
    first, *others = map(Image.fromarray, scene(5))
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=0)
    found = load_media("video", tmp_path / "a.gif")
    assert len(found.frames) == 5 and found.fps == pytest.approx(10)


def test_a_transparent_gif_lies_on_white(tmp_path):
    cut_out, white = with_alpha(scene())
    cut_out[..., 3] = np.where(cut_out[..., 3] > 200, 255, 0)
    expected = np.where(cut_out[..., 3:] > 0, white, 255)
    first, *others = (Image.fromarray(frame, "RGBA") for frame in cut_out)
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=100, disposal=2)
    found = load_media("video", tmp_path / "a.gif")
    assert difference(found, Video(expected, RATE)) < 0.02


def test_a_constant_rate_stays_frame_for_frame(tmp_path):
    for name in ("a.mp4", "b.webm"):
        codec = "libx264" if name == "a.mp4" else "libvpx-vp9"
        found = load_media("video", write(tmp_path / name, scene(), codec))
        assert found.fps == RATE and found.frames.shape == (COUNT, HEIGHT, WIDTH, 3)


def test_a_clip_that_changes_its_size_keeps_the_first(tmp_path):
    """As browsers record a window that is resized."""
    with av.open(str(tmp_path / "window.webm"), "w") as container:
        streams = []
        for size in ((64, 48), (32, 24)):
            encoder = av.CodecContext.create("libvpx", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = *size, "yuv420p", Fraction(1, 1000)
            streams.append(encoder)
        track = container.add_stream("libvpx", rate=RATE)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        for i in range(8):
            encoder = streams[i // 4]
            pixels = np.full((encoder.height, encoder.width, 3), 30 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = 100 * i, Fraction(1, 1000)
            for packet in encoder.encode(frame) + (encoder.encode(None) if i % 4 == 3 else []):
                packet.stream, packet.time_base = track, Fraction(1, 1000)
                container.mux(packet)
    found = load_media("video", tmp_path / "window.webm")
    assert found.frames.shape == (8, 48, 64, 3)
    assert found.frames.mean(axis=(1, 2, 3)) == pytest.approx([30 * i for i in range(8)], abs=6)


def test_a_length_in_the_header_that_is_too_short_is_not_believed(tmp_path):
    """Some browsers count it in another unit than they say."""
    path = write(tmp_path / "browser.mp4", scene()[::3], times=STARTS)
    data = bytearray(path.read_bytes())
    length = data.index(b"mdhd") + 4 + 4 + 4 + 4 + 4  # version and flags, two dates, units a second
    data[length : length + 4] = (int.from_bytes(data[length : length + 4]) // 30).to_bytes(4)
    path.write_bytes(data)
    found = load_media("video", path)
    assert len(found.frames) / found.fps == pytest.approx(COUNT / RATE, abs=0.15)


def test_a_webm_clip_that_breaks_off_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (COUNT, HEIGHT, WIDTH, 3), np.uint8)
    data = write(tmp_path / "whole.webm", noise, "libvpx-vp9").read_bytes()
    (tmp_path / "half.webm").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserInputError, match=r"half\.webm: breaks off after 0\.\d of 1\.6 s"):
        load_media("video", tmp_path / "half.webm")


def test_a_still_that_is_held_long_takes_little_memory(tmp_path):
    first, second = (Image.fromarray(np.full((500, 500, 3), value, np.uint8)) for value in (0, 250))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second], duration=[20, 60_000])
    found = load_media("video", tmp_path / "a.gif")
    assert found.frames.nbytes < 500_000_000
    assert len(found.frames) / found.fps == pytest.approx(60, abs=0.1)


def test_a_clip_of_many_frames_keeps_its_length_at_a_lower_rate(tmp_path):
    frames = np.zeros((2500, 16, 16, 3), np.uint8)
    frames[1250:] = 255
    found = load_media("video", write(tmp_path / "long.mp4", frames))
    assert len(found.frames) <= 2048 and len(found.frames) / found.fps == pytest.approx(250, abs=1)
    brightness = found.frames.mean(axis=(1, 2, 3)) > 128
    assert brightness.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), None, "5"])
def test_a_rate_that_is_none_is_refused(fps):
    with pytest.raises(UserInputError, match="expected a path, bytes or .uint8 frames"):
        load_media("video", (np.zeros((2, 4, 4, 3), np.uint8), fps))
    with pytest.raises(UserInputError, match="float32"):
        load_media("video", (np.full((2, 4, 4, 3), np.nan, np.float32), 5))
