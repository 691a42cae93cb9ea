"""Reads clips as they are meant to be shown: upright, square pixels, on white, at a constant frame rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from nextgpt.decoders import Video
from nextgpt.errors import UserInputError
from nextgpt.media.images import animation_frames, describe
from nextgpt.media.kinds import (
    declared_seconds,
    is_animated,
    is_heic,
    moving_pictures,
    open_container,
    open_picture,
    wrong_kind,
)
from nextgpt.media.limits import (
    MAX_REPEATED_BYTES,
    MAX_VIDEO_BYTES,
    MAX_VIDEO_FRAMES,
    MIN_DECODED,
    check_duration,
    check_pixels,
    check_whole,
)
from nextgpt.modalities import MODALITIES

MAX_RATE = 120  # frames per second of a clip whose rate varies
WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders leave the stream of transparency out


def read_video(file: BinaryIO, name: str) -> Video:
    """A clip, or a picture that moves → frames at a constant rate.

    Raises:
        UserInputError: it holds no moving pictures, is broken, too long or too large.
    """
    image = open_picture(file, name)
    if image is not None and (is_animated(image) or image.format == "GIF"):
        return _read_animation(image, name)
    if image is not None or is_heic(file):
        raise UserInputError(f"{name}: holds one picture, expected a clip; give it as an image")
    return _read_streams(file, name)


def ready_video(value: Any) -> Video:
    """`(uint8 frames [time, height, width, 3], fps)` → the same."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], np.ndarray):
        frames, fps = value
        is_clip = frames.ndim == 4 and frames.shape[-1] == 3 and frames.dtype == np.uint8 and 0 not in frames.shape
        if is_clip and isinstance(fps, (int, float, np.number)) and fps > 0 and math.isfinite(fps):
            return Video(frames, float(fps))
    raise UserInputError(
        f"video given as {describe(value)}: expected a path, bytes or (uint8 frames [time, height, width, 3], fps)"
    )


def save_video(video: Video, path: str | Path) -> None:
    """Writes a clip as MP4 (H.264)."""
    import av

    height, width = video.frames.shape[1:3]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(video.fps).limit_denominator(1000))
        stream.width, stream.height = width + width % 2, height + height % 2  # H.264 needs even sizes
        stream.pix_fmt = "yuv420p"
        for frame in video.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


