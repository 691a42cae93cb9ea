"""Sounds that are none of the world's, made up by number: babble, chirps, hums, noise, clicks and warbles.

The same number gives the same sound everywhere. Knows nothing of files or models.
"""

from __future__ import annotations

import numpy as np

from nextgpt.train.nano.sounds import PEAK, SAMPLES, SAMPLING_RATE
from nextgpt.train.nano.split import split_of_names

COUNT = 480
TIME = np.arange(SAMPLES) / SAMPLING_RATE  # in seconds
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))  # formants in Hz


def outside_sound_numbers(split: str) -> list[int]:
    """The numbers of one split's sounds."""
    return [number for number in range(COUNT) if split_of_names("outside sound", str(number)) == split]


def outside_sound(number: int) -> np.ndarray:
    """Float32 `[32000]` at 16 kHz, its peak at 0.8."""
    rng = np.random.default_rng(number)
    makers = (_babble, _noise, _babble, _chirps, _hum, _clicks, _babble, _warble)
    waveform = makers[number % len(makers)](rng)
    return (waveform * (PEAK / np.abs(waveform).max())).astype(np.float32)


def _babble(rng: np.random.Generator) -> np.ndarray:
    """Like speech: a buzzing voice through the formants of changing vowels, in syllables, with hisses between."""
    pitch = rng.uniform(85, 240) * (1 + 0.15 * np.sin(2 * np.pi * rng.uniform(0.4, 1.5) * TIME + rng.uniform(0, 6)))
    phase = np.cumsum(pitch) / SAMPLING_RATE
    waveform, start = np.zeros(SAMPLES), int(rng.uniform(0, 2000))
    while start < SAMPLES - 1600:
        length = min(int(rng.uniform(0.09, 0.28) * SAMPLING_RATE), SAMPLES - start)
        span = slice(start, start + length)
        if rng.random() < 0.2:
            syllable = np.diff(rng.standard_normal(length + 1)) * 0.15
        else:
            syllable = _vowel(phase[span], pitch[span], VOWELS[rng.integers(len(VOWELS))])
        waveform[span] += syllable * np.hanning(length) * rng.uniform(0.4, 1)
        start += length + int(rng.exponential(0.04) * SAMPLING_RATE)
    return waveform


def _vowel(phase: np.ndarray, pitch: np.ndarray, formants: tuple[int, ...]) -> np.ndarray:
    """Harmonics of a voice, loud where they lie near a formant."""
    voice = np.zeros_like(phase)
    for harmonic in range(1, int(4000 / pitch.mean())):
        frequency = harmonic * pitch.mean()
        loudness = sum(1 / (1 + ((frequency - formant) / (60 + 0.06 * formant)) ** 2) for formant in formants)
        voice += loudness / harmonic**0.5 * np.sin(2 * np.pi * harmonic * phase)
    return voice


def _noise(rng: np.random.Generator) -> np.ndarray:
    """Noise of any colour, steady or in gusts."""
    spectrum = np.fft.rfft(rng.standard_normal(SAMPLES))
    frequencies = np.fft.rfftfreq(SAMPLES, 1 / SAMPLING_RATE).clip(min=20)
    waveform = np.fft.irfft(spectrum * frequencies ** rng.uniform(-1.2, 0.4), SAMPLES)
    gusts = 1 + rng.uniform(0, 1) * np.sin(2 * np.pi * rng.uniform(0.3, 6) * TIME + rng.uniform(0, 6))
    return waveform * gusts


def _chirps(rng: np.random.Generator) -> np.ndarray:
    """Tones that sweep up or down, one or many."""
    count = int(rng.integers(1, 7))
    within = (TIME * count / 2) % 1
    low, high = np.sort(rng.uniform(150, 5000, 2))
    sweep = low * (high / low) ** (within if rng.random() < 0.5 else 1 - within)
    return np.sin(2 * np.pi * np.cumsum(sweep) / SAMPLING_RATE) * np.sin(np.pi * within) ** 0.5


def _hum(rng: np.random.Generator) -> np.ndarray:
    """An engine: a saw-toothed buzz whose speed wavers, with some noise."""
    speed = rng.uniform(40, 130) * (1 + rng.uniform(0, 0.3) * np.sin(2 * np.pi * rng.uniform(0.2, 3) * TIME))
    return 2 * ((np.cumsum(speed) / SAMPLING_RATE) % 1) - 1 + 0.2 * rng.standard_normal(SAMPLES)


def _clicks(rng: np.random.Generator) -> np.ndarray:
    """Short knocks at uneven times, as of typing."""
    waveform = np.zeros(SAMPLES + 800)
    for start in rng.integers(0, SAMPLES, int(rng.integers(5, 40))):
        waveform[start : start + 800] += rng.standard_normal(800) * np.exp(-np.arange(800) / rng.uniform(20, 160))
    return waveform[:SAMPLES]


def _warble(rng: np.random.Generator) -> np.ndarray:
    """A siren: one tone modulated by another."""
    carrier, modulator, depth = rng.uniform(300, 2500), rng.uniform(2, 90), rng.uniform(1, 12)
    return np.sin(2 * np.pi * carrier * TIME + depth * np.sin(2 * np.pi * modulator * TIME))
