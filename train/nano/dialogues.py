"""Composes the nano model's conversations from phrasings and the picture world; knows no model.

``python -m nextgpt.train.nano.dialogues --world runs/nano/world --out runs/nano/data`` writes four kinds of JSON lines
(each with a ``_dev`` twin from the development split; held-out combinations are in none), one conversation a line:

- ``text``: words only, for the language model's pretraining. A picture that the user shows stands as
  ``(picture: a small cat, flat style, red background)``, and the assistant's drawing is only announced. Since each
  announcement holds the canonical caption, the language model learns to turn free speech into captions here.
- ``align_encoders``: a picture → its caption. ``align_decoders``: a caption or plain request → the drawing.
- ``instruct``: conversations like those of ``text`` with real pictures: ``{"type": "image", "path": ...}``, relative
  to the file, in the user's messages, ``{"type": "image", "caption": ...}`` in the assistant's.

Every line also names the ``intents`` of its turns, for measuring. The same seed gives the same files, byte for byte.
"""

import argparse
import itertools
import json
import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from nextgpt.train.nano import world as picture_world
from nextgpt.train.nano.phrasings import (
    ATTRIBUTE_SLOTS,
    CONCEPT_SLOTS,
    PHRASINGS,
    SECOND_SLOTS,
    Phrasing,
    article,
    fill,
    load_phrasings,
    roughen,
)
from nextgpt.train.nano.split import split_of, split_of_names

logger = logging.getLogger(__name__)

DATA = Path(__file__).parent / "data"
STYLES, BACKGROUNDS, SIZES = map(tuple, (picture_world.STYLES, picture_world.BACKGROUNDS, picture_world.SIZES))
CAPTION = re.compile(
    rf"a (?:{'|'.join(SIZES)}) [^,.()]+, (?:{'|'.join(STYLES)}) style, (?:{'|'.join(BACKGROUNDS)}) background"
)
OUTSIDE_CAPTION = "something else"  # what stands for a picture from outside the world in words-only conversations
OUTSIDE_ANSWER = "I can't tell what this is."
CANNOT_DRAW = "I can't draw {}: it is not in my little world. "
WORLD_IN_SHORT = "I know animals, plants, food, vehicles, places, instruments, tools, clothes and everyday things."
DECLINED_ANSWER = "All right. What would you like to see instead?"
UNKNOWN_ANSWER = "I don't know that: I only know my little world of pictures. Shall I draw you something?"
NO_PICTURE_ANSWER = "I don't see a picture yet. Attach one, or ask me to draw something."


class Picture(NamedTuple):
    """One combination of the world. The defaults are what a request means when it does not say."""

    concept: str
    style: str = "3d"
    background: str = "white"
    size: str = "large"

    @property
    def caption(self) -> str:
        return f"a {self.size} {self.concept}, {self.style} style, {self.background} background"

    @property
    def path(self) -> str:
        return f"images/{self.concept.replace(' ', '_')}/{self.style}/{self.background}/{self.size}.png"

    @property
    def split(self) -> str:
        return split_of(self.concept, self.style, self.background, self.size)


DEFAULTS = {"style": "3d", "background": "white", "size": "large"}
VALUES = {"style": STYLES, "background": BACKGROUNDS, "size": SIZES}

# How people say an attribute's value; the first is the most frequent.
SAID = {
    "cartoon": ("cartoon", "cartoon", "cartoon", "comic", "cartoony"),
    "flat": ("flat", "flat", "flat", "flat 2d", "2d"),
    "3d": ("3d", "3d", "3D", "three-dimensional", "3-d"),
    "large": ("large", "large", "big"),
    "small": ("small", "small", "little"),
    "purple": ("purple", "purple", "purple", "violet"),
}
SIZE_WORDS = {"large": ("big", "large", "huge", "giant"), "small": ("small", "little", "tiny", "mini")}

# Attributes told after the thing ("a cat on blue") or after the whole request ("draw a cat, on blue").
TOLD_AFTER = {
    "background": (
        *("on {}", "on {}", "on a {} background", "with a {} background", "with {} background", "background {}"),
        *("against a {} background", "in front of {}", "on a {} backdrop", "with {} behind it", "and a {} background"),
    ),
    "style": ("in {} style", "in a {} style", "in {}", "{} style", "as a {} picture", "done in {}", "with a {} look"),
    "size": ("in {}", "{} size", "and {}", "drawn {}", "make it {}"),
}
CHANGED_TOO = {
    "background": ("and on {}", "on {}", "with a {} background", "and make the background {}", "and a {} background"),
    "style": ("and in {} style", "in {} style", "and {} style", "and make it {}", "as {}"),
    "size": ("and {}", "and make it {}", "but {}", "{} too", "and {} please"),
}

