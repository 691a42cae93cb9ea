"""Plays notes through a soundfont: the registers and figures of the world of sounds, and any other notes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
SAMPLING_RATE = 16_000
SECONDS = 2.0
SAMPLES = int(SAMPLING_RATE * SECONDS)
PEAK = 0.8
PERCUSSION_BANK = 128
EFFECT_KEY = 60

REGISTERS = {"low": 41, "middle": 60, "high": 79}  # MIDI key of the lowest note; figures span at most an octave
MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11, 12)
NOTE = 0.22  # seconds from one note to the next
# Notes as (start, end, semitones above the lowest note); seconds.
FIGURES: dict[str, list[tuple[float, float, int]]] = {
    "single note": [(0.0, 1.5, 0)],
    "rising scale": [(NOTE * n, NOTE * n + 0.21, step) for n, step in enumerate(MAJOR_SCALE)],
    "falling scale": [(NOTE * n, NOTE * n + 0.21, step) for n, step in enumerate(reversed(MAJOR_SCALE))],
    "chord": [(0.0, 1.5, step) for step in (0, 4, 7)],
    "repeated note": [(NOTE * n, NOTE * n + 0.15, 0) for n in range(8)],
}


class SilentError(ValueError):
    """The soundfont has no such notes."""


class Player:
    """Plays sounds through a soundfont.

    Args:
        soundfont: an .sf2 file with the General MIDI programs.
    """

    def __init__(self, soundfont: Path = SOUNDFONT):
        import tinysoundfont

        if not soundfont.is_file():
            raise FileNotFoundError(
                f"No soundfont at {soundfont}: install Debian's package fluid-soundfont-gm, or name another .sf2."
            )
        self.synth = tinysoundfont.Synth(samplerate=SAMPLING_RATE)
        self.font = self.synth.sfload(str(soundfont))

    def __call__(self, sound: dict, register: str = "", figure: str = "", velocity: int = 100) -> np.ndarray:
        """Float32 `[32000]`, mono, its peak at 0.8.

        Args:
            sound: an entry of `sounds.json`.
            velocity: how hard the notes are struck, 1..127.
        """
        lowest = REGISTERS[register] if register else sound.get("key", EFFECT_KEY)
        return self.play(sound, lowest, FIGURES[figure] if figure else [(0.0, SECONDS, 0)], velocity)

    def play(self, sound: dict, lowest: int, notes: list[tuple[float, float, int]], velocity: int = 100) -> np.ndarray:
        """Float32 `[32000]`, mono, its peak at 0.8: notes as in `FIGURES`, above the MIDI key `lowest`."""
        bank = sound.get("bank", 0)
        self.synth.program_select(0, self.font, bank, sound["program"], bank == PERCUSSION_BANK)
        changes = sorted([(start, 1, step) for start, _, step in notes] + [(end, 0, step) for _, end, step in notes])
        pieces, done = [], 0
        for time, strikes, step in changes:
            now = min(int(time * SAMPLING_RATE), SAMPLES)
            pieces.append(self._generate(now - done))
            done = now
            if strikes:
                self.synth.noteon(0, lowest + step, velocity)
            else:
                self.synth.noteoff(0, lowest + step)
        pieces.append(self._generate(SAMPLES - done))
        self.synth.sounds_off()
        self._generate(SAMPLING_RATE // 10)  # so that nothing rings on into the next sound
        waveform = np.concatenate(pieces)
        loudest = np.abs(waveform).max()
        if loudest < 1e-4:
            raise SilentError(f"The soundfont is silent for {sound['name']} from key {lowest}: use FluidR3 GM.")
        return waveform * (PEAK / loudest)

    def _generate(self, samples: int) -> np.ndarray:
        if samples <= 0:
            return np.zeros(0, np.float32)
        stereo = np.frombuffer(self.synth.generate(samples), np.float32).reshape(-1, 2)
        return stereo.mean(1)
