"""A sound has one level, whatever it is stored in; numbers that are none are refused by name."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile

from nextgpt.decoders import Audio
from nextgpt.errors import UserInputError
from nextgpt.media import load_media

RATE = 48000
TIME = np.arange(RATE) / RATE
TONE = (0.5 * np.sin(2 * np.pi * 440 * TIME)).astype(np.float32)


def rms(sound: Audio) -> float:
    """Of the middle: lossy codecs fade in and out."""
    quarter = len(sound.array) // 4
    return float(np.sqrt(np.mean(np.square(sound.array[quarter:-quarter]))))


def encode(channels: np.ndarray, layout: str, container_format: str, codec: str) -> bytes:
    """`[channels, samples]` → a file."""
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=RATE, layout=layout)
        stream.codec_context.bit_rate = 64_000 * len(channels)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), "fltp", layout)
        frame.sample_rate = RATE
        context = stream.codec_context
        resampler = av.AudioResampler(context.format, layout, RATE, frame_size=context.frame_size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            for packet in stream.encode(part):
                container.mux(packet)
    return file.getvalue()


def wav(samples: np.ndarray, subtype: str = "PCM_16", rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype=subtype, format="WAV")
    return file.getvalue()


STEREO = {
    "wav": lambda both: wav(both.T),
    "float wav": lambda both: wav(both.T, "FLOAT"),
    "array": lambda both: (both, RATE),
    "int16 array": lambda both: ((both * 32767).astype(np.int16), RATE),
    "m4a": lambda both: encode(both, "stereo", "mp4", "aac"),
    "mp3": lambda both: encode(both, "stereo", "mp3", "libmp3lame"),
    "webm": lambda both: encode(both, "stereo", "webm", "libopus"),
    "ogg": lambda both: encode(both, "stereo", "ogg", "libopus"),
    "mkv": lambda both: encode(both, "stereo", "matroska", "pcm_s16le"),
}


@pytest.mark.parametrize("kind", STEREO)
@pytest.mark.parametrize("right", [1.0, 0.0], ids=["both", "left only"])
def test_stereo_is_the_mean_of_its_channels_in_every_reader(kind, right):
    sound = load_media("audio", STEREO[kind](np.stack([TONE, right * TONE])))
    assert rms(sound) == pytest.approx(0.5 / np.sqrt(2) * (1 + right) / 2, rel=0.06)  # LAME lowers all by 5%


@pytest.mark.parametrize("kind", ["wav", "array", "m4a", "mkv", "webm"])
def test_a_centre_channel_counts_like_any_other(kind):
    channels = np.zeros((6, RATE), np.float32)
    channels[2] = TONE
    made = {
        "wav": lambda: wav(channels.T),
        "array": lambda: (channels, RATE),
        "m4a": lambda: encode(channels, "5.1", "mp4", "aac"),
        "mkv": lambda: encode(channels, "5.1", "matroska", "pcm_s16le"),
        "webm": lambda: encode(channels, "5.1", "webm", "libopus"),
    }
    assert rms(load_media("audio", made[kind]())) == pytest.approx(0.5 / np.sqrt(2) / 6, rel=0.05)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_integers_are_scaled_by_their_type_around_their_middle(dtype):
    half = 2 ** (8 * np.dtype(dtype).itemsize - 1)
    middle = half if np.dtype(dtype).kind == "u" else 0
    sound = load_media("audio", ((TONE * (half - 1) + middle).round().astype(dtype), RATE))
    assert rms(sound) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
    assert abs(sound.array.mean()) < 0.01
    quiet = load_media("audio", (np.full(100, middle, dtype), RATE))
    assert (quiet.array == 0).all()


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_every_depth_of_wav_gives_the_same_sound(subtype):
    sound = load_media("audio", wav(TONE, subtype))
    assert np.abs(sound.array - TONE).max() < 0.02


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e29, 32767.0, 1.5])
def test_samples_that_are_none_are_refused_in_files_and_arrays(tmp_path, wrong):
    samples = TONE.copy()
    samples[1000] = wrong
    reason = "NaN or infinite" if not np.isfinite(wrong) else r"float samples up to .*expected -1 to 1; divide them"
    for subtype in ("FLOAT", "DOUBLE"):
        (tmp_path / "a.wav").write_bytes(wav(samples, subtype))
        with pytest.raises(UserInputError, match=rf"a\.wav: holds {reason}"):
            load_media("audio", tmp_path / "a.wav")
    (tmp_path / "a.mkv").write_bytes(encode(samples[None], "mono", "matroska", "pcm_f32le"))
    with pytest.raises(UserInputError, match=rf"a\.mkv: holds {reason}"):
        load_media("audio", tmp_path / "a.mkv")
    for value in (samples, samples.astype(np.float64), np.stack([TONE, samples])):
        with pytest.raises(UserInputError, match=f"audio array: holds {reason}"):
            load_media("audio", (value, RATE))


def test_what_a_codec_adds_beyond_full_scale_is_clipped():
    square = np.sign(TONE).astype(np.float32)
    for container_format, codec in (("mp3", "libmp3lame"), ("mp4", "aac"), ("ogg", "libopus")):
        sound = load_media("audio", encode(square[None], "mono", container_format, codec))
        assert 0.9 < np.abs(sound.array).max() <= 1
    assert np.abs(load_media("audio", (square * 1.05, RATE)).array).max() == 1
    assert np.abs(load_media("audio", Audio(square * 1.5, RATE)).array).max() == 1, "as a diffusion decoder may make it"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ((TONE.astype(np.int64), RATE), "int64, a type that no sound has full scale in"),
        ((TONE[None, None], RATE), "audio given as .array of shape"),
        ((TONE > 0, RATE), "audio given as .*bool"),
        ((TONE.astype(complex), RATE), "audio given as .*complex"),
        ((TONE, 0), "audio given as"),
        ((TONE, float("nan")), "audio given as .*nan"),
        ((TONE, None), "audio given as .*NoneType"),
    ],
)
def test_arrays_that_are_no_sound_are_refused(value, reason):
    with pytest.raises(UserInputError, match=reason):
        load_media("audio", value)


def test_a_sound_of_one_sample_is_one_and_of_none_is_refused(tmp_path):
    assert load_media("audio", wav(TONE[:1])).array.shape == (1,)
    (tmp_path / "none.wav").write_bytes(wav(TONE[:0]))
    with pytest.raises(UserInputError, match="none.wav: the sound has no samples"):
        load_media("audio", tmp_path / "none.wav")


def variable_mp3(samples: np.ndarray) -> bytes:
    """With a rate that follows the sound, and no header that says how long it is."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono")
        stream.codec_context.bit_rate, stream.codec_context.global_quality, stream.codec_context.qscale = 0, 236, True
        frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler(stream.codec_context.format, "mono", RATE, frame_size=1152)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            for packet in stream.encode(part):
                container.mux(packet)
    return file.getvalue()


