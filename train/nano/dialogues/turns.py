"""What all turns of the nano dialogues share: their parts, and the setting that they are made in.

The turns themselves are made in ``turns_*.py``.
"""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from nextgpt.signals import MODALITIES
from nextgpt.train.nano.dialogues.phrasings import Phrasing, roughen
from nextgpt.train.nano.dialogues.replies import Replies, parts_of
from nextgpt.train.nano.world.things import Clip, Concept, Instrument, Medium, Sound, modality_of, path_of

NO_SOUND = (
    *("I don't know what {0} sound{1} like. ", "Sorry, I don't know the sound of {0}. ", "I have no sound for {0}, sorry. "),
    *("I can't play {0}: I only know how {0} look{1}. ", "I've never heard {0}, so I can't play that. "),
)
NO_CLIP = (
    *(
        "I can't film {0}: I can only draw {1}. ",
        "Sorry, I can't make a clip of {0}. ",
        "I can draw {0}, but I can't film {1}. ",
    ),
    *("I don't know how {0} would move, sorry. ",),
)
ACCEPTING = (
    *("yes", "yes please", "ok", "sure", "please do", "yeah", "go ahead", "yep", "do that", "ok then", "fine"),
    *("why not", "oh yes", "alright"),
)


# Whose combinations may follow from another medium ("play what this sounds like"): no one trains but on `train`.
DERIVED = {"train": ("train",), "dev": ("train", "dev"), "heldout": ("train", "dev", "heldout")}
WITHHELD_SHARE = 0.3  # of the wishes for a thing whose defaults are withheld: as many as other things are just asked for
# Words that only fit pictures.
_PICTURED = re.compile(
    r"draw|pic|paint|sketch|image|illustr|photo|see|show|look|colou?r|background|emoji|art|icon|eye|view|copy|version", re.I
)


class Shown(NamedTuple):
    """A medium that the user attaches; one from outside the world is None."""

    medium: Medium | None
    path: str
    modality: str

    @classmethod
    def of(cls, medium: Medium) -> Shown:
        return cls(medium, path_of(medium), modality_of(medium))


class Made(NamedTuple):
    """A medium that the assistant makes.

    Args:
        is_withheld: the split does not hold it: that the thing is made may be taught, and nothing else of it.
    """

    medium: Medium
    is_withheld: bool = False


Part = str | Shown | Made


class NoSuchMedium(LookupError):
    """The split holds no combination of the wanted kind."""


class Offer(NamedTuple):
    """What the assistant proposed: to make a medium of a thing (its other attributes are open, a clip's motion is not)."""

    modality: str
    name: str
    motion: str = ""


class Turn(NamedTuple):
    """One exchange, and what stands on the table afterwards: a medium to be asked about or changed, an offer made."""

    intent: str
    user: list[Part]
    assistant: list[Part]
    medium: Medium | None = None
    offer: Offer | None = None
    only: tuple[str, ...] | None = None  # of a first turn: the kinds of answer that are allowed
    checks: tuple[dict[str, Any], ...] = ()  # what the words of the answer must say, see `scenarios`


