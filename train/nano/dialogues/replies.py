"""What the assistant says in natural English: announcements of what it makes, names, descriptions, details, yes and no.

A line of `data/answers/answers.jsonl` is `{"for": "announce_image", "text": "{heres} your {concept}, on {background}.",
"told": ["concept", "background"], "when": {"size": "small"}}`: `told` are the parts of a caption that the text tells,
`when` restricts it to media with these values, of this kind (`medium`) or number (`singular`, `one`, `plural`).
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from nextgpt.media.text import listed
from nextgpt.train.nano.dialogues.phrasings import fill
from nextgpt.train.nano.world.things import (
    MAIN,
    MOTIONS_SAID,
    PARTS,
    PICTURE_DEFAULTS,
    PLURALS,
    SOUND_DEFAULTS,
    Clip,
    Concept,
    Instrument,
    Medium,
    Sound,
    modality_of,
)

ANSWERS = Path(__file__).parent / "data" / "answers" / "answers.jsonl"
# What is said of a second medium only after the same thing, or after one of its kind.
_OF_THE_SAME = r"how it |what it |look of it|\bit's\b|(?:see|hear|listen to) (?:it|\{it\})"
_OF_ITS_KIND = r"second (?:picture|clip|sound)"
_STANDS_ALONE = re.compile(r":|\b(?:let me know|just say|hope)\b", re.IGNORECASE)  # not to be followed by ": an owl"
NO = ("No.", "No, not quite.", "Nope.", "No, sorry.", "Not really, no.", "No, it isn't.")
YES = ("Yes.", "Yes, it is.", "Yes, exactly.", "That's right.", "Yes, you're right.", "Correct.")
TWO = ("{}. And then {}.", "First {}, then {}.", "{} and {}.", "{}, then {}.", "One is {}, the other is {}.")
ASKING_BACK = (
    *("What would you like instead?", "What should I change?", "How would you like it?", "Tell me what it should be."),
    *("Sorry about that. What would be right?", "What should it look like, then?", "Which one would you like?"),
    *("All right, what should be different?", "I can change that. To what?", "Sorry! What did you have in mind?"),
)
CHATTING = (
    *("You're welcome!", "Glad to hear it.", "Thank you!", "All right.", "That's nice of you.", "Happy to help."),
    *("Good to hear.", "I'm glad.", "Anytime!", "With pleasure.", "Okay!", "Nice. What's next?", "Thanks, what else?"),
)
WONDERING = (
    *(
        "I wouldn't know, but thanks for asking!",
        "Good question! I'm only a small program.",
        "Hard to say for a program like me!",
    ),
    *("I'm fine, thank you!", "I like it here, thanks.", "I think so!", "Who knows? I'm just a little program."),
)
GREETING = (
    "Hello!",
    "Hi there!",
    "Hello, nice to meet you.",
    "Hi! What would you like?",
    "Good to see you.",
    "Hello to you!",
)
OFF = (
    *("Sorry, {} are switched off.", "I can't make {} here, they're switched off.", "I'm sorry, {} are switched off."),
    *("I can't, {} are turned off right now.", "Sorry, no {} here: they are off.", "Not now, sorry. {} are switched off."),
    *("I'm not able to make {} in this chat.", "{} are off here, I'm sorry.", "I'm afraid I can't: {} are switched off."),
)


_VERBS = {"image": "draw|drawings?|pictures?", "audio": "play|sounds?", "video": "film|clips?|show"}
# Kind → how an answer promises it.
PROMISES = {kind: rf"\b(?:I|to|me|also|could|can)\b[^.?!]*\b(?:{verbs})\b" for kind, verbs in _VERBS.items()}


class Answer(NamedTuple):
    """A way to answer."""

    text: str
    told: frozenset[str]
    when: dict[str, str]

    @property
    def slots(self) -> frozenset[str]:
        return frozenset(re.findall(r"\{(\w+)\}", self.text))


def load_answers(file: Path = ANSWERS) -> dict[str, list[Answer]]:
    """What each is for → all ways to say it."""
    found: dict[str, list[Answer]] = defaultdict(list)
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["for"]].append(Answer(row["text"], frozenset(row["told"]), row.get("when") or {}))
    return dict(found)


def parts_of(medium: Medium) -> dict[str, str]:
    """What a caption tells of a medium: part → value; an effect has no notes."""
    fields = medium._asdict()
    named = {MAIN[modality_of(medium)]: medium[0], **{part: fields[part] for part in PARTS[modality_of(medium)][1:]}}
    return {part: value for part, value in named.items() if value}


def remarkable(medium: Medium) -> frozenset[str]:
    """The parts that someone must have named: the main one, and those that are not at their default."""
    defaults = PICTURE_DEFAULTS | SOUND_DEFAULTS
    return frozenset(part for part, value in parts_of(medium).items() if defaults.get(part) != value)


class Replies:
    """Says things about media of one world.

    Args:
        concepts, instruments: with their grammar.
        answers: what each is for → all ways to say it.
    """

    def __init__(
        self,
        concepts: dict[str, Concept],
        instruments: dict[str, Instrument],
        answers: dict[str, list[Answer]] | None = None,
    ):
        self.concepts, self.instruments = concepts, instruments
        self.answers = answers or load_answers()
        self._fitting: dict[tuple, list[Answer]] = {}

    # -- what is made -------------------------------------------------------------------------------------------

    def announce(
        self,
        medium: Medium,
        rng: random.Random,
        how: str = "",
        changed: Collection[str] = (),
        after: Medium | None = None,
    ) -> str:
        """What is said before a medium is made; the thing and all that is remarkable of it are named.

        So a person sees what was understood, and the model has it in words before it makes it.

        Args:
            how: empty for a new one, `change`, `correction` or `again`.
            changed: the parts that a change or correction changed; at least one of them is told, or none at all.
            after: what was made before it in the same answer.
        """
        modality, all_told = modality_of(medium), remarkable(medium)
        what, told, some, unfit = f"announce_{modality}", all_told, frozenset(), ""
        if how in ("change", "correction") and changed:
            what, some = f"announce_{how}", frozenset(changed)
            told = some | {MAIN[modality]}
        elif how == "again":
            what = "announce_again"
        elif after is not None:
            what = f"announce_next_{modality}"
            unfit = "" if self._same(after, medium) else _OF_THE_SAME
            if modality_of(after) != modality:
                unfit = "|".join(filter(None, (unfit, _OF_ITS_KIND)))
        text, told = self._choose(what, medium, rng, told, some, unfit=unfit, whole=all_told)
        if told >= all_told:
            return text
        named = f"{self.phrase(medium, all_told - told)}."
        if text.endswith(".") and not _STANDS_ALONE.search(text) and rng.random() < 0.5:
            return f"{text[:-1]}: {named}"
        return _sentences(f"{text} {named}")

    def phrase(self, medium: Medium, parts: Collection[str]) -> str:
        """A thing with some of its parts: "a small flat owl on blue", "a chord on a low violin", "an owl spinning"."""
        thing = self._thing(medium).indefinite
        fields = {part: value for part, value in parts_of(medium).items() if part in parts}
        adjectives = [fields[part] for part in ("size", "style", "register") if part in fields]
        if adjectives:
            article = re.match(r"an? ", thing)
            thing = " ".join([*(["a"] if article else []), *adjectives, thing.removeprefix(article[0] if article else "")])
        if "figure" in fields:
            return f"a {fields['figure']} on {thing}"
        if "motion" in fields:
            return f"{thing} {MOTIONS_SAID[fields['motion']][0][0]}"
        return f"{thing} on {fields['background']}" if "background" in fields else thing

    def _same(self, first: Medium, second: Medium) -> bool:
        """Whether both are of one thing."""
        names = {first[0], second[0]}
        return len(names) == 1 or any(names == {concept.name, concept.sound} for concept in self.concepts.values())

    def off(self, kinds: Collection[str], rng: random.Random) -> str:
        """That kinds of media are not allowed."""
        return _sentences(rng.choice(OFF).format(listed([PLURALS[kind] for kind in kinds])))

    # -- what is shown ------------------------------------------------------------------------------------------

    def name(self, medium: Medium, rng: random.Random) -> str:
        """What it is."""
        return self._say(f"name_{modality_of(medium)}", medium, rng, {MAIN[modality_of(medium)]})

    def name_all(self, media: Collection[Medium], rng: random.Random) -> str:
        """What they are, in order."""
        if len(media) == 1:
            return self.name(*media, rng)
        names = [self._thing(medium).indefinite for medium in media]
        return _sentences(rng.choice(TWO).format(*names) if len(names) == 2 else f"{listed(names)}.")

    def describe(self, medium: Medium, rng: random.Random, tells: Collection[str] = ()) -> str:
        """All that there is to say, save perhaps a picture's size; `tells`: parts that are told in any case."""
        parts = frozenset(parts_of(medium))
        all_of = parts - {"size"} | (frozenset(tells) & parts)
        return self._say(f"describe_{modality_of(medium)}", medium, rng, parts, all_of=all_of)

    def tell(self, part: str, medium: Medium, rng: random.Random) -> str:
        """One detail."""
        return self._say(f"tell_{part}", medium, rng, {part, MAIN[modality_of(medium)]}, all_of=frozenset({part}))

    def confirm(self, medium: Medium, rng: random.Random, part: str = "") -> str:
        """Yes, it is so; `part`: what was asked, by default the main thing."""
        if part not in ("", MAIN[modality_of(medium)]):
            told = self.tell(part, medium, rng)
            return rng.choice(YES) if rng.random() < 0.5 or told.startswith("Not") else f"Yes. {told}"
        return self._say("yes_right", medium, rng, {MAIN[modality_of(medium)]})

    def deny(self, medium: Medium, rng: random.Random, part: str = "", asked: str = "") -> str:
        """No, it is something else; `part`: what was asked, `asked`: the thing that was asked about."""
        if part not in ("", MAIN[modality_of(medium)]):
            return f"{rng.choice(NO)} {self.tell(part, medium, rng)}"
        return self._say("no_wrong", medium, rng, {MAIN[modality_of(medium)]}, other=asked)

    def unknown(self, modality: str, rng: random.Random) -> str:
        """That it cannot be told."""
        return rng.choice(self.answers[f"unknown_{modality}"]).text

    # -- how ----------------------------------------------------------------------------------------------------

    def _say(self, what: str, medium: Medium, rng: random.Random, told: Collection[str], **limits: Any) -> str:
        """One of the ways in words, see `_choose`."""
        return self._choose(what, medium, rng, told, **limits)[0]

    def _choose(
        self,
        what: str,
        medium: Medium,
        rng: random.Random,
        told: Collection[str],
        some: frozenset[str] = frozenset(),
        all_of: frozenset[str] = frozenset(),
        other: str = "",
        unfit: str = "",
        whole: frozenset[str] | None = None,
    ) -> tuple[str, frozenset[str]]:
        """One of the ways in words, and which parts they tell.

        It is without the words `unfit`, and tells nothing but `told`, all of `all_of`, one of `some` or none.

        Args:
            whole: the main thing is told with all of these, or not at all.
        """
        parts, words, main = parts_of(medium), self.words(medium, other), MAIN[modality_of(medium)]
        facts = self._facts(medium, parts)
        key = (what, tuple(sorted(told)), some, all_of, bool(other), unfit, whole, *facts.items())
        if key not in self._fitting:
            self._fitting[key] = [
                answer
                for answer in self.answers[what]
                if answer.told <= frozenset(told)
                and (not some or not answer.told or answer.told & some)
                and answer.told >= all_of
                and (whole is None or main not in answer.told or answer.told >= whole)
                and answer.slots <= words.keys()
                and not (unfit and re.search(unfit, answer.text))
                and all(value in facts.get(fact, ()) for fact, value in answer.when.items())
            ]
        if not self._fitting[key]:
            raise LookupError(f"no answer {what!r} fits {medium} with {sorted(told)} told")
        answer = rng.choice(self._fitting[key])
        return _sentences(fill(answer.text, words)), answer.told

    def _thing(self, medium: Medium) -> Concept | Instrument:
        return self.instruments[medium.name] if isinstance(medium, Sound) else self.concepts[medium.concept]

    def _facts(self, medium: Medium, parts: dict[str, str]) -> dict[str, tuple[str, ...]]:
        thing = self._thing(medium)
        counted = re.match(r"an? ", thing.indefinite)
        number = ("plural",) if _is_plural(thing) else ("singular", "one") if counted else ("singular",)
        values = {part: (value,) for part, value in parts.items() if part != MAIN[modality_of(medium)]}
        facts = {"medium": (modality_of(medium),), "number": number, **values}
        if isinstance(medium, Sound):
            facts["sound"] = ("instrument" if medium.register else "effect",)
        return facts

    def words(self, medium: Medium, other: str = "") -> dict[str, str]:
        """What the slots stand for."""
        thing, parts = self._thing(medium), parts_of(medium)
        several = _is_plural(thing)
        words = {
            "is": "are" if several else "is",
            "this_is": "these are" if several else "this is",
            "heres": "here are" if several else "here's",
            "here_is": "here are" if several else "here is",
            "it": "them" if several else "it",
        }
        if isinstance(medium, Sound):
            words |= {"a_sound": thing.indefinite, "sound": medium.name}
            if medium.register:
                words |= {"register": medium.register, "a_figure": f"a {medium.figure}"}
            if other in self.instruments:
                words["a_sound_2"] = self.instruments[other].indefinite
            return words
        words |= {"a_concept": thing.indefinite, "concept": medium.concept, "the_concept": f"the {medium.concept}"}
        if isinstance(medium, Clip):
            _, move, moves = MOTIONS_SAID[medium.motion][0]
            words |= {"motion": medium.motion, "moves": move if several else moves}
        else:
            words |= {part: parts[part] for part in ("style", "background", "size")}
        if other in self.concepts:
            words["a_concept_2"] = self.concepts[other].indefinite
        return words


def _is_plural(thing: Concept | Instrument) -> bool:
    if isinstance(thing, Concept):
        return thing.is_plural
    return thing.indefinite == thing.name and thing.name.endswith("s")


def _sentences(text: str) -> str:
    """With capitals where sentences begin."""
    return re.sub(r"(?:^|(?<=[.!?] ))[a-z]", lambda m: m[0].upper(), text)