def test_a_song_whose_length_no_header_says_is_read_to_its_end():
    loud = np.random.default_rng(0).normal(0, 0.3, 2 * RATE).clip(-1, 1).astype(np.float32)
    sound = load_media("audio", variable_mp3(np.concatenate([loud, np.zeros(8 * RATE, np.float32), TONE])))
    assert len(sound.array) / RATE == pytest.approx(11, abs=0.1)
    assert rms(Audio(sound.array[-RATE:], RATE)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


NOISE = np.random.default_rng(0).normal(0, 0.2, 4 * RATE).clip(-1, 1).astype(np.float32)
WHOLE = {
    "flac": lambda: stored("FLAC"),
    "wav": lambda: stored("WAV"),
    "m4a": lambda: encode(NOISE[None], "mono", "mp4", "aac"),
    "webm": lambda: encode(NOISE[None], "mono", "webm", "libopus"),
    "mkv": lambda: encode(NOISE[None], "mono", "matroska", "libopus"),
}


def stored(file_format: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, NOISE, RATE, format=file_format)
    return file.getvalue()


def test_a_song_with_a_damaged_place_is_read_without_it(capfd):
    data = stored("MP3")
    middle = len(data) // 2
    sound = load_media("audio", data[:middle] + b"junk" * 500 + data[middle:])
    assert len(sound.array) / RATE == pytest.approx(4, abs=0.2)
    assert capfd.readouterr().err == "", "no library talks to the user"


def test_a_broadcast_may_change_its_channels_midway():
    parts = [encode(np.stack([TONE] * count), layout, "adts", "aac") for count, layout in ((2, "stereo"), (1, "mono"))]
    sound = load_media("audio", parts[0] + parts[1])
    assert len(sound.array) / RATE == pytest.approx(2, abs=0.15)
    for second in (sound.array[:RATE], sound.array[-RATE:]):
        assert rms(Audio(second, RATE)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_a_flac_written_to_a_pipe_is_read_to_its_end():
    data = bytearray(stored("FLAC"))
    data[21] &= 0xF0  # the number of samples, 36 bits of the first block (RFC 9639, 8.2); 0 for unknown
    data[22:26] = bytes(4)
    assert len(load_media("audio", bytes(data)).array) == 4 * RATE


@pytest.mark.parametrize("name", WHOLE)
def test_a_sound_that_breaks_off_is_refused(tmp_path, name):
    data = WHOLE[name]()
    assert len(load_media("audio", data).array) / RATE == pytest.approx(4, abs=0.1)
    (tmp_path / "half.bin").write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(UserInputError, match=r"half\.bin: (breaks off after|not a sound that can be read)"):
        load_media("audio", tmp_path / "half.bin")