@dataclass
class Setting:
    """What turns are made of.

    Args:
        concepts: the world's things.
        phrasings: by intent.
        split: "train", "dev" or "heldout".
        media: the modalities that are talked about.
        glosses: concept → what follows "a cat is ...".
        outside: pairs of a thing that the world lacks (with its article) and the concept that is nearest.
        outside_paths: files from outside the world, relative to the data folder: ``images/…``, ``sounds/…``, ``clips/…``.
        instruments: the world's sounds; empty without sounds.
        outside_sounds: pairs of a sound that the world lacks and the one that is nearest.
        filmed: the concepts of which there are clips.
        takes: the varied sounds that there are.
        looks: styles and backgrounds of clips.
        replies: how answers are said.
        asks_withheld: whether people also just ask for things whose defaults the split does not hold. If nobody ever did,
            a model that learns from what they say would take these for things that it does not know.
    """

    concepts: dict[str, Concept]
    phrasings: dict[str, list[Phrasing]]
    replies: Replies
    split: str = "train"
    media: tuple[str, ...] = MODALITIES
    glosses: dict[str, str] = field(default_factory=dict)
    outside: list[tuple[str, str]] = field(default_factory=list)
    outside_paths: list[str] = field(default_factory=list)
    instruments: dict[str, Instrument] = field(default_factory=dict)
    outside_sounds: list[tuple[str, str]] = field(default_factory=list)
    filmed: list[str] = field(default_factory=list)
    takes: list[Sound] = field(default_factory=list)
    looks: list[tuple[str, str]] = field(default_factory=list)
    asks_withheld: bool = False

    @cached_property
    def names(self) -> list[str]:
        return list(self.concepts)

    @cached_property
    def sound_of(self) -> dict[str, str]:
        """Concept → the sound that it makes."""
        return {c.name: c.sound for c in self.concepts.values() if c.sound in self.instruments}

    @cached_property
    def concept_of(self) -> dict[str, str]:
        """Sound → what is seen when it is heard."""
        return {sound: concept for concept, sound in reversed(self.sound_of.items())}

    @cached_property
    def neutral(self) -> dict[str, list[Phrasing]]:
        """The phrasings made for pictures that fit any medium: "what's this?", "once more"."""
        intents = ("describe", "name", "again", "yes_no_concept")
        return {i: [p for p in self.phrasings.get(i, ()) if not _PICTURED.search(p.text)] for i in intents}

    def permits(self, medium: Medium, derived: bool = False) -> bool:
        """Whether this split may hold a medium; ``derived``: it follows from another one that the split does hold."""
        if isinstance(medium, Sound) and not medium.register:
            return True  # an effect is one combination only
        return medium.split in (DERIVED[self.split] if derived else (self.split,))

    def is_just_asked_for(self, rng: random.Random, medium: Medium) -> bool:
        """Whether a thing at its defaults is asked for in the place of what the split holds (`asks_withheld`)."""
        return self.asks_withheld and not self.permits(medium) and rng.random() < WITHHELD_SHARE

    def made(self, medium: Medium) -> Made:
        """What the assistant makes, marked where the split does not hold it."""
        return Made(medium, is_withheld=not self.permits(medium, derived=True))

    def find(self, draw: Callable[[], Medium], derived: bool = False) -> Medium:
        """The first of 200 draws that this split may hold. Raises NoSuchMedium."""
        for _ in range(200):
            if self.permits(medium := draw(), derived):
                return medium
        raise NoSuchMedium(f"no {self.split} combination such as {medium}")

    def changed(self, rng: random.Random, medium: Medium, values: dict[str, Sequence[str]]) -> Medium:
        """A medium that differs from another in these parts, each with the values to choose from. Raises NoSuchMedium."""
        for _ in range(200):
            new = {part: rng.choice(choices) for part, choices in values.items()}
            changed = medium._replace(**new)
            if self.permits(changed) and all(getattr(medium, part) != value for part, value in new.items()):
                return changed
        raise NoSuchMedium(f"no {self.split} combination differs from {medium} in {', '.join(values)}")

    def outside_shown(self, rng: random.Random, modality: str) -> Shown:
        """A file from outside the world."""
        folder = {"image": "images/", "audio": "sounds/", "video": "clips/"}[modality]
        paths = [path for path in self.outside_paths if path.startswith(folder)]
        return Shown(None, rng.choice(paths) if paths else "", modality)

    @cached_property
    def _takes(self) -> dict[Sound, list[Sound]]:
        """Sound → its varied takes."""
        takes: dict[Sound, list[Sound]] = {}
        for sound in self.takes:
            takes.setdefault(sound._replace(take=0), []).append(sound)
        return takes

    def variants(self, medium: Medium) -> list[Medium]:
        """A medium and those that differ from it in what is not told: a sound in other keys, a clip in other looks."""
        match medium:
            case Sound():
                return [medium, *self._takes.get(medium, ())]
            case Clip():
                return medium.in_looks(self.looks)
        return [medium]

    def shown(self, rng: random.Random, medium: Medium) -> Shown:
        """A medium that the user attaches, in any of its variants."""
        variants = self.variants(medium)
        return Shown.of(rng.choice(variants) if len(variants) > 1 else medium)

    def spoken(self, medium: Medium) -> str:
        """The caption in good English: "an apple, spinning", "the sound of a helicopter"."""
        match medium:
            case Sound(name, ""):
                return f"the sound of {self.instruments[name].indefinite}"
            case Clip(concept, motion):
                return f"{self.concepts[concept].indefinite}, {motion}"
        return medium.caption

    def no_sound_of(self, concept: Concept, rng: random.Random) -> str:
        """What is said when a thing cannot be played."""
        return rng.choice(NO_SOUND).format(concept.indefinite, "" if concept.is_plural else "s")

    def no_clip_of(self, concept: Concept, rng: random.Random) -> str:
        """What is said when a thing cannot be filmed."""
        return rng.choice(NO_CLIP).format(concept.indefinite, concept.it)

    def make(
        self,
        intent: str,
        rng: random.Random,
        text: str,
        *media: Medium,
        shown: list[Part] | None = None,
        on_table: bool = True,
        was: Medium | None = None,
    ) -> Turn:
        """The turn that grants a request: each medium announced, then made.

        Args:
            text: the request; `shown`: what is attached to it.
            on_table: whether the last medium may be asked about and changed next.
            was: the medium that is changed.
        """
        assistant: list[Part] = []
        for number, medium in enumerate(media):
            after = media[number - 1] if number else None
            assistant += [self._announced(intent, rng, text, medium, was, after), self.made(medium)]
            on_table = on_table and not assistant[-1].is_withheld
        return Turn(intent, with_shown(rng, shown, text), assistant, media[-1] if on_table else None)

    def _announced(
        self, intent: str, rng: random.Random, text: str, medium: Medium, was: Medium | None, after: Medium | None
    ) -> str:
        if intent == "again":
            return self.replies.announce(medium, rng, "again")
        if was is not None:
            how = "correction" if _CORRECTING.search(text) else "change"
            return self.replies.announce(medium, rng, how, changed_parts(was, medium))
        return self.replies.announce(medium, rng, after=after)