OPENINGS_PLAIN = ("", "", "", "", "", "There you are! ", "Here you go. ")
OPENINGS_ASKED = ("Sure! ", "Sure! ", "Of course. ", "")
OPENINGS_POLITE = ("With pleasure! ", "With pleasure! ", "Gladly. ", "")
ACCEPTING = (
    *("yes", "yes please", "ok", "sure", "please do", "yeah", "go ahead", "yep", "do that", "ok then", "fine"),
    *("why not", "oh yes", "alright"),
)
DECLINING = ("no", "no thanks", "nope", "nah", "no thank you", "not that", "rather not", "never mind", "no, leave it")
COLOUR_REQUESTS = ("draw", "draw me", "i want", "make", "can you draw", "show me", "please draw", "paint", "give me")
SCENES = (
    *("riding", "eating", "fighting", "chasing", "hugging", "dancing with", "playing with", "in love with", "holding"),
    *("talking to", "jumping over", "made of", "wearing", "kissing", "painting", "inside", "being chased by"),
)


class Concept(NamedTuple):
    """A thing of the world with its grammar (``article`` is empty for plurals and for what cannot be counted)."""

    name: str
    article: str
    number: str
    plural: str
    category: str
    synonyms: tuple[str, ...]

    @property
    def indefinite(self) -> str:
        return f"{self.article} {self.name}".strip()

    @property
    def this_is(self) -> str:
        return f"{'these are' if self.number == 'plural' else 'this is'} {self.indefinite}"

    def say(self, rng: random.Random) -> str:
        return rng.choice(self.synonyms) if self.synonyms and rng.random() < 0.3 else self.name


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
        )
        for row in rows
    }


