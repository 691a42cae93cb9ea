"""What all rows of the nano evaluation share: the assistant, the classifiers, the held-out world and its questions.

It asks and looks; what is counted stands in ``rows.py``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from nextgpt import NextGPTPipeline
from nextgpt.decoders import Audio, Video
from nextgpt.events import Media, Reply
from nextgpt.hub.parts import preset_folder
from nextgpt.signals import MODALITIES
from nextgpt.train.nano.dialogues.composer import DATA, Composer, load_composer
from nextgpt.train.nano.dialogues.replies import parts_of
from nextgpt.train.nano.dialogues.turns import Made, Shown, Turn
from nextgpt.train.nano.evaluation.answers import AnswerParser
from nextgpt.train.nano.evaluation.classifiers import CLASSIFIERS, CONFIG, FOLDERS, NONE, Classifier
from nextgpt.train.nano.evaluation.scores import Sample, Score, effective_count
from nextgpt.train.nano.world.clips import FRAMES
from nextgpt.train.nano.world.media_files import TrueMedia, outside_files
from nextgpt.train.nano.world.pictures import SIDE, World
from nextgpt.train.nano.world.player import SAMPLES, SAMPLING_RATE
from nextgpt.train.nano.world.things import (
    PARTS,
    Medium,
    modality_of,
)

BATCH = 40
# What may be changed first of each; drawn evenly before a question is made, for changes of the main thing are the easiest.
CHANGES = {
    "image": ("change_concept", "change_background", "change_style", "change_size"),
    "audio": ("change_sound", "change_register", "change_figure"),
    "video": ("change_filmed", "change_motion"),
}


class Bench:
    """Asks the assistant and looks at its answers.

    Args:
        pipeline: of a nano model.
        count: questions a row.
        split: `heldout` for the table, `dev` for tuning.
        seed: of the questions and of the media.
        folder: holds `world` and the classifiers.
    """

    def __init__(
        self,
        pipeline: NextGPTPipeline,
        count: int = 200,
        split: str = "heldout",
        seed: int = 0,
        folder: Path | None = None,
    ):
        self.pipeline, self.count, self.split, self.seed = pipeline, count, split, seed
        self.folder = folder or preset_folder("nano")
        self.world = World(self.folder / "world")
        self.samples: list[Sample] = []

    # -- what can be measured -----------------------------------------------------------------------------------

    @cached_property
    def classifiers(self) -> dict[str, Classifier]:
        """The classifiers that are there, by modality."""
        folders = {modality: self.folder / name for modality, name in FOLDERS.items()}
        there = {modality: folder for modality, folder in folders.items() if (folder / CONFIG).is_file()}  # not just begun
        return {modality: CLASSIFIERS[modality].from_pretrained(folder) for modality, folder in there.items()}

    @cached_property
    def parser(self) -> AnswerParser:
        """Reads answers about this world."""
        return AnswerParser.of_world(self.composer.setting.concepts, self.composer.setting.instruments)

    @cached_property
    def media(self) -> tuple[str, ...]:
        """The kinds of media that the model takes and makes, and that there is a classifier for."""
        return tuple(modality for modality in MODALITIES if not self.lacks(modality))

    def lacks(self, modality: str) -> str:
        """Why a kind of media cannot be measured; empty if it can."""
        if modality not in self.pipeline.model.config.input_modalities:
            return f"the model takes no {modality}"
        if modality not in self.classifiers:
            return f"there is no classifier {FOLDERS[modality]}"
        if modality == "audio" and not (self.world.folder / "sounds.json").is_file():
            return f"there are no sounds in {self.world.folder}"
        return "" if modality in self.pipeline.decoders else f"the model makes no {modality}"

    # -- questions ----------------------------------------------------------------------------------------------

    @cached_property
    def composer(self) -> Composer:
        """Makes the questions: this split's combinations in the test phrasings."""
        outside = outside_files(self.world.folder, self.split, self.media)
        return load_composer(self.world.folder, self.split, outside, DATA, self.media)

    def questions(self, kind: str) -> Iterator[random.Random]:
        """A generator for each question of a kind."""
        for number in range(self.count):
            yield random.Random(f"{self.seed}/{self.split}/{kind}/{number}")

    def turn(self, kind: str, rng: random.Random, medium: Medium | None = None) -> Turn:
        """A turn of a kind about media of this split; effects, which every part has learned from, are left out."""
        while (turn := self.composer.turn(kind, rng, medium)).medium and turn.medium.split != self.split:
            continue
        return turn

    def change_shown(self, modality: str, rng: random.Random) -> Turn:
        """A medium of this split that the user attaches, to be changed into another of this split."""
        wanted = rng.choice(CHANGES[modality])
        while True:
            turn = self.composer.change_shown(modality, rng)
            (shown,) = [part.medium for part in turn.user if isinstance(part, Shown)]
            if turn.intent == wanted and shown.split == turn.medium.split == self.split:
                return turn

    def asked_and_changed(self, modality: str, rng: random.Random) -> tuple[Turn, Turn]:
        """A wish for a medium of this split, and then for another one that differs from it."""
        wanted = rng.choice(CHANGES[modality])
        while True:
            first = self.turn(f"{modality} ask_for", rng)
            second = self.turn("change", rng, first.medium)
            if second.intent == wanted:
                return first, second

    def ask(self, what: str, conversations: list[list[dict]], **options) -> list[Reply]:
        """The assistant's replies, by the batch."""
        replies = []
        hidden = len(conversations) <= BATCH or None  # None: shown in a terminal only
        for start in tqdm(range(0, len(conversations), BATCH), desc=what, disable=hidden, leave=False):
            replies += self.pipeline(conversations[start : start + BATCH], seed=self.seed, **options)
        return replies

    def content(self, turn: Turn) -> list[dict]:
        """The user's part of a turn as chat parts, media rendered."""
        parts = []
        for part in turn.user:
            if isinstance(part, Shown):
                medium = self.render(part.medium) if part.medium else self.outside(part)
                parts.append({"type": part.modality, part.modality: medium})
            else:
                parts.append({"type": "text", "text": part})
        return parts

    # -- true media ---------------------------------------------------------------------------------------------

    @cached_property
    def _true(self) -> TrueMedia:
        return TrueMedia(self.world, self.split)

    def holds(self, medium: Medium) -> bool:
        """Whether the world's folder can render a medium (see `TrueMedia`)."""
        return self._true.holds(medium)

    def render(self, medium: Medium) -> Media:
        """The true picture, sound or clip of a combination."""
        return self._true.render(medium)

    def outside(self, shown: Shown) -> Media:
        """A medium from outside the world, by its path."""
        return self._true.outside(shown.path)

    # -- looking ------------------------------------------------------------------------------------------------

    def look(self, modality: str, media: list[Media]) -> list[dict[str, str]]:
        """What the classifier sees in pictures, hears in sounds, or sees in clips."""
        if not media:
            return []
        return self.classifiers[modality].read(torch.stack([AS_TENSOR[modality](medium) for medium in media]))

    def found(self, modality: str, reply: Reply) -> dict[str, str]:
        """What the classifier finds in the first medium of a kind in an answer."""
        readings = self.look(modality, made(modality, reply)[:1])
        return readings[0] if readings else {}

    def score(self, row: str, samples: list[Sample], bars: dict[str, float | None]) -> list[Score]:
        """Counts what was found as expected, part by part, and keeps the samples for the report."""
        self.samples += samples
        scores, about = [], [sample.about for sample in samples]
        for part, bar in bars.items():
            right = [sample.expected[part] == sample.found.get(part) for sample in samples]
            scores.append(Score(row, part, sum(right), len(samples), bar, effective_count(right, about)))
        return scores


