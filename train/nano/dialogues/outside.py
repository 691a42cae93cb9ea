"""What the world lacks: things and sounds that people ask for in vain, each with what is nearest."""

from __future__ import annotations

import json
from pathlib import Path

from nextgpt.train.nano.world.pictures import CONCEPTS
from nextgpt.train.nano.world.split import split_of_names
from nextgpt.train.nano.world.things import Concept, Instrument, bare

OUTSIDE = Path(__file__).parent / "data" / "outside.json"
Pairs = list[tuple[str, str]]


def things_outside(concepts: dict[str, Concept], instruments: dict[str, Instrument], split: str) -> tuple[Pairs, Pairs]:
    """Pairs of a thing that cannot be drawn and the nearest concept, and of one that cannot be played and the nearest sound.

    Args:
        concepts, instruments: of the world; what it has is left out.
        split: the things of which.
    """
    outside = json.loads(OUTSIDE.read_text(encoding="utf-8"))
    things = [*outside["things"].items(), *unbuilt_things(concepts)]
    heard = {instrument.with_article(name) for instrument in instruments.values() for name in instrument.articles}
    seen = {word for concept in concepts.values() for word in (concept.name, *concept.synonyms)}

    def belongs(thing: str) -> bool:
        return split_of_names("outside", bare(thing)) == split

    unseen = [(thing, near) for thing, near in things if near in concepts and thing not in heard and belongs(thing)]
    sounds = outside["sounds"].items()
    return unseen, [(t, near) for t, near in sounds if near in instruments and bare(t) not in seen and belongs(t)]


def without_names_of_other_sounds(concept: Concept, instruments: dict[str, Instrument]) -> Concept:
    """So that "an electric guitar", drawn as a guitar, is not played as one."""
    taken = {word for instrument in instruments.values() if instrument.name != concept.sound for word in instrument.articles}
    return concept._replace(synonyms=tuple(word for word in concept.synonyms if word not in taken))


def unbuilt_things(concepts: dict[str, Concept]) -> list[tuple[str, str]]:
    """Concepts that are listed but not in this world, each with one of the same category that is."""
    listed = json.loads(CONCEPTS.read_text(encoding="utf-8"))
    near = {row["name"]: [c.name for c in concepts.values() if c.category == row["category"]] for row in listed}
    return [
        (f"{row['article']} {row['name']}".strip(), near[row["name"]][number % len(near[row["name"]])])
        for number, row in enumerate(listed)
        if row["name"] not in concepts and near[row["name"]]
    ]
