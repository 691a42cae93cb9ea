"""The evaluation's own arithmetic, and that it asks of held-out things in held-out words only."""

import json
import random
from pathlib import Path

import pytest

from nextgpt.train.nano import dialogues
from nextgpt.train.nano.evaluate import Score, bag_of_words, kinds, table, told
from nextgpt.train.nano.phrasings import load_phrasings

NANO = Path(dialogues.__file__).parent


@pytest.fixture(scope="module")
def composer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    concepts = json.loads((NANO / "concepts.json").read_text(encoding="utf-8"))
    (folder / "world.json").write_text(json.dumps({"concepts": concepts}), encoding="utf-8")
    return dialogues.load_composer(folder, "heldout", phrasings=dialogues.DATA)


def test_the_interval_is_wilsons():
    low, high = Score("x", right=95, count=100).interval  # computed by hand from Wilson's formula
    assert (round(low, 3), round(high, 3)) == (0.888, 0.978)
    assert Score("x", right=0, count=10).interval[0] == 0.0
    assert Score("x", right=96, count=100, bar=0.95).met and not Score("x", right=94, count=100, bar=0.95).met
    assert Score("time", quantity=2.0, bar=1.5, unit="s").met is False
    assert "| x: y | 50.0% (1 of 2) | 9.5 – 90.5% | 40% | met |" in table([Score("x", "y", 1, 2, 0.4)])


def test_every_question_is_about_held_out_pictures(composer):
    kinds_of_turn = ("draw", "describe", "outside_picture", "outside_draw", "outside_question")
    for number in range(300):
        rng = random.Random(number)
        turn = composer.turn(kinds_of_turn[number % 5], rng)
        assert turn.picture is None or turn.picture.split == "heldout"
        if turn.intent == "draw":
            changed = composer.turn("change", rng, turn.picture)
            assert changed.picture.split == "heldout"
    turns = [turn for number in range(100) for turn in composer.conversation(random.Random(number))]
    assert all(turn.picture.split == "heldout" for turn in turns if turn.picture)


def test_a_swap_names_the_old_thing_and_the_new_one(composer):
    old = dialogues.Picture("cat", "3d", "white", "large")
    swaps = [composer.turn("change", random.Random(number), old) for number in range(300)]
    words = [told(turn).lower() for turn in swaps if turn.intent == "change_concept"]
    assert any(word.startswith(("swap", "turn")) and "cat" in word for word in words)


def test_the_bag_of_words_is_no_fool():
    guess = bag_of_words(load_phrasings())
    assert guess("please draw a picture of it") == "image"
    assert guess("what is this?") == "text"


def test_an_answer_is_known_by_its_parts():
    text, image = {"type": "text", "text": "Here."}, {"type": "image"}
    assert kinds([text]) == "text"
    assert kinds([text, image, text, image]) == "text + image + image"