def plural(noun: str) -> str:
    """The regular English plural."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun if noun.endswith("s") and not noun.endswith("ss") else f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"


class Shown(NamedTuple):
    """A picture that the user attaches."""

    picture: Picture | None  # None: from outside the world
    path: str


class Drawn(NamedTuple):
    """A picture that the assistant draws."""

    picture: Picture


Part = str | Shown | Drawn


class NoSuchPicture(LookupError):
    """The split holds no combination of the wanted kind."""


class Turn(NamedTuple):
    """One exchange, and what stands on the table afterwards: a picture to be asked about or changed, an offer made."""

    intent: str
    user: list[Part]
    assistant: list[Part]
    picture: Picture | None = None
    offer: str | None = None


class Composer:
    """Makes conversations of one split.

    Args:
        concepts: the world's things.
        phrasings: by intent.
        glosses: concept → what follows "a cat is ...".
        outside: pairs of a thing that the world lacks (with its article) and the concept that is nearest.
        outside_paths: picture files from outside the world, relative to the data folder.
        split: "train" or "dev".
    """

    def __init__(
        self,
        concepts: dict[str, Concept],
        phrasings: dict[str, list[Phrasing]],
        glosses: dict[str, str],
        outside: list[tuple[str, str]],
        outside_paths: list[str],
        split: str = "train",
    ):
        self.concepts, self.phrasings, self.glosses = concepts, phrasings, glosses
        self.names = list(concepts)
        self.outside = [(thing, near) for thing, near in outside if near in concepts]
        self.outside_paths = outside_paths
        self.split = split

    # -- conversations ------------------------------------------------------------------------------------------

    def conversation(self, rng: random.Random) -> list[Turn]:
        """One to four turns."""
        turns: list[Turn] = []
        length = rng.choices((1, 2, 3, 4), (40, 35, 17, 8))[0]
        while len(turns) < length:
            try:
                turns.append(self._next_turn(rng, turns[-1]) if turns else self._first_turn(rng))
            except NoSuchPicture:  # the split has no such combination: let the user want something else
                continue
        return turns

    def turn(self, kind: str, rng: random.Random, picture: Picture | None = None) -> Turn:
        """One turn of a kind, to measure with: `describe`, `change` (of the `picture` on the table), `draw` …"""
        makers = {
            "draw": self._draw,
            "describe": self._describe,
            "change": lambda rng: self._change(rng, picture),
            "outside_picture": self._ask_about_outside,
            "outside_draw": self._outside_draw,
            "outside_question": lambda rng: self._replied(rng, "outside_question"),
        }
        while True:
            try:
                return makers[kind](rng)
            except NoSuchPicture:  # the split has no such combination: let the user want something else
                continue

    def _fresh_turn(self, rng: random.Random) -> Turn:
        make = rng.choices(
            (self._draw, self._draw_two, self._ask_about_shown, self._ask_about_outside, self._talk),
            (42, 5, 30, 3, 18),
        )[0]
        return make(rng)

    def _first_turn(self, rng: random.Random) -> Turn:
        return self._without_picture(rng) if rng.random() < 0.02 else self._fresh_turn(rng)

    def _next_turn(self, rng: random.Random, last: Turn) -> Turn:
        if last.offer and rng.random() < 0.7:
            return self._answer_offer(rng, last.offer)
        if last.picture is None:
            return self._fresh_turn(rng) if rng.random() < 0.7 else self._talk(rng)
        draw = rng.random()
        if draw < 0.5:
            return self._change(rng, last.picture)
        if draw < 0.7:
            return self._ask(rng, last.picture)
        if draw < 0.8:  # the picture stays on the table while people chat
            return self._talk(rng)._replace(picture=last.picture, offer=None)
        return self._fresh_turn(rng)

    # -- drawing ------------------------------------------------------------------------------------------------

    def sample(self, rng: random.Random, **fixed: str) -> Picture:
        """A picture of this split; half of the attributes that are not fixed take their default."""
        for _ in range(200):
            chosen = {k: DEFAULTS[k] if rng.random() < 0.5 else rng.choice(values) for k, values in VALUES.items()}
            picture = Picture(**{"concept": rng.choice(self.names), **chosen, **fixed})
            if picture.split == self.split:
                return picture
        raise NoSuchPicture(f"no {self.split} combination with {fixed}")

    def _draw(self, rng: random.Random, concept: str | None = None) -> Turn:
        picture = self.sample(rng, **({"concept": concept} if concept else {}))
        draw = rng.random()
        if draw < 0.10:
            text = self._short_request(rng, picture)
        elif draw < 0.12:
            return self._draw_recoloured(rng, picture)
        else:
            text = self._request(rng, rng.choice(self.phrasings["draw"]), picture)
        return self._drawing("draw", rng, roughen(text, rng), picture)

    def _drawing(
        self, intent: str, rng: random.Random, text: str, picture: Picture, shown: list[Part] | None = None
    ) -> Turn:
        answer = f"{opening(text, rng)}Here is {picture.caption}."
        return Turn(intent, _with_shown(rng, shown, text), [answer, Drawn(picture)], picture)

    def _request(self, rng: random.Random, phrasing: Phrasing, picture: Picture) -> str:
        """A phrasing filled; attributes without a slot are told beside the thing or at the end, defaults seldom."""
        told = {slot.replace("size_word", "size") for slot in phrasing.slots & ATTRIBUTE_SLOTS}
        rest = [k for k in VALUES if k not in told and (getattr(picture, k) != DEFAULTS[k] or rng.random() < 0.1)]
        rng.shuffle(rest)
        at_end = [k for k in rest if rng.random() < 0.25]
        beside = [k for k in rest if k not in at_end]
        values = self._attribute_values(rng, picture) | self._concept_values(rng, picture, beside)
        text = fill(phrasing.text, values)
        for attribute in at_end:
            text = _append(text, _after(rng, attribute, getattr(picture, attribute)), rng)
        return text

    def _attribute_values(self, rng: random.Random, picture: Picture) -> dict[str, str]:
        values = {k: say(getattr(picture, k), rng) if rng.random() < 0.5 else getattr(picture, k) for k in VALUES}
        return values | {"size_word": rng.choice(SIZE_WORDS[picture.size])}

    def _concept_values(self, rng: random.Random, picture: Picture, beside: Iterable[str] = ()) -> dict[str, str]:
        """The four concept slots, with some attributes said beside the thing: "a small cat on a red background"."""
        concept = self.concepts[picture.concept]
        noun = concept.say(rng)
        before, after = [], []
        for attribute in beside:
            value = getattr(picture, attribute)
            if attribute == "background" or rng.random() < 0.35:
                after.append(_after(rng, attribute, value))
            else:
                before.append(rng.choice(SIZE_WORDS[value]) if attribute == "size" else say(value, rng))
        countable = concept.article or noun != concept.name
        start = " ".join((*before, noun))
        a = "" if not countable or noun.endswith("s") and concept.number == "plural" else article(start)
        if start == concept.name:
            a = concept.article
        elif not a and rng.random() < 0.3:
            a = "some"
        end = "".join(f" {words}" for words in after)
        many = " ".join((*before, concept.plural if noun == concept.name else plural(noun)))
        return {
            "a_concept": f"{a} {start}".strip() + end,
            "concept": start + end,
            "the_concept": f"the {start}{end}",
            "concepts": many + end,
        }

    def _short_request(self, rng: random.Random, picture: Picture) -> str:
        """ "cat, blue", "small cat flat red": the way people type when they know the tool."""
        told = [k for k in VALUES if getattr(picture, k) != DEFAULTS[k] or rng.random() < 0.15]
        words = [say(getattr(picture, k), rng) for k in told]
        if "background" in told and rng.random() < 0.5:
            words[told.index("background")] += rng.choice((" background", " bg", " backdrop"))
        rng.shuffle(words)
        words.insert(0 if rng.random() < 0.7 else rng.randint(0, len(words)), self.concepts[picture.concept].say(rng))
        return rng.choice((", ", ", ", " ", " / ", ". ", " - ")).join(words)

    def _draw_recoloured(self, rng: random.Random, picture: Picture) -> Turn:
        """ "draw a blue cat": things keep their own colours here; say so, and put it on that colour."""
        picture = self.sample(rng, concept=picture.concept, style="3d", size="large")
        colour = picture.background
        text = f"{rng.choice(COLOUR_REQUESTS)} {article(colour)} {colour} {picture.concept}"
        answer = f"I can't change its own colours, so I put it on {colour}. Here is {picture.caption}."
        return Turn("draw", [roughen(text, rng)], [answer, Drawn(picture)], picture)

    def _draw_two(self, rng: random.Random) -> Turn:
        """Two things in one answer, on the same background and in the same style."""
        phrasing = rng.choice(self.phrasings["multi"])
        first = self.sample(rng)
        shared = {"style": first.style, "background": first.background}
        if "size" in phrasing.slots and "{size} {concept} and {a_concept_2}" not in phrasing.text:
            shared["size"] = first.size
        second = self.sample(rng, **shared)
        while second.concept == first.concept:
            second = self.sample(rng, **shared)
        told = shared if "size" not in phrasing.slots else shared | {"size": first.size}
        values = self._attribute_values(rng, first) | self._concept_values(rng, first, _told_beside(first, told))
        others = self._attribute_values(rng, second) | self._concept_values(rng, second, _told_beside(second, shared))
        text = fill(phrasing.text, values | {f"{slot}_2": value for slot, value in others.items()})
        for attribute, value in shared.items():
            if attribute not in phrasing.slots and value != DEFAULTS[attribute]:
                text = _append(text, _after(rng, attribute, value), rng)
        text = roughen(text, rng)
        answers = f"{opening(text, rng)}Here is {first.caption}.", f"And here is {second.caption}."
        return Turn("multi", [text], [answers[0], Drawn(first), answers[1], Drawn(second)])

    # -- a picture on the table ---------------------------------------------------------------------------------

    def _ask_about_shown(self, rng: random.Random) -> Turn:
        picture = self.sample(rng)
        shown: list[Part] = [Shown(picture, picture.path)]
        return self._change(rng, picture, shown) if rng.random() < 0.25 else self._ask(rng, picture, shown)

    def _describe(self, rng: random.Random) -> Turn:
        picture = self.sample(rng)
        text = roughen(rng.choice(self.phrasings["describe"]).text, rng)
        answer = self._answer_about("describe", picture, picture)
        return Turn("describe", _with_shown(rng, [Shown(picture, picture.path)], text), [answer], picture)

    def _ask(self, rng: random.Random, picture: Picture, shown: list[Part] | None = None) -> Turn:
        intents = ("describe", "name", "ask_background", "ask_style", "ask_size", "yes_no_concept")
        intent = rng.choices(intents, (30, 25, 12, 12, 8, 13))[0]
        named, asked = picture, picture
        if intent == "yes_no_concept" and rng.random() < 0.5:
            asked = Picture(rng.choice(self.names))
            named = asked
        text = roughen(fill(rng.choice(self.phrasings[intent]).text, self._concept_values(rng, named)), rng)
        return Turn(intent, _with_shown(rng, shown, text), [self._answer_about(intent, picture, asked)], picture)

    def _answer_about(self, intent: str, picture: Picture, asked: Picture) -> str:
        if intent == "describe":
            return f"This is {picture.caption}."
        if intent == "ask_background":
            return f"The background is {picture.background}."
        if intent == "ask_style":
            return f"It is drawn in {picture.style} style."
        if intent == "ask_size":
            return f"It is {picture.size}."
        this_is = self.concepts[picture.concept].this_is
        if intent == "yes_no_concept":
            return f"Yes, {this_is}." if asked.concept == picture.concept else f"No, {this_is}."
        return f"{this_is[:1].upper()}{this_is[1:]}."

    def _change(self, rng: random.Random, picture: Picture, shown: list[Part] | None = None) -> Turn:
        """ "now on blue", "the same with a dog": the picture on the table with one or two things changed, or none."""
        if rng.random() < 0.1:
            text = fill(rng.choice(self.phrasings["again"]).text, self._concept_values(rng, picture))
            return self._drawing("again", rng, roughen(text, rng), picture, shown)
        attributes = rng.sample(("background", "style", "size", "concept"), rng.choices((1, 2), (80, 20))[0])
        if "concept" in attributes:  # "a dog, and make it blue" follows the thing, never leads it
            attributes.sort(key="concept".__ne__)
        phrasing = rng.choice(self.phrasings[f"change_{attributes[0]}"])
        if attributes[0] == "size" and implied_size(phrasing) == picture.size:
            attributes, phrasing = ["background"], rng.choice(self.phrasings["change_background"])
        changed = self._changed(rng, picture, attributes)
        named = changed if attributes[0] == "concept" and not phrasing.slots & SECOND_SLOTS else picture
        values = self._attribute_values(rng, changed) | self._concept_values(rng, named)
        values |= {f"{slot}_2": value for slot, value in self._concept_values(rng, changed).items()}
        text = fill(phrasing.text, values)
        for attribute in attributes[1:]:
            words = rng.choice(CHANGED_TOO[attribute]).format(say(getattr(changed, attribute), rng))
            text = _append(text, words, rng)
        return self._drawing(f"change_{attributes[0]}", rng, roughen(text, rng), changed, shown)

    def _changed(self, rng: random.Random, picture: Picture, attributes: list[str]) -> Picture:
        for _ in range(200):
            new = {a: rng.choice(self.names if a == "concept" else VALUES[a]) for a in attributes}
            changed = picture._replace(**new)
            if changed.split == self.split and all(getattr(picture, a) != value for a, value in new.items()):
                return changed
        raise NoSuchPicture(f"no {self.split} combination differs from {picture} in {attributes}")

    def _ask_about_outside(self, rng: random.Random) -> Turn:
        """A picture that is none of the world's."""
        intent = rng.choice(("describe", "name", "describe", "name", "ask_style", "change_background", "again"))
        values = dict.fromkeys(CONCEPT_SLOTS, "it") | {"background": rng.choice(BACKGROUNDS)}
        text = roughen(fill(rng.choice(self.phrasings[intent]).text, values), rng)
        shown: list[Part] = [Shown(None, rng.choice(self.outside_paths) if self.outside_paths else "")]
        return Turn("outside_picture", _with_shown(rng, shown, text), [OUTSIDE_ANSWER])

    def _without_picture(self, rng: random.Random) -> Turn:
        """A question about a picture where there is none."""
        questions = ("describe", "name", "ask_background", "ask_style", "ask_size")
        intent = rng.choice((*questions, "change_background", "change_style", "again"))
        picture = self.sample(rng)
        values = self._attribute_values(rng, picture) | self._concept_values(rng, picture)
        text = roughen(fill(rng.choice(self.phrasings[intent]).text, values), rng)
        return Turn("no_picture", [text], [NO_PICTURE_ANSWER])

    # -- talk ---------------------------------------------------------------------------------------------------

    def _talk(self, rng: random.Random) -> Turn:
        make = rng.choices((self._replied, self._define, self._outside_draw, self._outside_scene), (40, 26, 28, 6))[0]
        return make(rng)

    def _replied(self, rng: random.Random, intent: str | None = None) -> Turn:
        """Small talk, what it can do, its world, questions beyond it: the teachers' own answers."""
        intents = ("smalltalk", "capability", "about_world", "outside_question")
        intent = intent or rng.choices(intents, (40, 20, 15, 25))[0]
        phrasing = rng.choice(self.phrasings[intent])
        thing = rng.choice(self.outside)[0]
        reply = (phrasing.reply or UNKNOWN_ANSWER).replace("{number_of_things}", str(len(self.names)))
        values = {"thing": thing} | self._concept_values(rng, Picture(rng.choice(self.names)))
        return Turn(intent, [roughen(fill(phrasing.text, values), rng)], [reply])

    def _define(self, rng: random.Random) -> Turn:
        concept = self.concepts[rng.choice(self.names)]
        while concept.name not in self.glosses:
            concept = self.concepts[rng.choice(self.names)]
        text = fill(rng.choice(self.phrasings["define"]).text, self._concept_values(rng, Picture(concept.name)))
        subject = concept.indefinite[:1].upper() + concept.indefinite[1:]
        is_ = "are" if concept.number == "plural" else "is"
        return Turn("define", [roughen(text, rng)], [f"{subject} {is_} {self.glosses[concept.name]}."])

    def _outside_draw(self, rng: random.Random) -> Turn:
        """A wish that the world cannot grant: say so, and offer what is near."""
        phrasing = rng.choice(self.phrasings["outside_draw"])
        thing, near = rng.choice(self.outside)
        if unheard := rng.random() < 0.25:
            thing = unheard_thing(rng)
        picture = Picture("", rng.choice(STYLES), rng.choice(BACKGROUNDS), rng.choice(SIZES))
        text = roughen(fill(phrasing.text, self._attribute_values(rng, picture) | {"thing": thing}), rng)
        if unheard or "thing" not in phrasing.slots:
            return Turn("outside_draw", [text], [CANNOT_DRAW.format("that") + WORLD_IN_SHORT])
        theirs = re.sub(r"^my\b", "your", re.sub(r"^(me|myself)$", "you", thing))
        answer = CANNOT_DRAW.format(theirs) + f"Shall I draw {self.concepts[near].indefinite} instead?"
        return Turn("outside_draw", [text], [answer], offer=near)

    def _outside_scene(self, rng: random.Random) -> Turn:
        """ "a cat riding a bus": it draws one thing at a time."""
        actor = self.concepts[rng.choice(self.names)]
        other = rng.choice((self.concepts[rng.choice(self.names)].indefinite, rng.choice(self.outside)[0]))
        scene = f"{actor.indefinite} {rng.choice(SCENES)} {other}"
        phrasing = rng.choice([p for p in self.phrasings["outside_draw"] if p.slots == {"thing"}])
        answer = f"I can't draw scenes, only one thing at a time. Shall I draw {actor.indefinite}?"
        return Turn("outside_draw", [roughen(fill(phrasing.text, {"thing": scene}), rng)], [answer], offer=actor.name)

    def _answer_offer(self, rng: random.Random, offer: str) -> Turn:
        if rng.random() < 0.25:
            return Turn("decline", [roughen(rng.choice(DECLINING), rng)], [DECLINED_ANSWER])
        picture = self.sample(rng, concept=offer)
        text = rng.choice(ACCEPTING)
        for attribute in VALUES:
            if getattr(picture, attribute) != DEFAULTS[attribute]:
                text = _append(text, _after(rng, attribute, getattr(picture, attribute)), rng)
        return self._drawing("accept", rng, roughen(text, rng), picture)


