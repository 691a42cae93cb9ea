"""What a file is, is what it holds: the same answer whatever it is called, and it can be read as that."""

from __future__ import annotations

import io
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from nextgpt.decoders import Audio
from nextgpt.errors import UserInputError
from nextgpt.media import guess_modality, load_media, save_media

RATE = 16000
TONE = (np.sin(np.arange(RATE) * 0.2) * 0.5).astype(np.float32)
FRAMES = [np.full((32, 48, 3), value, np.uint8) for value in (0, 80, 160, 240)]


def picture(**options):
    return lambda path: Image.fromarray(FRAMES[1]).save(path, **options)


def moving(**options):
    first, *others = map(Image.fromarray, FRAMES)
    return lambda path: first.save(path, save_all=True, append_images=others, duration=100, **options)


def sound(**options):
    return lambda path: soundfile.write(path, TONE, RATE, **options)


def encode_sound(container, codec: str) -> list:
    stream = container.add_stream(codec, rate=48000, layout="stereo")
    frame = av.AudioFrame.from_ndarray(np.stack([np.repeat(TONE, 3)] * 2), "fltp", "stereo")
    frame.sample_rate = 48000
    resampler = av.AudioResampler(stream.codec_context.format, "stereo", 48000, frame_size=stream.codec_context.frame_size)
    return [
        packet for part in [*resampler.resample(frame), *resampler.resample(None), None] for packet in stream.encode(part)
    ]


