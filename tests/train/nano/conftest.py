"""A small world with a little of everything in it, and a clock by which its makers are soon done."""

import json

import numpy as np
import pytest

from nextgpt.train.nano.world import sounds, unknown_sounds
from nextgpt.train.nano.world.pictures import CONCEPTS
from steady_clock import steady

INSTRUMENTS = ("flute", "piano", "drum")


@pytest.fixture(scope="package")
def small_world(tmp_path_factory):
    """Four things, each a bar of another colour left of the middle; three sounds, of sines, of saw teeth and of noise."""
    folder = tmp_path_factory.mktemp("world")
    concepts = json.loads(CONCEPTS.read_text(encoding="utf-8"))[:4]
    (folder / "world.json").write_text(json.dumps({"concepts": concepts}), encoding="utf-8")
    art = np.zeros((len(concepts), 3, 64, 64, 4), np.uint8)
    for number, colour in enumerate(((220, 0, 0, 255), (0, 180, 0, 255), (0, 0, 220, 255), (0, 0, 0, 255))):
        art[number, :, 8:56, 12:28] = colour
    np.savez(folder / "art.npz", art=art)
    random = np.random.default_rng(0)
    np.savez(folder / "outside.npz", art=random.integers(0, 255, (60, 64, 64, 4), np.uint8))
    kept = [sound for sound in sounds.load_sounds() if sound["name"] in INSTRUMENTS]
    (folder / "sounds.json").write_text(json.dumps(kept), encoding="utf-8")
    waveforms = np.stack([_played(sound, random) for sound in sounds.combinations(kept)])
    np.save(folder / "sounds.npy", (waveforms * 20000).astype(np.int16))
    combined = [(register, figure) for register in sounds.REGISTERS for figure in sounds.FIGURES]
    strangers = [[_played(sounds.Sound(name, *each), random) for each in combined] for name in ("flute", "", "flute")]
    phrases = [sounds.new_phrase(np.random.default_rng(number)) for number in range(sounds.PATTERNS)]
    practice = [
        [_played(sounds.Sound(name, register), random, notes) for register in sounds.REGISTERS for notes in phrases]
        for name in ("flute", "piano", "")
    ]
    strangers = [figures + patterns for figures, patterns in zip(strangers, practice, strict=True)]
    np.save(folder / "strangers.npy", (np.array(strangers) * 20000).astype(np.int16))
    np.save(folder / "practice.npy", (np.array(practice[:2]) * 20000).astype(np.int16))
    studied = [sounds.Sound(name, register) for name in ("flute", "piano", "") for register in sounds.REGISTERS] * 8
    studies = [_played(sound, random, sounds.new_phrase(random)) for sound in studied]
    takes = [sound._replace(take=1) for sound in sounds.combinations(kept) if sound.register]
    played = [_played(sound, random, sounds.new_variation(random, sound.figure)[1]) for sound in takes]
    for name, known, waveforms in (("studies", studied, studies), ("takes", takes, played)):
        np.save(folder / f"{name}.npy", (np.stack(waveforms) * 20000).astype(np.int16))
        (folder / f"{name}.json").write_text(json.dumps(known), encoding="utf-8")
    return folder


def _played(sound: sounds.Sound, random: np.random.Generator, notes=None) -> np.ndarray:
    times = np.arange(sounds.SAMPLES) / sounds.SAMPLING_RATE
    if not sound.register:
        return random.uniform(-1, 1, sounds.SAMPLES) * np.exp(-3 * times)
    waveform = np.zeros(sounds.SAMPLES)
    for start, end, step in notes or sounds.FIGURES[sound.figure]:
        pitch = 440 * 2 ** ((sounds.REGISTERS[sound.register] + step - 69) / 12)
        phase = pitch * (times - start)
        tone = np.sin(2 * np.pi * phase) if sound.name == "flute" else 2 * (phase % 1) - 1
        waveform += tone * ((times >= start) & (times < end))
    return waveform / np.abs(waveform).max()


@pytest.fixture
def few_unknown_sounds(monkeypatch):
    monkeypatch.setattr(unknown_sounds, "NUMBERS", 24)


@pytest.fixture
def steady_clock(monkeypatch):
    """See `steady`."""
    steady(monkeypatch)