def unheard_thing(rng: random.Random) -> str:
    """A word that nobody has heard: "a spolker". Words alone do not make a thing of the world."""
    starts = ("b", "br", "d", "fl", "gr", "k", "l", "m", "n", "pl", "s", "sp", "t", "v", "z")
    ends = ("b", "ck", "d", "ffer", "g", "lk", "mp", "nd", "ng", "nker", "r", "ssel", "t", "x", "zzle")
    word = "".join(rng.choice(starts) + rng.choice("aeiou") for _ in range(rng.choice((1, 1, 2)))) + rng.choice(ends)
    return rng.choice((f"a {word}", f"a {word}", word, f"the {word}"))


def implied_size(phrasing: Phrasing) -> str | None:
    """What a change of size without a slot asks for ("shrink it"); None where a slot says it."""
    if phrasing.slots & ATTRIBUTE_SLOTS:
        return None
    smaller = re.search(r"small|shrink|down|less|reduce|more space|tin(y|ier)", phrasing.text, re.I)
    return "small" if smaller else "large"


def say(value: str, rng: random.Random) -> str:
    """One of the ways in which people say an attribute's value."""
    return rng.choice(SAID.get(value, (value,)))


def opening(text: str, rng: random.Random) -> str:
    """The answer's first words follow the request's manner."""
    lower = text.lower()
    if "please" in lower or "kind" in lower:
        return rng.choice(OPENINGS_POLITE)
    if lower.startswith(("can", "could", "would", "will", "may")) or text.endswith("?"):
        return rng.choice(OPENINGS_ASKED)
    return rng.choice(OPENINGS_PLAIN)