def _picture(picture: Image.Image) -> torch.Tensor:
    pixels = np.array(picture.convert("RGB").resize((SIDE, SIDE)))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def _waveform(sound: Audio) -> torch.Tensor:
    """Two seconds at 16 kHz, cut or with silence behind."""
    from torchaudio.functional import resample

    waveform = resample(torch.from_numpy(np.asarray(sound.array, np.float32)), sound.sampling_rate, SAMPLING_RATE)
    return torch.nn.functional.pad(waveform[:SAMPLES], (0, max(0, SAMPLES - len(waveform))))


def _frames(clip: Video) -> torch.Tensor:
    chosen = np.linspace(0, len(clip.frames) - 1, FRAMES).round().astype(int)
    return torch.stack([_picture(Image.fromarray(clip.frames[number])) for number in chosen], dim=1)


AS_TENSOR = {"image": _picture, "audio": _waveform, "video": _frames}


def made(modality: str, reply: Reply) -> list[Media]:
    """The media of one kind in an answer."""
    return {"image": reply.images, "audio": reply.audios, "video": reply.videos}[modality]


def expected_parts(medium: Medium) -> dict[str, str]:
    """What a classifier should find in a medium: what its caption tells; of what an effect has not, `NONE`."""
    told = parts_of(medium)
    return {part: told.get(part, NONE) for part in PARTS[modality_of(medium)]}


def told(turn: Turn) -> str:
    """The user's words of a turn."""
    return " ".join(part for part in turn.user if isinstance(part, str))


def expected_content(turn: Turn) -> list[dict]:
    """The assistant's part of a turn as chat parts; its media are its own signal tokens."""
    return [
        {"type": modality_of(part.medium)} if isinstance(part, Made) else {"type": "text", "text": part}
        for part in turn.assistant
    ]


def expected_media(turn: Turn) -> list[Medium]:
    """What the assistant should make in a turn."""
    return [part.medium for part in turn.assistant if isinstance(part, Made)]


def kinds(parts: list[dict]) -> str:
    """What an answer is made of: "text", "text + image + audio" ..., each piece of media counted, in its order."""
    return " + ".join(["text", *(part["type"] for part in parts if part["type"] in MODALITIES)])