class _Frames:
    """Frames and when each is shown. Where they outgrow the limits, every second one goes, over the whole length."""

    def __init__(self, name: str):
        self.name, self.frames, self.times, self.stride, self.seen = name, [], [], 1, 0

    def add(self, seconds: float, pixels: Callable[[], np.ndarray]) -> None:
        """Takes the next frame, shown from `seconds` on; its `pixels` are asked for only where it is kept."""
        check_duration("video", seconds, self.name)  # recordings may not know their length
        self.seen += 1
        if (self.seen - 1) % self.stride:
            return
        frame = pixels()
        if self.frames and frame.shape != self.frames[0].shape:  # a recorded window, or a turned phone: as FFmpeg does
            height, width = self.frames[0].shape[:2]
            frame = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
        self.frames.append(frame)
        self.times.append(seconds)
        if len(self.frames) > MAX_VIDEO_FRAMES or len(self.frames) * self.frames[0].nbytes > MAX_VIDEO_BYTES:
            self.frames, self.times, self.stride = self.frames[::2], self.times[::2], self.stride * 2

    def _taken(self) -> np.ndarray:
        """All frames as one array; each goes as it is copied, so that they do not stand in memory twice."""
        whole = np.empty((len(self.frames), *self.frames[0].shape), np.uint8)
        for number in range(len(whole)):
            whole[number], self.frames[number] = self.frames[number], None
        return whole

    def video(self, end: float | None, fps: float) -> Video:
        """All of them at a constant rate.

        Args:
            end: until when the last one is shown, in seconds; None where the file does not say it.
            fps: as the file says it, 0 where it does not.
        """
        if not self.frames:
            raise UserInputError(f"{self.name}: the video has no frames; record or export it again")
        count, times = len(self.frames), np.maximum.accumulate(self.times)
        gaps = np.diff(times)
        shortest = float(np.quantile(gaps[gaps > 0], 0.1, method="lower")) if (gaps > 0).any() else 1 / (fps or 1.0)
        end = times[-1] + shortest if end is None else end
        check_duration("video", end, self.name)
        for rate in (fps / self.stride, _exact(count / end)):
            is_constant = rate and np.abs(times * rate - np.arange(count)).max() < 0.1
            if is_constant and 0 < end * rate - (count - 1) < 1.5:
                return Video(self._taken(), rate)
        most = max(count, min(MAX_VIDEO_FRAMES, MAX_REPEATED_BYTES // self.frames[0].nbytes))
        rate = _common_rate(np.append(gaps, end - times[-1]), max(shortest, 1 / MAX_RATE))
        total = min(max(round(end * rate), 1), most)
        middles = (np.arange(total) + 0.5) * end / total  # of the new frames, in seconds
        shown = np.searchsorted(times, middles, side="right") - 1
        return Video(np.stack([self.frames[index] for index in shown]), _exact(total / end))


def _exact(fps: float) -> float:
    """Without the rounding of times, on which it depends which frame an encoder takes first."""
    return float(Fraction(fps).limit_denominator(1001)) or fps  # 1001 is the denominator of NTSC's rates


def _common_rate(gaps: np.ndarray, shortest: float) -> float:
    """A frame rate of which all the times between frames, in seconds, are multiples; if there is none, a fine one."""
    for parts in range(1, 6):
        ticks = gaps * parts / shortest
        if np.abs(ticks - ticks.round()).max() < 0.1:
            return min(parts / shortest, MAX_RATE)
    return min(2 / shortest, MAX_RATE)


def _read_animation(image: Image.Image, name: str) -> Video:
    frames, seconds = _Frames(name), 0.0
    for frame, shown in animation_frames(image, name):
        frames.add(seconds, lambda frame=frame: np.asarray(frame))
        seconds += shown
    return frames.video(seconds, 0.0)


def _read_streams(file: BinaryIO, name: str) -> Video:
    import av

    try:
        with open_container(file) as container:
            stream = moving_pictures(container)
            if stream is None:
                give = MODALITIES["video"].formats
                hint = ", only sound; give it as an audio" if container.streams.audio else f"; give {give}"
                raise UserInputError(f"{name}: holds no pictures{hint}")
            stream.thread_type = "AUTO"
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            declared = float(stream.duration * stream.time_base) if stream.duration else None
            check_duration("video", declared or (container.duration or 0) / av.time_base, name)
            frames, start, last, length = _Frames(name), None, 0.0, 0.0
            for frame in _decoded(container, stream):
                time = frame.time if frame.time is not None else frames.seen / (fps or 1.0)
                start = time if start is None else start
                last, length = time - start, float((frame.duration or 0) * (frame.time_base or 0))
                frames.add(last, lambda frame=frame: as_shown(frame, stream.sample_aspect_ratio, name))
            if frames.seen < MIN_DECODED * stream.frames:
                raise UserInputError(f"{name}: breaks off after {frames.seen} of {stream.frames} frames; copy it again")
            if "matroska" in container.format.name:  # which counts no frames
                check_whole(last + length, declared_seconds(container, stream), name)
            if declared is not None:  # the length of a frame is that of its place in the file, not on the screen
                return frames.video(declared if declared > last else None, fps)
            return frames.video(last + length if length else None, fps)
    except av.FFmpegError as error:
        raise wrong_kind(file, name, "video", error.strerror) from None


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream, with the transparency that WebM keeps beside the pictures."""
    import av

    decoder = WITH_ALPHA.get(stream.codec_context.name)
    if stream.metadata.get("alpha_mode") != "1" or decoder not in av.codecs_available:
        yield from container.decode(stream)
        return
    context = av.CodecContext.create(decoder, "r")
    context.extradata = stream.codec_context.extradata
    for packet in container.demux(stream):  # the last one is empty and flushes the decoder
        yield from context.decode(packet if packet.size else None)


def as_shown(frame: Any, pixel_aspect: Any, name: str) -> np.ndarray:
    """A decoded frame → uint8 `[H, W, 3]` with square pixels, laid on white, turned and mirrored as its matrix says.

    Args:
        frame: `av.VideoFrame`.
        pixel_aspect: width of a pixel over its height; None or 0 where it is unknown.
    """
    aspect = float(pixel_aspect or 1)
    width, height = round(frame.width * max(aspect, 1)), round(frame.height * max(1 / aspect, 1))
    check_pixels(width, height, name)
    has_alpha = any(component.is_alpha for component in frame.format.components)
    pixels = frame.to_ndarray(format="rgba" if has_alpha else "rgb24")
    if has_alpha:
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if (width, height) != (frame.width, frame.height):  # in RGB: FFmpeg would blur the coarser colours of most clips
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    return _turned(pixels, frame)


def _turned(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """By the display matrix [a b u; c d v; x y w], which moves a point to (a x + c y, b x + d y), in quarter turns."""
    matrices = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    if not matrices:
        return pixels
    a, b, _, c, d = np.frombuffer(matrices[0], np.int32)[:5].tolist()
    across, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