def _after(rng: random.Random, attribute: str, value: str) -> str:
    value = rng.choice(SIZE_WORDS[value]) if attribute == "size" else say(value, rng)
    return re.sub(r"\ba(?= [aeiou])", "an", rng.choice(TOLD_AFTER[attribute]).format(value))


def _append(text: str, words: str, rng: random.Random) -> str:
    """Adds words before the closing mark."""
    body = text.rstrip(" .!?")
    return f"{body}{rng.choice((', ', ' '))}{words}{text[len(body) :].strip()}"


def _told_beside(picture: Picture, shared: dict[str, str]) -> list[str]:
    return [k for k in VALUES if k not in shared and getattr(picture, k) != DEFAULTS[k]]


def _with_shown(rng: random.Random, shown: list[Part] | None, text: str) -> list[Part]:
    if not shown:
        return [text]
    return [*shown, text] if rng.random() < 0.75 else [text, *shown]


# -- lines ------------------------------------------------------------------------------------------------------


def text_line(turns: list[Turn]) -> dict:
    """The conversation in words only."""
    messages = []
    for turn in turns:
        user = [part if isinstance(part, str) else f"(picture: {_caption(part)})" for part in turn.user]
        assistant = [part for part in turn.assistant if isinstance(part, str)]
        messages += [_message("user", [_text(" ".join(user))]), _message("assistant", [_text(" ".join(assistant))])]
    return {"messages": messages, "intents": [turn.intent for turn in turns]}


