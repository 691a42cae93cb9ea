"""Turns about sounds: asking for one or two, describing, naming, asking about and changing the one on the table."""

from __future__ import annotations

import random
from collections.abc import Iterable

from nextgpt.train.nano.dialogues.phrasings import NOTE_SLOTS, SECOND_SOUND_SLOTS, Phrasing, fill, roughen
from nextgpt.train.nano.dialogues.turns import (
    ACCEPTING,
    MediaTurns,
    Offer,
    Part,
    Setting,
    Turn,
    append,
    reply_about,
    with_shown,
)
from nextgpt.train.nano.world.things import SOUND_DEFAULTS as DEFAULTS
from nextgpt.train.nano.world.things import SOUND_VALUES as VALUES
from nextgpt.train.nano.world.things import Sound

NO_SOUND_ANSWERS = (
    "I don't hear a sound yet. Attach one, or ask me to play something.",
    "I don't hear a sound here. Could you attach it?",
    "There's nothing attached, sorry. I don't hear a sound.",
    "I don't hear a sound. Please attach one.",
)

# How people say a register before the thing, and a figure with its article; the first is the most frequent.
REGISTERS_SAID = {
    "low": ("low", "low", "low", "deep", "low-pitched"),
    "middle": ("middle", "middle", "mid-range", "mid-pitched"),
    "high": ("high", "high", "high", "high-pitched"),
}
FIGURES_SAID = {
    "single note": ("a single note", "a single note", "one note", "just one note", "a long note"),
    "rising scale": ("a rising scale", "a rising scale", "an ascending scale", "a scale going up", "a scale upwards"),
    "falling scale": ("a falling scale", "a falling scale", "a descending scale", "a scale going down"),
    "chord": ("a chord",),
    "repeated note": ("a repeated note", "a repeated note", "repeated notes", "the same note again and again"),
}
BARE_FIGURES = {"rising scale": ("rising scale", "ascending scale"), "falling scale": ("falling scale", "descending scale")}
# Told after the whole request.
TOLD_AFTER = {
    "register": ("in the {} register", "in the {} register", "in the {} range", "{}", "{} pitch", "in a {} register"),
    "figure": ("{}", "playing {}", "as {}", "with {}", "and make it {}", "{} please"),
}
CHANGED_TOO = {
    "register": ("and {}", "in the {} register", "but {}", "and in the {} register", "and make it {}"),
    "figure": ("and {}", "with {}", "playing {}", "and make it {}", "as {}"),
}