def encode_frames(container, codec: str, frames=FRAMES) -> list:
    stream = container.add_stream(codec, rate=10)
    stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
    packets = [packet for pixels in frames for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24"))]
    return packets + stream.encode()


def recording(container_format: str, sound_codec: str | None = None, picture_codec: str | None = None, frames=FRAMES):
    """What a browser or a phone writes: sound alone, pictures alone, or both."""

    def write(path: Path) -> None:
        with av.open(str(path), "w", format=container_format) as container:
            packets = encode_frames(container, picture_codec, frames) if picture_codec else []
            packets += encode_sound(container, sound_codec) if sound_codec else []
            for packet in packets:
                container.mux(packet)

    return write


def with_cover(container_format: str, codec: str):
    """A song that brings the picture of its cover."""

    def write(path: Path) -> None:
        jpeg = io.BytesIO()
        Image.fromarray(FRAMES[2]).save(jpeg, "JPEG")
        with av.open(io.BytesIO(jpeg.getvalue())) as source, av.open(str(path), "w", format=container_format) as container:
            cover = container.add_stream_from_template(source.streams.video[0])
            cover.disposition = av.stream.Disposition.attached_pic
            packets = encode_sound(container, codec)
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream, packet.pts, packet.dts = cover, 0, 0
                    container.mux(packet)
            for packet in packets:
                container.mux(packet)

    return write


FILES = {
    "png": ("image", picture(format="PNG")),
    "jpeg": ("image", picture(format="JPEG")),
    "avif": ("image", picture(format="AVIF")),
    "webp": ("image", picture(format="WEBP")),
    "gif": ("image", picture(format="GIF")),
    "bmp": ("image", picture(format="BMP")),
    "tiff with two pages": ("image", moving(format="TIFF")),
    "animated gif": ("video", moving(format="GIF")),
    "animated webp": ("video", moving(format="WEBP")),
    "animated png": ("video", moving(format="PNG")),
    "animated avif": ("video", moving(format="AVIF")),
    "wav": ("audio", sound(format="WAV")),
    "flac": ("audio", sound(format="FLAC")),
    "mp3": ("audio", sound(format="MP3")),
    "ogg": ("audio", sound(format="OGG")),
    "aiff": ("audio", sound(format="AIFF")),
    "caf": ("audio", sound(format="CAF")),
    "webm, voice": ("audio", recording("webm", "libopus")),
    "mp4, voice": ("audio", recording("mp4", "aac")),
    "aac": ("audio", recording("adts", "aac")),
    "mp3 with a cover": ("audio", with_cover("mp3", "libmp3lame")),
    "m4a with a cover": ("audio", with_cover("mp4", "aac")),
    "mp4, sound and one still": ("audio", recording("mp4", "aac", "libx264", FRAMES[:1])),
    "webm": ("video", recording("webm", "libopus", "libvpx")),
    "mp4": ("video", recording("mp4", "aac", "libx264")),
    "mp4 without sound": ("video", recording("mp4", None, "libx264")),
    "avi": ("video", recording("avi", None, "mpeg4")),
    "mkv": ("video", recording("matroska", "libopus", "libx264")),
    "mpeg-ts": ("video", recording("mpegts", "aac", "libx264")),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_it_holds_whatever_its_name(tmp_path, name):
    kind, write = FILES[name]
    path = tmp_path / "download.bin"
    write(path)
    assert guess_modality(path) == kind
    for other in ("renamed.jpg", "renamed.mp3", "renamed.mp4", "no-suffix"):
        shutil.copy(path, tmp_path / other)
        assert guess_modality(tmp_path / other) == kind
    assert guess_modality(path.read_bytes()) == kind
    loaded = load_media(kind, path)
    if kind == "audio":
        assert len(loaded.array) / loaded.sampling_rate == pytest.approx(1, abs=0.1)
        assert np.abs(loaded.array).max() == pytest.approx(0.5, abs=0.1)
    if kind == "video":
        assert loaded.frames.shape == (4, 32, 48, 3) and loaded.fps == pytest.approx(10, rel=0.01)
        assert loaded.frames.mean(axis=(1, 2, 3)) == pytest.approx([0, 80, 160, 240], abs=8)


@pytest.mark.parametrize("name", ["mp3 with a cover", "m4a with a cover", "webm, voice", "mp4, voice"])
def test_a_sound_asked_for_as_a_clip_is_refused_as_a_sound(tmp_path, name):
    FILES[name][1](tmp_path / "a.mp4")
    with pytest.raises(UserInputError, match="a.mp4: holds no pictures, only sound; give it as an audio"):
        load_media("video", tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("name", "asked", "told"),
    [
        ("mp4", "image", "not a picture but a video; give it as video"),
        ("wav", "image", "not a picture but a sound; give it as audio"),
        ("png", "audio", "not a sound but a picture; give it as image"),
        ("animated webp", "audio", "not a sound but a video; give it as video"),
        ("jpeg", "video", "holds one picture, expected a clip; give it as an image"),
    ],
)
def test_another_kind_than_was_asked_for_is_named(tmp_path, name, asked, told):
    FILES[name][1](tmp_path / "a.bin")
    with pytest.raises(UserInputError, match=rf"a\.bin: {told}"):
        load_media(asked, tmp_path / "a.bin")


def test_a_clip_gives_its_first_frame_or_its_sound_when_asked_for(tmp_path):
    FILES["animated gif"][1](tmp_path / "a.gif")
    FILES["mp4"][1](tmp_path / "a.mp4")
    assert load_media("image", tmp_path / "a.gif").getpixel((0, 0)) == (0, 0, 0)
    assert np.abs(load_media("audio", tmp_path / "a.mp4").array).max() > 0.4


def heic(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(200)


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_a_heic_picture_is_a_picture_that_has_to_be_exported(tmp_path, brand):
    (tmp_path / "phone.heic").write_bytes(heic(brand))
    assert guess_modality(tmp_path / "phone.heic") == "image"
    with pytest.raises(UserInputError, match="phone.heic: a HEIC picture, .*export it as JPEG or PNG"):
        load_media("image", tmp_path / "phone.heic")
    with pytest.raises(UserInputError, match="phone.heic: holds one picture"):
        load_media("video", tmp_path / "phone.heic")


@pytest.mark.parametrize("content", [b"Just some words.\n" * 50, b"%PDF-1.7\n" + bytes(500), b"\x7fELF" + bytes(range(256))])
def test_what_is_none_of_them_is_refused_by_name(tmp_path, content):
    (tmp_path / "notes.png").write_bytes(content)
    with pytest.raises(UserInputError, match=r"notes\.png: not a picture, sound or video .*give one of image \(png"):
        guess_modality(tmp_path / "notes.png")


def test_a_file_that_is_not_there_is_no_kind(tmp_path):
    with pytest.raises(UserInputError, match=r"gone\.png: no such file"):
        guess_modality(tmp_path / "gone.png")


def test_programs_in_the_clothes_of_pictures_are_not_run(tmp_path):
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\nshowpage\n")
    with pytest.raises(UserInputError, match="page.png: not a picture that can be read"):
        load_media("image", tmp_path / "page.png")


def test_a_recording_of_unknown_length_is_read(tmp_path):
    """As browsers stream it: no duration in the header, times in milliseconds, uneven."""
    starts = [0, 0.033, 0.066, 0.101, 0.133, 0.165, 0.201, 0.233]
    with av.open(str(tmp_path / "a.webm"), "w", format="webm", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=30)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, start in enumerate(starts):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), i * 30, np.uint8), "rgb24")
            frame.pts, frame.time_base = round(start * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert guess_modality(tmp_path / "a.webm") == "video"
    clip = load_media("video", tmp_path / "a.webm")
    assert len(clip.frames) / clip.fps == pytest.approx(0.266, abs=0.02)
    middle = clip.frames[int(0.12 * clip.fps)].mean()
    assert middle == pytest.approx(90, abs=8), "at 0.12 seconds the fourth frame is on show"


def test_tags_that_are_not_utf8_do_not_matter(tmp_path):
    soundfile.write(tmp_path / "plain.mp3", TONE, RATE)
    tag = b"TAG" + "F\u00fcr Elise".encode("latin-1").ljust(125, b"\0")  # ID3v1
    (tmp_path / "tagged.mp3").write_bytes((tmp_path / "plain.mp3").read_bytes() + tag)
    assert guess_modality(tmp_path / "tagged.mp3") == "audio"
    plain, tagged = (load_media("audio", tmp_path / f"{name}.mp3").array for name in ("plain", "tagged"))
    assert abs(len(plain) - len(tagged)) < 1200 and np.abs(plain[:8000] - tagged[:8000]).max() < 1e-3


def test_a_small_file_of_endless_silence_is_refused_before_it_is_unpacked(tmp_path):
    with soundfile.SoundFile(tmp_path / "silence.flac", "w", 655_350, 1, "PCM_16") as file:
        for _ in range(190):
            file.write(np.zeros(655_350, np.int16))
    with pytest.raises(UserInputError, match=r"124,516,500 samples, at most 120,000,000 are taken"):
        load_media("audio", tmp_path / "silence.flac")


@pytest.mark.parametrize("name", ["a.ogg", "a.jpg", "a.webm", "a"])
def test_media_are_written_in_one_form_each(name, tmp_path):
    with pytest.raises(ValueError, match=r"name one that ends in .png, .wav, .mp4"):
        save_media(Audio(TONE, RATE), tmp_path / name)


def test_a_picture_that_cannot_be_unpacked_is_refused():
    file = io.BytesIO()
    Image.fromarray(FRAMES[1]).save(file, "BMP")
    strange = bytearray(file.getvalue())
    strange[30:34] = (99).to_bytes(4, "little")  # a compression that does not exist
    with pytest.raises(UserInputError, match="that can be read"):
        guess_modality(bytes(strange))
    with pytest.raises(UserInputError, match="not a picture that can be read"):
        load_media("image", bytes(strange))