def media_line(turns: list[Turn]) -> dict:
    """The conversation with its pictures."""
    messages = []
    for turn in turns:
        user = [_text(part) if isinstance(part, str) else {"type": "image", "path": part.path} for part in turn.user]
        assistant = [
            _text(part) if isinstance(part, str) else {"type": "image", "caption": part.picture.caption}
            for part in turn.assistant
        ]
        messages += [_message("user", user), _message("assistant", assistant)]
    return {"messages": messages, "intents": [turn.intent for turn in turns]}


def _caption(shown: Shown) -> str:
    return shown.picture.caption if shown.picture else OUTSIDE_CAPTION


def _text(text: str) -> dict:
    return {"type": "text", "text": text}


def _message(role: str, content: list[dict]) -> dict:
    return {"role": role, "content": content}


def combinations(composer: Composer) -> list[Picture]:
    """Every picture of the composer's split, in a fixed order."""
    product = itertools.product(composer.names, STYLES, BACKGROUNDS, SIZES)
    return [picture for picture in itertools.starmap(Picture, product) if picture.split == composer.split]


def align_encoders_line(composer: Composer, pictures: list[Picture], index: int, rng: random.Random) -> dict:
    """A picture and its caption; every twelfth picture is one from outside the world."""
    text = roughen(rng.choice(composer.phrasings["describe"]).text, rng)
    if index % 12 == 11 and composer.outside_paths:
        shown, answer = Shown(None, rng.choice(composer.outside_paths)), OUTSIDE_ANSWER
    else:
        picture = pictures[index % len(pictures)]
        shown, answer = Shown(picture, picture.path), f"This is {picture.caption}."
    return media_line([Turn("describe", _with_shown(rng, [shown], text), [answer])])


