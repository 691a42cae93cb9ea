"""Sounds that are none of the world's: made-up speech, noise, sweeps, mixtures.

The audio tower and the classifier of sounds learn from it to say "something unknown".
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from nextgpt.train.nano.world.player import PEAK, SAMPLES, SAMPLING_RATE, SECONDS
from nextgpt.train.nano.world.sounds import SoundWorld
from nextgpt.train.nano.world.split import split_of_names

NUMBERS = 240  # sounds of each kind
WINDOW, HOP = 512, 128  # samples
FRAMES = SAMPLES // HOP + 1
# First three formants of vowels, in Hz (Peterson and Barney 1952, men).
VOWELS = ((270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480), (660, 1720, 2410))
VOWELS += ((730, 1090, 2440), (570, 840, 2410), (440, 1020, 2240), (300, 870, 2240), (640, 1190, 2390))
BANDWIDTHS = (70, 100, 160)


class UnknownSounds:
    """Sounds from outside the world. Each has a kind and a number that seeds it, and these decide its split.

    Args:
        world: gives the sounds of which some are mixed.
        split: whose sounds.
    """

    def __init__(self, world: SoundWorld, split: str):
        self.world, self.mixed = world, world.rows(split).tolist()
        self.keys = [
            (kind, number)
            for number in range(NUMBERS)
            for kind in KINDS
            if split_of_names("unknown sound", kind, str(number)) == split
        ]

    def __len__(self) -> int:
        return len(self.keys)

    def waveform(self, index: int) -> np.ndarray:
        """One of them, float32 `[32000]`, its peak at 0.8: always the same for the same index."""
        kind, number = self.keys[index]
        seed = hashlib.sha256(f"{kind}/{number}".encode()).digest()
        sound = KINDS[kind](self, np.random.default_rng(int.from_bytes(seed[:8])))
        return (sound * (PEAK / np.abs(sound).max())).astype(np.float32)

    def waveforms(self) -> Tensor:
        """All of them, as `[N, 32000]`."""
        return torch.from_numpy(np.stack([self.waveform(index) for index in range(len(self))]))

    def _speech(self, rng: Generator) -> np.ndarray:
        """Syllables: a voice of falling pitch through the formants of vowels, with hisses between."""
        times = np.arange(FRAMES) * HOP / SAMPLING_RATE
        voiced, hiss, tracks = np.zeros(FRAMES), np.zeros(FRAMES), np.zeros((3, FRAMES))
        tract, at = rng.uniform(0.85, 1.25), rng.uniform(0, 0.2)
        formants = np.array(VOWELS[rng.integers(len(VOWELS))], float)[:, None]
        while at < SECONDS:
            length = rng.uniform(0.1, 0.32)
            inside = (times >= at) & (times < at + length)
            target = np.array(VOWELS[rng.integers(len(VOWELS))], float)[:, None]
            way = np.clip((times[inside] - at) / (0.6 * length), 0, 1)
            tracks[:, inside] = formants + (target - formants) * way
            voiced[inside] = rng.uniform(0.4, 1) * np.sin(np.pi * (times[inside] - at) / length) ** 0.5
            at, formants = at + length, target
            pause = rng.uniform(0.02, 0.14)
            hiss[(times >= at) & (times < at + pause)] = rng.uniform(0, 0.4)
            at += pause + rng.choice([0, 0.15], p=[0.8, 0.2])
        pitch = math.exp(rng.uniform(math.log(85), math.log(280))) * (1.15 - 0.15 * times)
        pitch *= 1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.7, 3) * times + rng.uniform(0, 6))
        phase = np.cumsum(np.interp(np.arange(SAMPLES) / SAMPLING_RATE, times, pitch)) / SAMPLING_RATE
        pulses = np.diff(np.floor(phase), prepend=0) + rng.normal(0, 0.01, SAMPLES)
        frequencies = np.linspace(0, SAMPLING_RATE / 2, WINDOW // 2 + 1)[:, None]
        resonances = sum(
            gain / (1 + ((frequencies - tract * track) / width) ** 2)
            for gain, track, width in zip((1, 0.6, 0.3), tracks, BANDWIDTHS, strict=True)
        )
        high = 1 / (1 + ((frequencies - rng.uniform(3500, 6000)) / 1500) ** 2)
        voice = _filtered(pulses, resonances * voiced)
        return voice / np.abs(voice).max() + 0.3 * _filtered(rng.normal(0, 1, SAMPLES), high * hiss)

    def _noise(self, rng: Generator) -> np.ndarray:
        """Noise of any colour and band, steady, throbbing or in bursts."""
        frequencies = np.fft.rfftfreq(SAMPLES, 1 / SAMPLING_RATE)
        low, high = sorted(np.exp(rng.uniform(math.log(30), math.log(8000), 2)))
        shape = (frequencies + 20) ** rng.uniform(-1.5, 0.5)
        if rng.random() < 0.6:
            shape = shape / (1 + (low / (frequencies + 1)) ** 4) / (1 + (frequencies / (1.5 * high)) ** 4)
        noise = np.fft.irfft(np.fft.rfft(rng.normal(0, 1, SAMPLES)) * shape, SAMPLES)
        times = np.arange(SAMPLES) / SAMPLING_RATE
        loudness = [
            np.ones(SAMPLES),
            1 + rng.uniform(0.3, 1) * np.sin(2 * np.pi * rng.uniform(1, 12) * times),
            np.interp(times, np.linspace(0, SECONDS, 20), rng.random(20) ** 3),
        ]
        return noise * loudness[rng.integers(len(loudness))]

    def _sweep(self, rng: Generator) -> np.ndarray:
        """Up to three gliding tones, pure or buzzing, some wailing as a siren does."""
        times, sound = np.arange(SAMPLES) / SAMPLING_RATE, np.zeros(SAMPLES)
        for _ in range(rng.integers(1, 4)):
            first, last = np.exp(rng.uniform(math.log(120), math.log(5000), 2))
            if abs(math.log(last / first)) < 0.7:
                last = first * rng.choice([0.35, 2.8])
            way = (times * rng.uniform(0.5, 3) / SECONDS + rng.random()) % 1
            way = way if rng.random() < 0.5 else 1 - np.abs(2 * way - 1)
            phase = 2 * np.pi * np.cumsum(first * (last / first) ** way) / SAMPLING_RATE
            sound += rng.uniform(0.4, 1) * np.tanh(rng.choice([0.3, 3]) * np.sin(phase))
        return sound

    def _mixture(self, rng: Generator) -> np.ndarray:
        """Two sounds of unlike instruments at once, nearly equally loud."""
        one, other = self._unlike(rng, 2)
        return one + other * 10 ** rng.uniform(-0.15, 0.15)

    def _shuffled(self, rng: Generator) -> np.ndarray:
        """Short pieces of many instruments, one after another."""
        sounds, pieces, done = self._unlike(rng, 4), [], 0
        while done < SAMPLES:
            length = min(int(rng.uniform(0.08, 0.3) * SAMPLING_RATE), SAMPLES - done)
            begin = rng.integers(SAMPLES - length)
            piece = sounds[rng.integers(len(sounds))][begin : begin + length]
            pieces.append(piece / max(np.abs(piece).max(), 0.05))
            done += length
        return np.concatenate(pieces)

    def _unlike(self, rng: Generator, count: int) -> list[np.ndarray]:
        """True sounds of instruments, each of another category while there are some."""
        order = [self.world.combinations[row] for row in rng.permutation(self.mixed)]
        categories = {sound["name"]: sound["category"] for sound in self.world.sounds}
        unlike = list({categories[sound.name]: sound for sound in order}.values())
        return [self.world.waveform(sound) for sound in (*unlike, *order)[:count]]


KINDS = {
    "speech": UnknownSounds._speech,
    "noise": UnknownSounds._noise,
    "sweep": UnknownSounds._sweep,
    "mixture": UnknownSounds._mixture,
    "shuffled": UnknownSounds._shuffled,
}


def _filtered(samples: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Samples `[32000]` through gains `[257, 251]` over frequency and time."""
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(torch.from_numpy(samples).float(), WINDOW, HOP, window=window, return_complex=True)
    spectrum *= torch.from_numpy(gains).float()
    return torch.istft(spectrum, WINDOW, HOP, window=window, length=SAMPLES).numpy()
