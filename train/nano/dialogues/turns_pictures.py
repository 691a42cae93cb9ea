"""Turns about pictures: asking for one or two, describing, naming, asking about and changing the one on the table."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from nextgpt.train.nano.dialogues.phrasings import (
    ATTRIBUTE_SLOTS,
    CONCEPT_SLOTS,
    SECOND_SLOTS,
    Phrasing,
    article,
    fill,
    roughen,
)
from nextgpt.train.nano.dialogues.turns import (
    ACCEPTING,
    Made,
    MediaTurns,
    Offer,
    Part,
    Turn,
    append,
    reply_about,
    with_shown,
)
from nextgpt.train.nano.world.things import PICTURE_DEFAULTS as DEFAULTS
from nextgpt.train.nano.world.things import PICTURE_VALUES as VALUES
from nextgpt.train.nano.world.things import Picture, plural

NO_PICTURE_ANSWERS = (
    "I don't see a picture yet. Attach one, or ask me to draw something.",
    "I don't see a picture here. Could you attach it?",
    "There's nothing attached, sorry. I don't see a picture.",
    "I don't see a picture. Please attach one.",
)

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

COLOUR_REQUESTS = ("draw", "draw me", "i want", "make", "can you draw", "show me", "please draw", "paint", "give me")


class PictureTurns(MediaTurns):
    """Makes turns about pictures.

    Args:
        setting: what they are made of.
    """

    describing = "describe"

    # -- drawing ------------------------------------------------------------------------------------------------

    def sample(self, rng: random.Random, derived: bool = False, **fixed: str) -> Picture:
        """A picture of this split; half of the attributes that are not fixed take their default."""

        def draw() -> Picture:
            chosen = {k: DEFAULTS[k] if rng.random() < 0.5 else rng.choice(values) for k, values in VALUES.items()}
            return Picture(**{"concept": rng.choice(self.setting.names), **chosen, **fixed})

        return self.setting.find(draw, derived)

    def ask_for(self, rng: random.Random) -> Turn:
        """A wish for a picture."""
        picture = Picture(rng.choice(self.setting.names))
        if not self.setting.is_just_asked_for(rng, picture):
            picture = self.sample(rng)
        draw = rng.random()
        if draw < 0.10:
            text = self._short_request(rng, picture)
        elif draw < 0.12:
            return self._draw_recoloured(rng, picture)
        else:
            text = self.request_for(rng, picture)
        return self.setting.make("draw", rng, roughen(text, rng), picture)

    def request_for(self, rng: random.Random, picture: Picture) -> str:
        """A plain wish for a picture, in words."""
        return self.request(rng, rng.choice(self.setting.phrasings["draw"]), picture)

    def request(
        self,
        rng: random.Random,
        phrasing: Phrasing,
        picture: Picture,
        at_end: float = 0.25,
        more: dict[str, str] | None = None,
    ) -> str:
        """A phrasing filled; attributes without a slot are told beside the thing or at the end, defaults seldom.

        Args:
            at_end: share of those that are told at the end.
            more: values of other slots.
        """
        told = {slot.replace("size_word", "size") for slot in phrasing.slots & ATTRIBUTE_SLOTS}
        rest = [k for k in VALUES if k not in told and (getattr(picture, k) != DEFAULTS[k] or rng.random() < 0.1)]
        rng.shuffle(rest)
        ending = [k for k in rest if rng.random() < at_end]
        beside = [k for k in rest if k not in ending]
        values = self.attribute_values(rng, picture) | self.concept_values(rng, picture, beside)
        text = fill(phrasing.text, values | (more or {}))
        for attribute in ending:
            text = append(text, _after(rng, attribute, getattr(picture, attribute)), rng)
        return text

    def attribute_values(self, rng: random.Random, picture: Picture) -> dict[str, str]:
        values = {k: say(getattr(picture, k), rng) if rng.random() < 0.5 else getattr(picture, k) for k in VALUES}
        return values | {"size_word": rng.choice(SIZE_WORDS[picture.size])}

    def concept_values(self, rng: random.Random, picture: Picture, beside: Iterable[str] = ()) -> dict[str, str]:
        """The four concept slots, with some attributes said beside the thing: "a small cat on a red background"."""
        concept = self.setting.concepts[picture.concept]
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
        words.insert(
            0 if rng.random() < 0.7 else rng.randint(0, len(words)), self.setting.concepts[picture.concept].say(rng)
        )
        return rng.choice((", ", ", ", " ", " / ", ". ", " - ")).join(words)

    def _draw_recoloured(self, rng: random.Random, picture: Picture) -> Turn:
        """ "draw a blue cat": things keep their own colours here; say so, and put it on that colour."""
        picture = self.sample(rng, concept=picture.concept, style="3d", size="large")
        colour = picture.background
        text = f"{rng.choice(COLOUR_REQUESTS)} {article(colour)} {colour} {picture.concept}"
        concept = self.setting.concepts[picture.concept]
        answer = f"I can't change the colours of {concept.indefinite}, so I put {concept.it} on {colour}."
        return Turn("draw", [roughen(text, rng)], [answer, Made(picture)], picture)

    def ask_for_two(self, rng: random.Random) -> Turn:
        """Two things in one answer, on the same background and in the same style."""
        phrasing = rng.choice(self.setting.phrasings["multi"])
        first = self.sample(rng)
        shared = {"style": first.style, "background": first.background}
        if "size" in phrasing.slots and "{size} {concept} and {a_concept_2}" not in phrasing.text:
            shared["size"] = first.size
        second = self.sample(rng, **shared)
        while second.concept == first.concept:
            second = self.sample(rng, **shared)
        told = shared if "size" not in phrasing.slots else shared | {"size": first.size}
        values = self.attribute_values(rng, first) | self.concept_values(rng, first, _told_beside(first, told))
        others = self.attribute_values(rng, second) | self.concept_values(rng, second, _told_beside(second, shared))
        text = fill(phrasing.text, values | {f"{slot}_2": value for slot, value in others.items()})
        for attribute, value in shared.items():
            if attribute not in phrasing.slots and value != DEFAULTS[attribute]:
                text = append(text, _after(rng, attribute, value), rng)
        text = roughen(text, rng)
        return self.setting.make("multi", rng, text, first, second, on_table=False)

    # -- a picture on the table ---------------------------------------------------------------------------------

    def ask(self, rng: random.Random, picture: Picture, shown: list[Part] | None = None) -> Turn:
        """A question about a picture."""
        intents = ("describe", "name", "ask_background", "ask_style", "ask_size", "yes_no_concept")
        intent = rng.choices(intents, (30, 25, 12, 12, 8, 13))[0]
        named, asked = picture, picture
        if intent == "yes_no_concept" and rng.random() < 0.5:
            asked = Picture(rng.choice(self.setting.names))
            named = asked
        text = roughen(fill(rng.choice(self.setting.phrasings[intent]).text, self.concept_values(rng, named)), rng)
        answer = reply_about(self.setting.replies, intent, picture, asked, rng)
        return Turn(intent, with_shown(rng, shown, text), [answer], picture)

    def change(self, rng: random.Random, picture: Picture, shown: list[Part] | None = None) -> Turn:
        """ "now on blue", "the same with a dog": the picture on the table with one or two things changed, or none."""
        if rng.random() < 0.1:
            text = fill(rng.choice(self.setting.phrasings["again"]).text, self.concept_values(rng, picture))
            return self.setting.make("again", rng, roughen(text, rng), picture, shown=shown)
        attributes = rng.sample(("background", "style", "size", "concept"), rng.choices((1, 2), (80, 20))[0])
        if "concept" in attributes:  # "a dog, and make it blue" follows the thing, never leads it
            attributes.sort(key="concept".__ne__)
        phrasing = rng.choice(self.setting.phrasings[f"change_{attributes[0]}"])
        if attributes[0] == "size" and implied_size(phrasing) == picture.size:
            attributes, phrasing = ["background"], rng.choice(self.setting.phrasings["change_background"])
        values = VALUES | {"concept": self.setting.names}
        changed = self.setting.changed(rng, picture, {attribute: values[attribute] for attribute in attributes})
        named = changed if attributes[0] == "concept" and not phrasing.slots & SECOND_SLOTS else picture
        values = self.attribute_values(rng, changed) | self.concept_values(rng, named)
        values |= {f"{slot}_2": value for slot, value in self.concept_values(rng, changed).items()}
        text = fill(phrasing.text, values)
        for attribute in attributes[1:]:
            words = rng.choice(CHANGED_TOO[attribute]).format(say(getattr(changed, attribute), rng))
            text = append(text, words, rng)
        return self.setting.make(f"change_{attributes[0]}", rng, roughen(text, rng), changed, shown=shown, was=picture)

    def accept(self, rng: random.Random, offer: Offer) -> Turn:
        """ "yes, on blue": the picture that was offered."""
        picture = self.sample(rng, concept=offer.name)
        text = self.tell(rng, rng.choice(ACCEPTING), picture)
        return self.setting.make("accept", rng, roughen(text, rng), picture)

    def tell(self, rng: random.Random, text: str, picture: Picture) -> str:
        """What is not a picture's default, told at the end of a request."""
        for attribute, default in DEFAULTS.items():
            if getattr(picture, attribute) != default:
                text = append(text, _after(rng, attribute, getattr(picture, attribute)), rng)
        return text

    def show_outside(self, rng: random.Random) -> Turn:
        """A picture that is none of the world's."""
        intent = rng.choice(("describe", "name", "describe", "name", "ask_style", "change_background", "again"))
        values = dict.fromkeys(CONCEPT_SLOTS, "it") | {"background": rng.choice(VALUES["background"])}
        text = roughen(fill(rng.choice(self.setting.phrasings[intent]).text, values), rng)
        shown: list[Part] = [self.setting.outside_shown(rng, "image")]
        return Turn("outside_picture", with_shown(rng, shown, text), [self.setting.replies.unknown("image", rng)])

    def ask_without(self, rng: random.Random) -> Turn:
        """A question about a picture where there is none."""
        questions = ("describe", "name", "ask_background", "ask_style", "ask_size")
        intent = rng.choice((*questions, "change_background", "change_style", "again"))
        picture = self.sample(rng)
        values = self.attribute_values(rng, picture) | self.concept_values(rng, picture)
        text = roughen(fill(rng.choice(self.setting.phrasings[intent]).text, values), rng)
        return Turn("no_picture", [text], [rng.choice(NO_PICTURE_ANSWERS)])


def implied_size(phrasing: Phrasing) -> str | None:
    """What a change of size without a slot asks for ("shrink it"); None where a slot says it."""
    if phrasing.slots & ATTRIBUTE_SLOTS:
        return None
    smaller = re.search(r"small|shrink|down|less|reduce|more space|tin(y|ier)", phrasing.text, re.I)
    return "small" if smaller else "large"


def say(value: str, rng: random.Random) -> str:
    """One of the ways in which people say an attribute's value."""
    return rng.choice(SAID.get(value, (value,)))


def _after(rng: random.Random, attribute: str, value: str) -> str:
    value = rng.choice(SIZE_WORDS[value]) if attribute == "size" else say(value, rng)
    return re.sub(r"\ba(?= [aeiou])", "an", rng.choice(TOLD_AFTER[attribute]).format(value))


def _told_beside(picture: Picture, shared: dict[str, str]) -> list[str]:
    return [k for k in VALUES if k not in shared and getattr(picture, k) != DEFAULTS[k]]
