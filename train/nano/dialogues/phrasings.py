"""Reads the hand-written phrasings, fills their slots and roughens them.

A phrasing is one line of ``data/phrasings/*.jsonl``: ``{"intent": ..., "text": ..., "reply": ...}``. The text may hold
slots: ``{a_concept}`` becomes "a cat", ``{the_concept}`` "the cat", ``{concept}`` "cat", ``{concepts}`` "cats";
``{a_sound}`` "a trumpet", ``{figure}`` "rising scale", ``{a_figure}`` "a rising scale", ``{motion}`` "spinning",
``{move}`` "spin", ``{moves}`` "spins". A line with ``"media": "image"`` holds only where nothing but pictures is known.

``python -m nextgpt.train.nano.dialogues.phrasings`` names the lines that are not as agreed or that the test phrasings hold
too; with ``--drop`` it takes them out.
"""

import argparse
import json
import logging
import random
import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from nextgpt.signals import MODALITIES
from nextgpt.train.nano.world.things import article

logger = logging.getLogger(__name__)

PHRASINGS = Path(__file__).parent / "data" / "phrasings"
TEST_PHRASINGS = PHRASINGS.parent

CONCEPT_SLOTS = frozenset({"a_concept", "concept", "the_concept", "concepts"})
ATTRIBUTE_SLOTS = frozenset({"background", "style", "size", "size_word"})
SECOND_SLOTS = frozenset(f"{slot}_2" for slot in CONCEPT_SLOTS | ATTRIBUTE_SLOTS)
PICTURE_SLOTS = CONCEPT_SLOTS | ATTRIBUTE_SLOTS
SOUND_SLOTS = frozenset({"a_sound", "sound", "the_sound"})
NOTE_SLOTS = frozenset({"register", "figure", "a_figure"})
SECOND_SOUND_SLOTS = frozenset(f"{slot}_2" for slot in SOUND_SLOTS)
MOTION_SLOTS = frozenset({"motion", "move", "moves"})
_DRAWN_SLOTS = frozenset({"background", "style", "size"})
_NONE: frozenset[str] = frozenset()

# What a user may want, and the slots that its phrasings may use.
INTENT_SLOTS: dict[str, frozenset[str]] = {
    "draw": PICTURE_SLOTS,
    "multi": PICTURE_SLOTS | SECOND_SLOTS,
    "describe": _NONE,
    "name": _NONE,
    "ask_background": CONCEPT_SLOTS,
    "ask_style": CONCEPT_SLOTS,
    "ask_size": CONCEPT_SLOTS,
    "yes_no_concept": CONCEPT_SLOTS,
    "change_background": CONCEPT_SLOTS | {"background"},
    "change_style": CONCEPT_SLOTS | {"style"},
    "change_size": CONCEPT_SLOTS | {"size", "size_word"},
    "change_concept": CONCEPT_SLOTS | SECOND_SLOTS,  # with a second thing, the first is the one that goes
    "again": CONCEPT_SLOTS,
    "define": CONCEPT_SLOTS,
    "smalltalk": _NONE,
    "capability": _NONE,
    "about_world": CONCEPT_SLOTS,
    "outside_draw": ATTRIBUTE_SLOTS | {"thing"},
    "outside_question": frozenset({"thing"}),
    # sounds
    "play": SOUND_SLOTS | NOTE_SLOTS,
    "play_two": SOUND_SLOTS | NOTE_SLOTS | SECOND_SOUND_SLOTS,
    "hear_describe": _NONE,
    "hear_name": _NONE,
    "ask_register": frozenset({"sound", "the_sound"}),
    "ask_figure": frozenset({"sound", "the_sound"}),
    "yes_no_sound": frozenset({"a_sound", "sound"}),
    "change_register": frozenset({"register", "sound", "the_sound"}),
    "change_figure": frozenset({"figure", "a_figure", "sound", "the_sound"}),
    "change_sound": SOUND_SLOTS | SECOND_SOUND_SLOTS,  # with a second sound, the first is the one that goes
    "outside_play": frozenset({"thing"}),
    # clips
    "film": CONCEPT_SLOTS | MOTION_SLOTS,
    "watch_describe": _NONE,
    "watch_name": _NONE,
    "ask_motion": CONCEPT_SLOTS,
    "change_motion": CONCEPT_SLOTS | MOTION_SLOTS,
    "change_filmed": CONCEPT_SLOTS | SECOND_SLOTS,
    "outside_film": MOTION_SLOTS | {"thing"},
    # from one kind of media to another
    "sound_of_shown": CONCEPT_SLOTS,
    "picture_of_heard": _DRAWN_SLOTS,
    "film_of_shown": CONCEPT_SLOTS | MOTION_SLOTS,
    "film_of_heard": MOTION_SLOTS,
    "picture_of_filmed": _DRAWN_SLOTS,
    "draw_and_play": CONCEPT_SLOTS | _DRAWN_SLOTS,
    "play_and_draw": CONCEPT_SLOTS | _DRAWN_SLOTS,
    "draw_and_film": CONCEPT_SLOTS | MOTION_SLOTS,
    "film_and_play": CONCEPT_SLOTS | MOTION_SLOTS,
}
REPLIED_INTENTS = frozenset({"smalltalk", "capability", "about_world"})

