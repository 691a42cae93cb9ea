"""Answers in natural English are read as a person reads them: on answers that were labelled by hand."""

import json
from pathlib import Path

import pytest

from nextgpt.hub.parts import preset_folder
from nextgpt.train.nano.evaluation.answers import AnswerParser
from nextgpt.train.nano.world.things import load_concepts, load_instruments

LABELLED = Path(__file__).parents[2] / "fixtures" / "nano" / "labelled_answers.jsonl"


@pytest.fixture(scope="module")
def parser():
    world = preset_folder("nano") / "world"
    concepts = load_concepts(world)
    return AnswerParser.of_world(concepts, load_instruments(world, concepts))


def read(parser: AnswerParser, check: dict, answer: str) -> bool:
    """Whether an answer passes a check, as the evaluation applies it."""
    right = "names" not in check or parser.says(answer, check["names"])
    right &= all(parser.tells(answer, part, value) for part, value in check.get("tells", {}).items())
    right &= "yes" not in check or parser.affirms(answer) is check["yes"]
    right &= "refuses" not in check or parser.refuses(answer)
    return right and ("abilities" not in check or parser.abilities(answer))


def test_at_most_one_of_a_hundred_labelled_answers_is_misread(parser):
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 300 and sum(not row["right"] for row in rows) >= len(rows) / 3
    misread = [row for row in rows if read(parser, row["check"], row["answer"]) is not row["right"]]
    assert len(misread) <= len(rows) / 100, "\n".join(f"{row['check']}: {row['answer']}" for row in misread)


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("This is a small cat, flat style, red background.", ["cat"]),
        ("Here is a large lion, 3d style, white background. And here is the sound of a helicopter.", ["lion", "helicopter"]),
        ("These are cherries, spinning.", ["cherries"]),
        ("This is a low electric piano, repeated note.", ["electric piano"]),
    ],
)
def test_what_the_shipped_model_says_is_read_too(parser, answer, names):
    assert parser.says(answer, names)
    assert not parser.says(answer, ["banana"])


CAT = {"concept": "cat", "style": "flat", "background": "red"}


@pytest.mark.parametrize(
    ("answer", "expected", "wrong"),
    [
        ("This is a small cat, flat style, red background.", CAT, {}),
        ("On red, in flat style: a little cat.", CAT, {}),
        ("That's a flat cat on red, or on blue.", CAT, {"background": "says blue, red"}),
        ("That's a cartoon dog on red.", CAT, {"concept": "says dog", "style": "says cartoon"}),
        ("That might be a flat cat on red.", CAT, dict.fromkeys(CAT)),
        ("I can't tell what this is.", CAT, dict.fromkeys(CAT, "says nothing")),
        ("That's the seashore.", {"instrument": "seashore", "register": "", "figure": ""}, {}),
        ("The seashore, quite low.", {"instrument": "seashore", "register": "", "figure": ""}, {"register": "says low"}),
        ("The cherries slide left, that's all.", {"concept": "cherries", "motion": "sliding left"}, {}),
    ],
)
def test_a_description_is_read_part_by_part(parser, answer, expected, wrong):
    found = parser.description(answer, expected, main=next(iter(expected)))
    assert {part for part, value in found.items() if value != expected[part]} == set(wrong)
    assert all(value is None or found[part] == value for part, value in wrong.items())


def test_a_contradiction_claims_nothing_that_counts(parser):
    assert not parser.says("It's a cat. No wait, it's a dog.", ["cat"])
    assert not parser.tells("On blue. The background is red.", "background", "blue")
    assert parser.affirms("Yes and no.") is None
    assert not parser.refuses("I can't tell what this is. It's definitely a cat.")


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I do not know geography, sorry. I know some places as pictures, such as a house.", True),
        ("I can't draw a submarine: it is not in my little world. Shall I draw a boat instead?", True),
        ("Sorry, I don't know the sound of a bee. If you like, I can draw a bee instead.", True),
        ("I'm not sure what I'm hearing. It isn't a sound I know.", True),
        ("Sums are beyond me. I know pictures of everyday things.", True),
        ("This is a cat.", False),
        ("A violin is a stringed instrument.", False),
        ("Sorry, here is a large cat, 3d style, white background.", False),
    ],
)
def test_who_admits_that_it_cannot_and_names_nothing_refuses(parser, answer, refuses):
    assert parser.refuses(answer) is refuses