def align_decoders_line(composer: Composer, pictures: list[Picture], index: int, rng: random.Random) -> dict:
    """A caption, or a plain request, and the drawing."""
    picture = pictures[index % len(pictures)]
    text = rng.choice((picture.caption, f"Draw {picture.caption}.", ""))
    if not text:
        text = roughen(composer._request(rng, rng.choice(composer.phrasings["draw"]), picture), rng, slips=0)
    return media_line([Turn("draw", [text], [f"Here is {picture.caption}.", Drawn(picture)])])


LINES: dict[str, Callable[[Composer, list[Picture], int, random.Random], dict]] = {
    "text": lambda composer, pictures, index, rng: text_line(composer.conversation(rng)),
    "align_encoders": align_encoders_line,
    "align_decoders": align_decoders_line,
    "instruct": lambda composer, pictures, index, rng: media_line(composer.conversation(rng)),
}
COUNTS = {"text": 60_000, "align_encoders": 20_000, "align_decoders": 40_000, "instruct": 40_000}
DEV_COUNT = 2_000


def make_lines(composer: Composer, kind: str, start: int, stop: int, seed: int = 0) -> Iterator[str]:
    """JSON lines number start … stop of one kind; each has its own generator, so that chunks can be made apart."""
    pictures = combinations(composer) if kind.startswith("align") else []
    random.Random(seed).shuffle(pictures)
    for index in range(start, stop):
        rng = random.Random(f"{seed}/{kind}/{composer.split}/{index}")
        yield json.dumps(LINES[kind](composer, pictures, index, rng), ensure_ascii=False)