# Of each of these groups of slots, a phrasing must use one.
_A_CONCEPT, _A_SOUND = CONCEPT_SLOTS | SECOND_SLOTS, SOUND_SLOTS | SECOND_SOUND_SLOTS
REQUIRED_SLOTS: dict[str, tuple[frozenset[str], ...]] = {
    **dict.fromkeys(("draw", "change_concept", "define", "yes_no_concept"), (_A_CONCEPT,)),
    **dict.fromkeys(("play", "yes_no_sound", "change_sound"), (_A_SOUND,)),
    "play_two": (SOUND_SLOTS, SECOND_SOUND_SLOTS),
    "change_register": (frozenset({"register"}),),
    "change_figure": (frozenset({"figure", "a_figure"}),),
    **dict.fromkeys(("film", "draw_and_film", "film_and_play"), (_A_CONCEPT, MOTION_SLOTS)),
    **dict.fromkeys(("change_motion", "film_of_shown", "film_of_heard"), (MOTION_SLOTS,)),
    **dict.fromkeys(("change_filmed", "draw_and_play", "play_and_draw"), (_A_CONCEPT,)),
    "outside_play": (frozenset({"thing"}),),
}

# Files of phrasings that are read only where one of these kinds of media is known, by how their names start.
FILE_MEDIA = {"sounds": {"audio"}, "clips": {"video"}, "crossings": {"audio", "video"}}

_SLOT = re.compile(r"\{(\w+)\}")


class Phrasing(NamedTuple):
    """One way to say something: its intent, its text with slots, and the answer where the teacher gave one."""

    intent: str
    text: str
    reply: str | None = None
    media: frozenset[str] = frozenset(MODALITIES)  # where it holds: with no other kinds of media known

    @property
    def slots(self) -> frozenset[str]:
        return frozenset(_SLOT.findall(self.text))


def parse_phrasing(line: str, replied: bool = True) -> Phrasing:
    """One line of JSON → Phrasing. Raises ValueError where intent, slots or (when `replied`) reply are not as agreed."""
    row = json.loads(line)
    media = frozenset(row.get("media", " ".join(MODALITIES)).split())
    phrasing = Phrasing(row["intent"], row["text"].strip(), row.get("reply"), media)
    if phrasing.intent not in INTENT_SLOTS:
        raise ValueError(f"unknown intent {phrasing.intent!r}; known: {', '.join(INTENT_SLOTS)}")
    unknown = phrasing.slots - INTENT_SLOTS[phrasing.intent]
    if unknown or "{" in _SLOT.sub("", phrasing.text):
        raise ValueError(f"{phrasing.text!r} ({phrasing.intent}) has slots not allowed here: {sorted(unknown)}")
    if replied and phrasing.intent in REPLIED_INTENTS and not phrasing.reply:
        raise ValueError(f"{phrasing.text!r} ({phrasing.intent}) needs a reply")
    for needed in REQUIRED_SLOTS.get(phrasing.intent, ()):
        if not phrasing.slots & needed:
            raise ValueError(f"{phrasing.text!r} ({phrasing.intent}) needs one of the slots {', '.join(sorted(needed))}")
    return phrasing


def load_phrasings(folder: Path = PHRASINGS, media: Collection[str] = MODALITIES) -> dict[str, list[Phrasing]]:
    """All phrasings of a folder by intent, without repeats, in a fixed order; only those that train need replies.

    Args:
        media: the modalities that are talked about.

    Raises:
        FileNotFoundError: there are none.
        ValueError: names every line that is not as agreed.
    """
    by_intent: dict[str, list[Phrasing]] = defaultdict(list)
    seen, bad = set(), []
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"no phrasings (*.jsonl) in {folder}")
    for file in files:
        needed = FILE_MEDIA.get(file.stem.split("_")[0])
        if needed and needed.isdisjoint(media):
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                phrasing = parse_phrasing(line, replied=folder == PHRASINGS)
            except (ValueError, KeyError) as error:
                bad.append(f"{file}, line {number}: {error}")
                continue
            if not set(media) <= phrasing.media:
                continue
            if (key := (phrasing.intent, normalise(phrasing.text))) not in seen:
                seen.add(key)
                by_intent[phrasing.intent].append(phrasing)
    if bad:
        raise ValueError("\n".join(bad))
    return dict(by_intent)