class SoundTurns(MediaTurns):
    """Makes turns about sounds.

    Args:
        setting: what they are made of.
    """

    describing = "hear_describe"

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.pitched = [name for name, instrument in setting.instruments.items() if instrument.pitched]

    # -- playing ------------------------------------------------------------------------------------------------

    def sample(self, rng: random.Random, derived: bool = False, **fixed: str) -> Sound:
        """A sound of this split; half of the registers and figures that are not fixed take their default."""

        def draw() -> Sound:
            name = fixed.get("name") or rng.choice(list(self.setting.instruments))
            if name not in self.pitched:
                return Sound(name)
            chosen = {k: DEFAULTS[k] if rng.random() < 0.5 else rng.choice(values) for k, values in VALUES.items()}
            return Sound(name, **chosen | {k: value for k, value in fixed.items() if k in VALUES})

        return self.setting.find(draw, derived)

    def ask_for(self, rng: random.Random) -> Turn:
        """A wish for a sound."""
        sound = Sound(rng.choice(self.pitched), **DEFAULTS)
        if not self.setting.is_just_asked_for(rng, sound):
            sound = self.sample(rng)
        text = self._short_request(rng, sound) if rng.random() < 0.05 else self.request_for(rng, sound)
        return self.setting.make("play", rng, roughen(text, rng), sound)

    def ask_for_two(self, rng: random.Random) -> Turn:
        """Two sounds in one answer, what is not said of them at its default."""
        first = self.sample(rng, **DEFAULTS)
        second = self.sample(rng, **DEFAULTS)
        while second.name == first.name:
            second = self.sample(rng, **DEFAULTS)
        phrasing = self._phrasing(rng, "play_two", first, second)
        shared = {k: rng.choice(VALUES[k]) for k in VALUES if _slots(k) & phrasing.slots}
        first, second = (self.setting.find(lambda sound=sound: sound._replace(**shared)) for sound in (first, second))
        values = self.values(rng, first) | {f"{slot}_2": value for slot, value in self.values(rng, second).items()}
        text = roughen(fill(phrasing.text, values), rng)
        return self.setting.make("play_two", rng, text, first, second, on_table=False)

    def request_for(self, rng: random.Random, sound: Sound) -> str:
        """A plain wish for a sound, in words."""
        return self.request(rng, self._phrasing(rng, "play", sound), sound)

    def request(self, rng: random.Random, phrasing: Phrasing, sound: Sound) -> str:
        """A phrasing filled; what has no slot is told beside the thing or at the end, defaults seldom."""
        told = self._untold(rng, phrasing, sound)
        beside = [k for k in told if rng.random() < 0.5 and (k == "register" or "sound" not in phrasing.slots)]
        text = fill(phrasing.text, self.values(rng, sound, beside))
        return self.tell(rng, text, sound, [k for k in told if k not in beside])

    def _untold(self, rng: random.Random, phrasing: Phrasing, sound: Sound) -> list[str]:
        if not sound.register:
            return []
        open_ones = [k for k in VALUES if not _slots(k) & phrasing.slots]
        told = [k for k in open_ones if getattr(sound, k) != DEFAULTS[k] or rng.random() < 0.1]
        rng.shuffle(told)
        return told

    def tell(self, rng: random.Random, text: str, sound: Sound, attributes: Iterable[str] = tuple(VALUES)) -> str:
        """Register and figure told at the end of a request, where they are not the default."""
        for attribute in attributes:
            if sound.register and getattr(sound, attribute) != DEFAULTS[attribute]:
                text = append(text, rng.choice(TOLD_AFTER[attribute]).format(_said(rng, attribute, sound)), rng)
        return text

    def values(self, rng: random.Random, sound: Sound, beside: Iterable[str] = ()) -> dict[str, str]:
        """The sound slots, with some attributes said beside the thing: "a low trumpet playing a chord"."""
        instrument = self.setting.instruments[sound.name]
        noun = instrument.say(rng)
        before = [rng.choice(REGISTERS_SAID[sound.register])] if "register" in beside else []
        behind = f" {rng.choice(('playing', 'doing', 'with'))} {_said(rng, 'figure', sound)}" if "figure" in beside else ""
        values = {
            "a_sound": instrument.with_article(noun, before) + behind,
            "sound": " ".join((*before, noun)),
            "the_sound": " ".join(("the", *before, noun)) + behind,
        }
        if sound.register:
            bare = rng.choice(BARE_FIGURES.get(sound.figure, (sound.figure,)))
            values |= {"register": sound.register, "figure": bare, "a_figure": _said(rng, "figure", sound)}
        return values

    def _phrasing(self, rng: random.Random, intent: str, *sounds: Sound) -> Phrasing:
        """A phrasing that says nothing of the notes where an effect has none."""
        phrasing = rng.choice(self.setting.phrasings[intent])
        while not all(sound.register for sound in sounds) and phrasing.slots & NOTE_SLOTS:
            phrasing = rng.choice(self.setting.phrasings[intent])
        return phrasing

    def _short_request(self, rng: random.Random, sound: Sound) -> str:
        """ "trumpet, low, chord": the way people type when they know the tool."""
        told = [k for k in VALUES if sound.register and (getattr(sound, k) != DEFAULTS[k] or rng.random() < 0.15)]
        rng.shuffle(told)
        words = [self.setting.instruments[sound.name].say(rng), *(getattr(sound, k) for k in told)]
        words[0] += rng.choice((" sound", " sound", " noise", " audio"))
        return rng.choice((", ", ", ", " ", " / ", " - ")).join(words)

    def accept(self, rng: random.Random, offer: Offer) -> Turn:
        """ "yes, low": the sound that was offered."""
        sound = self.sample(rng, name=offer.name)
        text = self.tell(rng, rng.choice(ACCEPTING), sound)
        return self.setting.make("accept", rng, roughen(text, rng), sound)

    # -- a sound on the table -----------------------------------------------------------------------------------

    def ask(self, rng: random.Random, sound: Sound, shown: list[Part] | None = None) -> Turn:
        """A question about a sound."""
        intents = {"hear_describe": 30, "hear_name": 25, "ask_register": 14, "ask_figure": 14, "yes_no_sound": 17}
        intent = rng.choices(list(intents), list(intents.values()))[0]
        asked = sound
        if intent == "yes_no_sound" and rng.random() < 0.5:
            asked = self.sample(rng, derived=True)
        phrasings = self.setting.phrasings[intent]
        if shown and intent in NEUTRAL and rng.random() < 0.2:
            phrasings = self.setting.neutral[NEUTRAL[intent]] or phrasings
        text = roughen(fill(rng.choice(phrasings).text, self.values(rng, asked)), rng)
        return Turn(intent, with_shown(rng, shown, text), [self._answer_about(intent, sound, asked, rng)], sound)

    def _answer_about(self, intent: str, sound: Sound, asked: Sound, rng: random.Random) -> str:
        if sound.register or intent not in ("ask_register", "ask_figure"):
            return reply_about(self.setting.replies, intent, sound, asked, rng)
        return f"It plays no notes: this is {self.setting.spoken(sound)}."

    def change(self, rng: random.Random, sound: Sound, shown: list[Part] | None = None) -> Turn:
        """ "now an octave higher", "and on a flute": the sound on the table with one or two things changed, or none."""
        if rng.random() < 0.06 and self.setting.neutral["again"]:
            text = fill(rng.choice(self.setting.neutral["again"]).text, dict.fromkeys(("a_concept", "the_concept"), "it"))
            return self.setting.make("again", rng, roughen(text, rng), sound, shown=shown)
        parts = rng.sample(("name", *VALUES), rng.choices((1, 2), (80, 20))[0]) if sound.register else ["name"]
        parts.sort(key="name".__ne__)
        changed = self._changed(rng, sound, parts)
        parts = [part for part in parts if getattr(changed, part)]  # an effect has no notes
        phrasing = self._phrasing(rng, INTENTS[parts[0]], changed)
        named = changed if parts[0] == "name" and not phrasing.slots & SECOND_SOUND_SLOTS else sound
        values = self.values(rng, changed) | {
            slot: value for slot, value in self.values(rng, named).items() if slot not in NOTE_SLOTS
        }
        values |= {f"{slot}_2": value for slot, value in self.values(rng, changed).items()}
        text = fill(phrasing.text, values)
        for part in parts[1:]:
            text = append(text, rng.choice(CHANGED_TOO[part]).format(_said(rng, part, changed)), rng)
        return self.setting.make(INTENTS[parts[0]], rng, roughen(text, rng), changed, shown=shown, was=sound)

    def _changed(self, rng: random.Random, sound: Sound, parts: list[str]) -> Sound:
        if parts[0] != "name" or (sound.register and rng.random() < 0.85):
            return self.setting.changed(rng, sound, {part: {"name": self.pitched, **VALUES}[part] for part in parts})

        def draw() -> Sound:
            name = rng.choice([name for name in self.setting.instruments if name != sound.name])
            notes = {part: getattr(sound, part) or default for part, default in DEFAULTS.items()}
            return Sound(name, **notes) if name in self.pitched else Sound(name)

        return self.setting.find(draw)

    # -- nothing to hear ----------------------------------------------------------------------------------------

    def show_outside(self, rng: random.Random) -> Turn:
        """A sound that is none of the world's."""
        intent = rng.choice(("hear_describe", "hear_name", "hear_describe", "hear_name", "ask_figure", "change_register"))
        phrasing = rng.choice([p for p in self.setting.phrasings[intent] if p.slots <= {"the_sound", "register"}])
        text = fill(phrasing.text, {"the_sound": "it", "register": rng.choice(VALUES["register"])})
        shown: list[Part] = [self.setting.outside_shown(rng, "audio")]
        return Turn(
            "outside_sound", with_shown(rng, shown, roughen(text, rng)), [self.setting.replies.unknown("audio", rng)]
        )

    def ask_without(self, rng: random.Random) -> Turn:
        """A question about a sound where there is none."""
        intent = rng.choice(("hear_describe", "hear_name", "hear_name", "ask_register", "ask_figure"))
        text = fill(rng.choice(self.setting.phrasings[intent]).text, self.values(rng, self.sample(rng)))
        return Turn("no_sound", [roughen(text, rng)], [rng.choice(NO_SOUND_ANSWERS)])


INTENTS = {"name": "change_sound", "register": "change_register", "figure": "change_figure"}
NEUTRAL = {"hear_describe": "describe", "hear_name": "name"}


def _slots(attribute: str) -> frozenset[str]:
    return frozenset({attribute, f"a_{attribute}"})


def _said(rng: random.Random, attribute: str, sound: Sound) -> str:
    return rng.choice(FIGURES_SAID[sound.figure]) if attribute == "figure" else sound.register