def load_composer(
    world: Path, split: str = "train", outside_paths: list[str] | None = None, phrasings: Path = PHRASINGS
) -> Composer:
    """A composer over a built world and the data beside this file."""
    glosses = json.loads((DATA / "glosses.json").read_text(encoding="utf-8"))["glosses"]
    concepts = load_concepts(world)
    outside = list(json.loads((DATA / "outside.json").read_text(encoding="utf-8"))["things"].items())
    outside += unbuilt_things(concepts)
    return Composer(concepts, load_phrasings(phrasings), glosses, outside, outside_paths or [], split)


def unbuilt_things(concepts: dict[str, Concept]) -> list[tuple[str, str]]:
    """Concepts that are listed but not in this world, each with one of the same category that is."""
    listed = json.loads(picture_world.CONCEPTS.read_text(encoding="utf-8"))
    near = {row["name"]: [c.name for c in concepts.values() if c.category == row["category"]] for row in listed}
    return [
        (f"{row['article']} {row['name']}".strip(), near[row["name"]][number % len(near[row["name"]])])
        for number, row in enumerate(listed)
        if row["name"] not in concepts and near[row["name"]]
    ]


# -- pictures ---------------------------------------------------------------------------------------------------


def outside_pictures(world: Path, split: str) -> dict[str, tuple[int, str, str]]:
    """Path → artwork's number, background and size, for the pictures of things from outside the world."""
    count = len(picture_world.World(world).outside)
    rng, pictures = random.Random(0), {}
    for number, _ in itertools.product(range(count), range(3)):
        background, size = rng.choice(BACKGROUNDS), rng.choice(SIZES)
        if split_of_names("outside", str(number)) == split:
            pictures[f"images/outside/{number}_{background}_{size}.png"] = (number, background, size)
    return pictures


def write_images(world: Path, out: Path) -> None:
    """Renders every picture of the training and development splits under ``out/images``."""
    built = picture_world.World(world)
    renderer = picture_world.Renderer(torch.from_numpy(built.art))
    for split in ("train", "dev"):
        for rows in built.combinations(split).split(256):
            for (c, s, b, z), pixels in zip(rows.tolist(), renderer(rows), strict=True):
                file = out / Picture(built.names[c], STYLES[s], BACKGROUNDS[b], SIZES[z]).path
                _save(pixels.mul(255).round().byte().permute(1, 2, 0).numpy(), file)
        for path, (number, background, size) in outside_pictures(world, split).items():
            _save(picture_world.render_art(built.outside[number], background, size), out / path)
        logger.info("the %s pictures are in %s", split, out / "images")


def _save(pixels: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


# -- files ------------------------------------------------------------------------------------------------------


def _make_chunk(world: Path, kind: str, split: str, seed: int, span: tuple[int, int]) -> str:
    outside = [] if kind == "text" else list(outside_pictures(world, split))
    composer = load_composer(world, split, outside)
    return "".join(line + "\n" for line in make_lines(composer, kind, *span, seed=seed))


def write_dialogues(world: Path, out: Path, counts: dict[str, int], seed: int = 0, workers: int = 1) -> None:
    """Writes ``<kind>.jsonl`` and ``<kind>_dev.jsonl`` for each kind; the number of workers changes nothing."""
    out.mkdir(parents=True, exist_ok=True)
    for (kind, count), split in itertools.product(counts.items(), ("train", "dev")):
        count, name = (count, kind) if split == "train" else (min(count, DEV_COUNT), f"{kind}_dev")
        spans = [(start, min(start + 4_000, count)) for start in range(0, count, 4_000)]
        make = partial(_make_chunk, world, kind, split, seed)
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file, ProcessPoolExecutor(workers) as pool:
            file.writelines(pool.map(make, spans))
        logger.info("%s: %d conversations", file.name, count)


def main() -> None:
    """Pictures, then conversations."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", type=Path, default=Path("runs/nano/world"))
    parser.add_argument("--out", type=Path, default=Path("runs/nano/data"))
    parser.add_argument("--kinds", nargs="+", choices=list(LINES), default=list(LINES))
    parser.add_argument("--count", type=int, help=f"conversations of each kind (default: {COUNTS})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes; the files do not depend on it")
    parser.add_argument("--images", action="store_true", help="also render the pictures of both splits")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.images:
        write_images(args.world, args.out)
    counts = {kind: args.count or COUNTS[kind] for kind in args.kinds}
    write_dialogues(args.world, args.out, counts, args.seed, args.workers)


if __name__ == "__main__":
    main()
