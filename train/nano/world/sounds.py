"""Builds the world of sounds: General MIDI instruments and effects, in three registers and five figures.

`python -m nextgpt.train.nano.world.sounds --out runs/nano/world` needs the soundfont FluidR3 GM (MIT; Debian's package
`fluid-soundfont-gm`) and the wheel `tinysoundfont`. It knows notes, samples and licences, and nothing of models. The
sounds and their English are kept by hand in `sounds.json`.

Each sound that has a register is played in several *takes*: the plain one (number 0), and others in another key of the
register, faster or slower, struck harder or softer. All takes of a sound are of one split.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nextgpt.train.data.files import whole_file
from nextgpt.train.nano.world.player import (
    FIGURES,
    REGISTERS,
    SAMPLES,
    SAMPLING_RATE,
    SECONDS,
    SOUNDFONT,
    Player,
    SilentError,
)
from nextgpt.train.nano.world.split import split_of_names
from nextgpt.train.nano.world.waveforms import as_floats, as_integers, as_opus, from_opus

logger = logging.getLogger(__name__)

SOUNDS = Path(__file__).parent / "sounds.json"
ATTRIBUTION = "- Sounds: MIT (FluidR3 GM, Frank Wen), rendered from Debian's package fluid-soundfont-gm."
TAKES = 5  # of each sound with a register, the plain one among them
MOST_KEYS = 2  # up or down
TEMPO = (0.9, 1.1)
VELOCITIES = (60, 127)  # how hard notes are struck; the loudest has the peak of a plain take
# What is learned from apart from the world's combinations, so that these are not learned by heart: `studies`.
PHRASES = 96  # of loose notes, of each instrument in each register: of 8 the encoder learned to tell half of unseen sounds
STRANGE_TAKES = 12  # of each figure by each program that the world does not know: low chords are hard to tell from notes
PATTERNS = 36  # phrases that every instrument plays in every register
MELODIC = range(112)  # programs of General MIDI; the world does not know most, but they play the same figures


class Sound(NamedTuple):
    """One combination of the world of sounds; effects have neither register nor figure."""

    name: str
    register: str = ""
    figure: str = ""
    take: int = 0

    @property
    def caption(self) -> str:
        """The canonical caption: "a low trumpet, rising scale"; of an effect "the sound of helicopter"."""
        instrument = f"a {self.register} {self.name}" if self.register else f"the sound of {self.name}"
        return f"{instrument}, {self.figure}" if self.figure else instrument

    @property
    def split(self) -> str:
        """Its split; an effect is one combination only, which has to be learned."""
        return split_of_names("sound", self.name, self.register, self.figure) if self.register else "train"


def load_sounds() -> list[dict]:
    """The sounds as they stand in `sounds.json`."""
    return json.loads(SOUNDS.read_text(encoding="utf-8"))


def combinations(sounds: list[dict]) -> list[Sound]:
    """All sounds of the world, in a fixed order."""
    found = []
    for sound in sounds:
        if sound["pitched"]:
            found += [Sound(sound["name"], register, figure) for register in REGISTERS for figure in FIGURES]
        else:
            found.append(Sound(sound["name"]))
    return found


class SoundWorld:
    """The built world of sounds.

    Args:
        folder: what `build` wrote.
    """

    registers = tuple(REGISTERS)
    figures = tuple(FIGURES)

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.sounds = json.loads((self.folder / "sounds.json").read_text(encoding="utf-8"))
        self.names = [sound["name"] for sound in self.sounds]
        self.combinations = combinations(self.sounds)
        pitched = [sound["name"] for sound in self.sounds if sound["pitched"]]
        self.captioned = [*self.combinations, *(Sound(name, register) for name in pitched for register in REGISTERS)]

    @cached_property
    def waveforms(self) -> np.ndarray:
        """int16 `[combination, 32000]`, in the order of `combinations`; silent where `copy` left them out."""
        every = self.folder / "sounds.npy"
        if every.is_file():
            return np.load(every, mmap_mode="r")
        if not self._coded:
            return np.load(self.folder / "sounds.npz")["waveforms"]
        return np.stack([self._samples(sound) for sound in self.combinations])

    @cached_property
    def _coded(self) -> dict[Sound, bytes]:
        """In a package, its sounds as Ogg Opus (`copy`)."""
        file = self.folder / "takes.npz"
        if not file.is_file():
            return {}
        with np.load(file) as held:
            pieces = np.split(held["opus"], held["ends"][:-1])
        return {sound: piece.tobytes() for sound, piece in zip(self._listed("takes"), pieces, strict=True)}

    @cached_property
    def takes(self) -> list[Sound]:
        """The takes in this folder that are not plain."""
        return [sound for sound in self._listed("takes") if sound.take]

    @cached_property
    def _takes(self) -> np.ndarray:
        """int16 `[take, 32000]`, as `takes.json` lists them."""
        return np.load(self.folder / "takes.npy", mmap_mode="r")

    @cached_property
    def _take_rows(self) -> dict[Sound, int]:
        return {sound: row for row, sound in enumerate(self.takes)}

    @cached_property
    def studies(self) -> np.ndarray:
        """int16 `[study, 32000]`: what is learned from apart from the world's combinations: takes, and `studies`."""
        others = np.load(self.folder / "studies.npy", mmap_mode="r")
        learned = [self._take_rows[sound] for sound in self._learned_takes]
        return np.concatenate([self._takes[learned], others]) if learned else others

    @cached_property
    def studied(self) -> list[Sound]:
        """What each of the studies is."""
        return [*self._learned_takes, *self._listed("studies")]

    @cached_property
    def _learned_takes(self) -> list[Sound]:
        return [sound for sound in self.takes if sound.split == "train"]

    def _listed(self, what: str) -> list[Sound]:
        """The sounds that `takes.json` or `studies.json` lists; none where there is no such file."""
        file = self.folder / f"{what}.json"
        return [Sound(*row) for row in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []

    def variations(self, most: int | None = None) -> tuple[Tensor, np.ndarray]:
        """The studies with a caption, varied combinations and phrases: what they are, as indices into `captioned` `[N]`,
        and how they sound, int16 `[N, 32000]`.

        Args:
            most: only of so many of the sounds.
        """
        numbers = {sound: number for number, sound in enumerate(self.captioned) if sound.name in self.names[:most]}
        plain = [sound._replace(take=0) for sound in self.studied]
        kept = {study: numbers[sound] for study, sound in enumerate(plain) if sound in numbers}
        return torch.tensor(list(kept.values()), dtype=torch.long), self.studies[list(kept)]

    def strangers(self, most: int | None = None) -> Tensor:
        """Instruments that the world does not know, in every register and figure, then in every register and pattern, float
        `[instruments, 15 + 3 * PATTERNS, 32000]`.

        Args:
            most: only so many of them.
        """
        return as_floats(np.load(self.folder / "strangers.npy", mmap_mode="r")[:most])

    def practice(self, most: int | None = None) -> tuple[Tensor, Tensor]:
        """The world's instruments in every register and pattern: their numbers `[instruments]`, and float `[instruments,
        3 * PATTERNS, 32000]`.

        Args:
            most: only of so many of the sounds.
        """
        numbers = [
            number for number, sound in enumerate(self.sounds) if sound["pitched"] and number < (most or len(self.names))
        ]
        return torch.tensor(numbers), as_floats(np.load(self.folder / "practice.npy", mmap_mode="r")[: len(numbers)])

    def study_targets(self, missing: int) -> Tensor:
        """What the studies are: instrument, register, figure `[N, 3]`; `missing` where there is none."""
        return self.numbers(self.studied, missing)

    def copy(self, folder: Path) -> None:
        """Writes what an evaluation needs into a folder: of the sounds only the effects and what no part learned from."""
        every = [*self.combinations, *self.takes]
        kept = [sound for sound in every if sound.split != "train" or not sound.register]
        pieces = [as_opus(self._samples(sound), SAMPLING_RATE) for sound in tqdm(kept, desc="sounds")]
        opus = np.frombuffer(b"".join(pieces), np.uint8)
        np.savez(folder / "takes.npz", opus=opus, ends=np.cumsum([len(piece) for piece in pieces]))
        (folder / "sounds.npz").unlink(missing_ok=True)  # how an older package holds them
        (folder / "takes.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")
        shutil.copy(self.folder / "sounds.json", folder / "sounds.json")

    def holds(self, sound: Sound) -> bool:
        """Whether a sound is in this folder; the one inside the package holds what no part learned from."""
        if self._coded:
            return sound in self._coded
        return sound in self._take_rows if sound.take else bool(self._samples(sound).any())

    def _samples(self, sound: Sound) -> np.ndarray:
        """int16 `[32000]`; silent where a package does not hold the sound."""
        if self._coded:
            return from_opus(self._coded[sound]) if sound in self._coded else np.zeros(SAMPLES, np.int16)
        if sound.take:
            return self._takes[self._take_rows[sound]]
        return self.waveforms[self.combinations.index(sound)]

    def waveform(self, sound: Sound) -> np.ndarray:
        """One sound, float32 `[32000]` in -1..1.

        Raises:
            ValueError: it is not in this folder (see `holds`).
        """
        if not self.holds(sound):
            raise ValueError(f"{self.folder} does not hold {sound.caption}: train/nano/world/sounds.py makes all of them")
        return self._samples(sound).astype(np.float32) / 32768

    def rows(self, split: str, most: int | None = None) -> Tensor:
        """The sounds of one split, as indices into `combinations`; of the first `most` names when that is given."""
        names = set(self.names[:most])
        return torch.tensor(
            [row for row, sound in enumerate(self.combinations) if sound.split == split and sound.name in names]
        )

    def heard(self, rows: Tensor) -> Tensor:
        """Waveforms, float32 `[N, 32000]` in -1..1 on the CPU, of sounds given as indices."""
        return as_floats(self.waveforms[rows.cpu().numpy()])

    def targets(self, rows: Tensor, missing: int) -> Tensor:
        """What sounds are, as indices into `captioned`: instrument, register, figure `[N, 3]`; `missing` for none."""
        return self.numbers(self.captioned, missing).to(rows.device)[rows]

    def numbers(self, sounds: list[Sound], missing: int) -> Tensor:
        """What sounds are: instrument, register, figure `[N, 3]`; `missing` where there is none."""
        values = (self.names, self.registers, self.figures)
        numbers = [
            [known.index(name) if name else missing for known, name in zip(values, row[:3], strict=True)] for row in sounds
        ]
        return torch.tensor(numbers, dtype=torch.long).view(-1, 3)


def new_phrase(rng: np.random.Generator) -> list[tuple[float, float, int]]:
    """Notes within an octave, none of the figures: loose ones, a run that turns back, or two long ones or chords.

    The lowest is the first. (Some instruments of the soundfont are silent far above it.)
    """
    kind, notes, now = rng.choice(["loose", "run", "long"], p=[0.4, 0.3, 0.3]), [], 0.0
    beat, step = rng.uniform(0.12, 0.35), 0
    while now < 0.9 * SECONDS:
        if kind == "run":  # up and down by any steps, sometimes in place
            length, steps = beat, [step]
            step = int(np.clip(step + rng.integers(-4, 5), 0, 12))
        else:
            length = math.exp(rng.uniform(*np.log((0.08, 1.2)))) if kind == "loose" else rng.uniform(0.7, 1.3)
            steps = rng.choice(13, rng.choice([1, 1, 1, 2, 3]), replace=False) if notes else [0]
        notes += [(now, now + length, int(step)) for step in steps]
        now += length * (rng.uniform(1.02, 1.6) if kind == "loose" else 1.03)
    return notes


def new_variation(rng: np.random.Generator, figure: str) -> tuple[int, list[tuple[float, float, int]]]:
    """Keys up or down, and a figure's notes at another tempo."""
    tempo = rng.uniform(*TEMPO)
    notes = [(start * tempo, end * tempo, step) for start, end, step in FIGURES[figure]]
    return new_keys(rng), notes


def new_keys(rng: np.random.Generator) -> int:
    """Keys up or down, within the register."""
    return int(rng.integers(-MOST_KEYS, MOST_KEYS + 1))


def takes(player: Player, sounds: list[dict]) -> Iterator[tuple[Sound, np.ndarray]]:
    """Every take that is not plain, and how it sounds, float32 `[32000]`: always the same for the same take."""
    entries = {sound["name"]: sound for sound in sounds}
    pitched = [sound for sound in combinations(sounds) if sound.register]
    for sound in tqdm([sound._replace(take=take) for sound in pitched for take in range(1, TAKES)], desc="takes"):
        seed = hashlib.sha256("/".join(map(str, sound)).encode()).digest()
        yield sound, _play_take(player, entries[sound.name], sound, np.random.default_rng(int.from_bytes(seed[:8])))


def _play_take(player: Player, entry: dict, sound: Sound, rng: np.random.Generator) -> np.ndarray:
    while True:
        keys, notes = new_variation(rng, sound.figure)
        velocity = int(rng.integers(*VELOCITIES, endpoint=True))
        try:
            played = player.play(entry, REGISTERS[sound.register] + keys, notes, velocity)
        except SilentError:  # the soundfont has no such note: another key
            continue
        return played * (velocity / VELOCITIES[1])


def strange_programs(sounds: list[dict]) -> list[int]:
    """The melodic programs of General MIDI that no sound of the world is."""
    return [program for program in MELODIC if program not in {each["program"] for each in sounds if not each.get("bank")}]


def strangers(player: Player, sounds: list[dict]) -> Iterator[np.ndarray]:
    """Every combination of register and figure by each program that the world does not know, then every pattern as
    `practice` has them, float32 `[15 + patterns, 32000]`; not of those that lack a note."""
    for program in tqdm(strange_programs(sounds), desc="strangers"):
        entry = {"name": f"program {program}", "program": program}
        try:
            figures = [player(entry, register, figure) for register in REGISTERS for figure in FIGURES]
            yield np.stack([*figures, *_patterns(player, entry)])
        except SilentError:
            continue


def practice(player: Player, sounds: list[dict]) -> Iterator[np.ndarray]:
    """The same phrases by each instrument of the world, in every register, float32 `[3 * PATTERNS, 32000]`: what is known
    of an instrument in a register is not only its figures."""
    for entry in tqdm([sound for sound in sounds if sound["pitched"]], desc="practice"):
        yield np.stack(_patterns(player, entry))


def _patterns(player: Player, entry: dict) -> list[np.ndarray]:
    phrases = [new_phrase(np.random.default_rng(number)) for number in range(PATTERNS)]
    return [player.play(entry, lowest, notes) for lowest in REGISTERS.values() for notes in phrases]


def studies(
    player: Player, sounds: list[dict], rng: np.random.Generator, fewer: int = 1
) -> Iterator[tuple[Sound, np.ndarray]]:
    """What each study is, and how it sounds, float32 `[32000]`; only one in `fewer` is played.

    Phrases of loose notes have no figure; programs that the world does not know have no name. Where the soundfont has no
    such note there is no study.
    """
    entries = {sound["name"]: sound for sound in sounds if sound["pitched"]}
    strange = [{"name": "", "program": program} for program in strange_programs(sounds)]
    wanted = [(Sound(name, register), entry) for name, entry in entries.items() for register in REGISTERS] * PHRASES
    figures = [(Sound("", register, figure), entry) for entry in strange for register in REGISTERS for figure in FIGURES]
    wanted += figures * STRANGE_TAKES
    for sound, entry in tqdm(wanted[::fewer], desc="studies"):
        keys, notes = new_variation(rng, sound.figure) if sound.figure else (new_keys(rng), new_phrase(rng))
        try:
            yield sound, player.play(entry, REGISTERS[sound.register] + keys, notes, int(rng.integers(60, 128)))
        except SilentError:
            continue


def build(out: Path, soundfont: Path, fewer: int = 1) -> None:
    """Renders all, or one in `fewer` of the studies.

    Writes `sounds.json` and `.npy`, strangers, takes, studies and what is practised; the licence into `ATTRIBUTION.md`.
    """
    player, sounds, rng = Player(soundfont), load_sounds(), np.random.default_rng(0)
    entries = {sound["name"]: sound for sound in sounds}
    waveforms = [player(entries[each.name], each.register, each.figure) for each in combinations(sounds)]
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "sounds.npy", as_integers(waveforms))
    np.save(out / "strangers.npy", as_integers(list(strangers(player, sounds))))
    for name, made in (("takes", takes(player, sounds)), ("studies", studies(player, sounds, rng, fewer))):
        known, played = zip(*made, strict=True)
        np.save(out / f"{name}.npy", as_integers(played))
        (out / f"{name}.json").write_text(json.dumps(known) + "\n", encoding="utf-8")
    np.save(out / "practice.npy", as_integers(list(practice(player, sounds))))
    attribution = out / "ATTRIBUTION.md"
    text = attribution.read_text(encoding="utf-8") if attribution.is_file() else "# Where the nano world comes from\n\n"
    if ATTRIBUTION not in text:
        attribution.write_text(f"{text}{ATTRIBUTION}\n", encoding="utf-8")
    with whole_file(out / "sounds.json") as beside:  # which comes last: where it lies, all is done
        beside.write_text(json.dumps(sounds, indent=1) + "\n", encoding="utf-8")
    logger.info("%d sounds of %d instruments and effects in %s", len(waveforms), len(sounds), out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/nano/world"))
    parser.add_argument("--soundfont", type=Path, default=SOUNDFONT)
    parser.add_argument("--fewer", type=int, default=1, help="play one in so many of the studies only, to rehearse")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    build(args.out, args.soundfont, args.fewer)


if __name__ == "__main__":
    main()