def normalise(text: str) -> str:
    """What two phrasings share when they differ only in case, punctuation and spacing."""
    return " ".join(re.sub(r"[^\w{}]+", " ", text.lower()).split())


def fill(text: str, values: dict[str, str]) -> str:
    """Puts values into the slots, and turns a teacher's "a {background} wall" into "an orange wall" where needed."""
    text = re.sub(r"\b([Aa]) \{(\w+)\}", lambda m: f"{article(values[m[2]], m[1])} {{{m[2]}}}", text)
    return _SLOT.sub(lambda m: values[m[1]], text)


# Words around a request. Most people just ask.
_GREETINGS = ("hi", "hello", "hey", "hi there", "good morning", "ok", "okay", "so", "well", "now", "great", "um", "uh", "hm")
_THANKS = ("please", "thanks", "thank you", "pls", "if you can", "if you don't mind", "would you", "thx", "for me", "plz")
_FILLERS = ("um", "uh", "like", "you know", "er", "well", "hm", "just")
_MARKS = ("!", "!!", "...", " :)", "?", " ", " 🙂")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_KEYBOARD = {a: b for row in _ROWS for a, b in zip(row, row[1:] + row[-2], strict=True)}

# How often a request is typed so.
RATES = {"greeting": 0.10, "thanks": 0.10, "filler": 0.03, "slip": 0.12, "capitals": 0.10, "lower case": 0.25}
RATES |= {"first letter": 0.15, "no last mark": 0.20, "another mark": 0.08, "no marks": 0.08, "no apostrophe": 0.08}


def roughen(text: str, rng: random.Random, slips: float = RATES["slip"]) -> str:
    """What people do to a sentence: politeness, fillers, case, missing or doubled marks, a letter slipped (`RATES`)."""

    def happens(what: str) -> bool:
        return rng.random() < RATES[what]

    if happens("greeting"):
        text = f"{rng.choice(_GREETINGS)}{rng.choice((', ', ' ', '! '))}{text}"
    if happens("thanks") and text[-1:] not in ".!?":
        text = f"{text}{rng.choice((', ', ' '))}{rng.choice(_THANKS)}"
    if happens("filler") and " " in text:
        at = rng.choice([match.start() for match in re.finditer(" ", text)])
        text = f"{text[:at]}{rng.choice((' ', ', '))}{rng.choice(_FILLERS)}{text[at:]}"
    if rng.random() < slips:
        text = misspell(text, rng)
    if happens("no marks"):
        text = re.sub(r"[^\w\s'+-]", "", text)
    elif happens("no last mark"):
        text = text.rstrip(".!?")
    elif happens("another mark") and text[-1:].isalnum():
        text = text + rng.choice((".", *_MARKS))
    if happens("no apostrophe"):
        text = text.replace("'", "").replace("’", "")
    draw = rng.random()
    for what, change in (("capitals", str.upper), ("lower case", str.lower), ("first letter", _begin_large)):
        if (draw := draw - RATES[what]) < 0:
            return change(text)
    return text


def _begin_large(text: str) -> str:
    return text[:1].upper() + text[1:]


def misspell(text: str, rng: random.Random) -> str:
    """One slip in one word of three letters or more: a letter dropped, doubled, swapped or hit beside.

    Half of the slips are in words of five letters or more, where there are any.
    """
    words = list(re.finditer(r"[A-Za-z]{3,}", text))
    words = [word for word in words if len(word[0]) >= 5 or rng.random() < 0.5] or words
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start(), word.end() - 1)
    letter, following = text[at], text[at + 1]
    slip = rng.choice(("", letter * 2, following + letter, _KEYBOARD.get(letter.lower(), letter)))
    return text[:at] + slip + text[at + (2 if slip == following + letter else 1) :]


# -- checking -----------------------------------------------------------------------------------------------------


def fault(line: str, tested: Collection[str]) -> str:
    """What is wrong with a line of training phrasings; empty if nothing is.

    Args:
        tested: the test phrasings, normalised.
    """
    try:
        phrasing = parse_phrasing(line)
    except (ValueError, KeyError) as error:
        return str(error)
    return f"{phrasing.text!r} ({phrasing.intent}) is a test phrasing" if normalise(phrasing.text) in tested else ""


def main() -> None:
    """Names bad lines, and takes them out where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--drop", action="store_true", help="take the lines out")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tested = {normalise(phrasing.text) for some in load_phrasings(TEST_PHRASINGS).values() for phrasing in some}
    for file in sorted(PHRASINGS.glob("*.jsonl")):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        faults = [fault(line, tested) for line in lines]
        for number, reason in enumerate(faults, 1):
            if reason:
                logger.info("%s, line %d: %s", file.name, number, reason)
        if args.drop and any(faults):
            kept = [line for line, reason in zip(lines, faults, strict=True) if not reason]
            file.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


if __name__ == "__main__":
    main()