_CORRECTING = re.compile(r"^\W*(?:no|not|nope|wrong|sorry|oops|actually|wait|hm+)\b|\bI (?:meant|said|asked|wanted)\b", re.I)


def changed_parts(was: Medium, medium: Medium) -> frozenset[str]:
    """The parts in which a medium differs from another of its kind."""
    before = parts_of(was)
    return frozenset(part for part, value in parts_of(medium).items() if before.get(part) != value)


class MediaTurns(ABC):
    """Makes turns about one kind of media.

    Args:
        setting: what they are made of.
    """

    describing: str  # the intent of a question for all that there is to say

    def __init__(self, setting: Setting):
        self.setting = setting

    @abstractmethod
    def sample(self, rng: random.Random, derived: bool = False, **fixed: str) -> Medium:
        """A medium of this split; `derived`: it follows from another one; `fixed`: parts that are given."""

    @abstractmethod
    def ask_for(self, rng: random.Random) -> Turn:
        """A wish for a medium."""

    @abstractmethod
    def ask(self, rng: random.Random, medium: Medium, shown: list[Part] | None = None) -> Turn:
        """A question about a medium."""

    @abstractmethod
    def change(self, rng: random.Random, medium: Medium, shown: list[Part] | None = None) -> Turn:
        """The medium on the table with one or two things changed, or none."""

    @abstractmethod
    def ask_without(self, rng: random.Random) -> Turn:
        """A question about a medium where there is none."""

    def show(self, rng: random.Random) -> Turn:
        """A medium of the user's own, to be asked about or changed."""
        medium = self.sample(rng)
        shown: list[Part] = [self.setting.shown(rng, medium)]
        return self.change(rng, medium, shown) if rng.random() < 0.25 else self.ask(rng, medium, shown)

    def describe(self, rng: random.Random) -> Turn:
        """A medium of the user's own, to be described in full."""
        medium = self.sample(rng)
        text = roughen(rng.choice(self.setting.phrasings[self.describing]).text, rng)
        shown: list[Part] = [self.setting.shown(rng, medium)]
        return Turn(self.describing, with_shown(rng, shown, text), [self.setting.replies.describe(medium, rng)], medium)


def reply_about(replies: Replies, intent: str, medium: Medium, asked: Medium, rng: random.Random) -> str:
    """The answer to a question about a medium; `asked`: what a question for yes or no was about."""
    what = intent.partition("_")[2]
    if intent.startswith("ask_"):
        return replies.tell(what, medium, rng)
    if intent.startswith("yes_no"):
        right = asked[0] == medium[0]
        return replies.confirm(medium, rng) if right else replies.deny(medium, rng, asked=asked[0])
    return replies.name(medium, rng) if intent.endswith("name") else replies.describe(medium, rng)


def choose(rng: random.Random, weights: dict[Any, float]) -> Any:
    """A key, by its weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def append(text: str, words: str, rng: random.Random) -> str:
    """Adds words before the closing mark."""
    body = text.rstrip(" .!?")
    return f"{body}{rng.choice((', ', ' '))}{words}{text[len(body) :].strip()}"


def with_shown(rng: random.Random, shown: list[Part] | None, text: str) -> list[Part]:
    """The user's words before or behind what is attached."""
    if not shown:
        return [text]
    return [*shown, text] if rng.random() < 0.75 else [text, *shown]
