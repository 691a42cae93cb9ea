"""The things of the nano world and their English: pictures, sounds and clips, their captions, and how each is spoken of.

Knows names and grammar, and nothing of phrasings, conversations or pixels.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from nextgpt.train.nano.world.clips import Clip
from nextgpt.train.nano.world.pictures import BACKGROUNDS, SIZES, STYLES, World
from nextgpt.train.nano.world.player import FIGURES, REGISTERS
from nextgpt.train.nano.world.sounds import Sound
from nextgpt.train.nano.world.split import split_of

SYNONYM_SHARE = 0.3  # of the things are called by another of their names


class Picture(NamedTuple):
    """One combination of the world of pictures. The defaults are what a request means when it does not say."""

    concept: str
    style: str = "3d"
    background: str = "white"
    size: str = "large"

    @property
    def caption(self) -> str:
        return World.caption_of(*self)

    @property
    def split(self) -> str:
        return split_of(*self)


Medium = Picture | Sound | Clip
_MODALITIES = {Picture: "image", Sound: "audio", Clip: "video"}
WORDS = {"image": "picture", "audio": "sound", "video": "clip"}  # what each is called
PLURALS = {modality: f"{word}s" for modality, word in WORDS.items()}

# What may be said of each medium, and what a request means when it does not say.
PICTURE_VALUES = {"style": tuple(STYLES), "background": tuple(BACKGROUNDS), "size": tuple(SIZES)}
PICTURE_DEFAULTS = {name: Picture._field_defaults[name] for name in PICTURE_VALUES}
SOUND_VALUES = {"register": tuple(REGISTERS), "figure": tuple(FIGURES)}
SOUND_DEFAULTS = {"register": "middle", "figure": "single note"}
# How people say a motion: participle, bare verb, third person; the first is the most frequent.
MOTIONS_SAID = {
    motion: tuple(tuple(words.split("/")) for words in said)
    for motion, said in {
        "spinning": ("spinning/spin/spins", "rotating/rotate/rotates", "turning round/turn round/turns round"),
        "bouncing": ("bouncing/bounce/bounces", "bouncing up and down/bounce up and down/bounces up and down"),
        "growing": ("growing/grow/grows", "getting bigger/get bigger/gets bigger"),
        "shrinking": ("shrinking/shrink/shrinks", "getting smaller/get smaller/gets smaller"),
        **{
            f"sliding {way}": (
                *(f"sliding {way}/slide {way}/slides {way}", f"moving {way}/move {way}/moves {way}"),
                f"sliding {to}/slide {to}/slides {to}",
            )
            for way, to in (("left", "to the left"), ("right", "to the right"), ("up", "upwards"), ("down", "downwards"))
        },
    }.items()
}
# What a medium's caption tells, the main thing first.
PARTS = {"image": ("concept", *PICTURE_VALUES), "audio": ("instrument", *SOUND_VALUES), "video": ("concept", "motion")}
MAIN = {modality: parts[0] for modality, parts in PARTS.items()}  # the main thing of each kind of media


def modality_of(medium: Medium) -> str:
    """`image`, `audio` or `video`."""
    return _MODALITIES[type(medium)]


def path_of(medium: Medium) -> str:
    """Where a data folder keeps a medium."""
    match medium:
        case Picture(concept, style, background, size):
            return f"images/{_file_name(concept)}/{style}/{background}/{size}.png"
        case Sound(name, register, figure, take):
            notes = f"{register} {figure}{f' {take}' if take else ''}" if register else "effect"
            return f"sounds/{_file_name(name)}/{_file_name(notes)}.wav"
        case Clip(concept, motion, style, background):
            look = "" if medium.has_default_look else f" {style} {background}"
            return f"clips/{_file_name(concept)}/{_file_name(motion + look)}.mp4"


def _file_name(name: str) -> str:
    return name.replace(" ", "_")


class Concept(NamedTuple):
    """A thing to be seen, with its grammar (``article`` is empty for plurals and for what cannot be counted)."""

    name: str
    article: str
    number: str
    plural: str
    category: str
    synonyms: tuple[str, ...]
    sound: str | None = None  # the sound that it makes

    @property
    def indefinite(self) -> str:
        return f"{self.article} {self.name}".strip()

    @property
    def is_plural(self) -> bool:
        return self.number == "plural"

    @property
    def it(self) -> str:
        return "them" if self.is_plural else "it"

    def say(self, rng: random.Random) -> str:
        return rng.choice(self.synonyms) if self.synonyms and rng.random() < SYNONYM_SHARE else self.name


class Instrument(NamedTuple):
    """What makes a sound: an instrument or an effect. ``articles`` holds all its names, each with its article."""

    name: str
    pitched: bool
    articles: dict[str, str]

    @property
    def indefinite(self) -> str:
        return self.with_article(self.name)

    def say(self, rng: random.Random) -> str:
        others = [name for name in self.articles if name != self.name]
        return rng.choice(others) if others and rng.random() < SYNONYM_SHARE else self.name

    def with_article(self, noun: str, before: Iterable[str] = ()) -> str:
        """One of its names with its indefinite article, other words between: "an old trumpet", "the sea"."""
        start = " ".join((*before, noun))
        known = self.articles[noun]
        return f"{article(start) if known in ('a', 'an') and tuple(before) else known} {start}".strip()


def load_concepts(world: Path) -> dict[str, Concept]:
    """The concepts of a built world (``world.json``), without synonyms that two concepts share."""
    rows = json.loads((world / "world.json").read_text(encoding="utf-8"))["concepts"]
    words = [word.lower() for row in rows for word in (row["name"], *row["synonyms"])]
    return {
        row["name"]: Concept(
            name=row["name"],
            article=row["article"],
            number=row.get("number", "singular"),
            plural=row.get("plural") or plural(row["name"]),
            category=row["category"],
            synonyms=tuple(word for word in row["synonyms"] if words.count(word.lower()) == 1),
            sound=row.get("sound"),
        )
        for row in rows
    }


# Names of sounds that take no article: they are plural, or cannot be counted.
_UNCOUNTED = ("bagpipes", "birdsong", "clapping", "pan pipes", "strings", "synthetic rain", "vibes", "whistling")
_UNCOUNTED = frozenset((*_UNCOUNTED, "wind chimes"))


def load_instruments(world: Path, concepts: dict[str, Concept]) -> dict[str, Instrument]:
    """The instruments and effects of a built world (``sounds.json``); a linked thing's name stands for its sound too."""
    rows = json.loads((world / "sounds.json").read_text(encoding="utf-8"))
    taken = {word for row in rows for word in (row["name"], *row["synonyms"])}
    instruments = {}
    for row in rows:
        articles = {row["name"]: row["article"]}
        for word in row["synonyms"]:
            articles[word] = "" if word in _UNCOUNTED else row["article"] if row["article"] in ("", "the") else article(word)
        for concept in concepts.values():
            if concept.sound == row["name"] and concept.name not in taken:
                articles[concept.name] = concept.article
        instruments[row["name"]] = Instrument(row["name"], row["pitched"], articles)
    return instruments


def article(noun: str, a: str = "a") -> str:
    """The indefinite article, by spelling: good enough for the world's nouns ("a unicorn", "an hourglass")."""
    noun = noun.lower()
    vowel = noun.startswith(("a", "e", "i", "o", "u")) and not noun.startswith(("uni", "eu", "ufo", "one"))
    return f"{a}n" if vowel or noun.startswith("hour") else a


def bare(thing: str) -> str:
    """A thing without its article: "a cat" → "cat"."""
    return re.sub(r"^(an?|the) ", "", thing)


def plural(noun: str) -> str:
    """The regular English plural."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun if noun.endswith("s") and not noun.endswith("ss") else f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"
