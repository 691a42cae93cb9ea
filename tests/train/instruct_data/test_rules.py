"""Each rule on an example that is kept and one that is dropped."""

from __future__ import annotations

import random

import pytest

from nextgpt.train.instruct_data.dialogues import check_caption_is_hidden, check_switching
from nextgpt.train.instruct_data.jobs import Dropped
from nextgpt.train.instruct_data.material import CaptionedMedia, Medium
from nextgpt.train.instruct_data.rules import (
    KnownTasks,
    check_gain,
    check_instance,
    check_instruction,
    check_labels,
    check_own_words,
    check_says_something,
    check_willing,
    longest_common_subsequence,
    rouge_l,
)

BASE = "Name three uses of salt."
PROMPT = "Change it so that it asks further into its subject, after causes and consequences.\n${instruction}"


def exchange(user: str | list, assistant: str | list) -> list[dict]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def made(kind: str) -> list[dict]:
    return [{"type": kind, "caption": "a thing"}]


RULES = {
    "too short": (check_instruction, ("Name three uses.", False), ("Go on.", False), "fewer than 3 words"),
    "too long": (check_instruction, ("word " * 150, False), ("word " * 151, False), "more than 150 words"),
    "begins with a word": (check_instruction, ("¿Qué es la sal?", False), ("- and then what?", False), "begin with a word"),
    "speaks of what is shown": (
        check_instruction,
        ("What is in this picture?", True),
        ("What is in this picture?", False),
        "not shown",
    ),
    "has an answer": (check_instance, ("ham, egg", "Fry both."), ("ham, egg", " "), "an empty answer"),
    "answers more than the input": (check_instance, ("ham, egg", "Egg, ham."), ("ham, egg", "Ham, egg!"), "repeats"),
    "two labels": (check_labels, (["a", "b"], ["a"]), (["a"], ["a"]), "fewer than two labels"),
    "a known label": (check_labels, (["a", "b"], ["a", "b"]), (["a", "b"], ["a", "c"]), "none of its labels"),
    "different labels": (check_labels, (["a", "b"], ["b", "a"]), (["a", "b"], ["a", "a"]), "all have one label"),
    "1: asks for more": (
        check_gain,
        (BASE, "Name three uses of salt in industry.", "Yes, of industry."),
        (BASE, "Which three uses has salt?", "No: the same in other words."),
        "asks for nothing more",
    ),
    "1: is another": (check_gain, (BASE, f"{BASE} Why?", "yes"), (BASE, "Name three uses of SALT", "yes"), "nothing more"),
    "2: no apology": (
        check_willing,
        ("I am sorry for the loss that you describe. " + "Here is what can be done about it, step by step. " * 8,),
        ("Sorry, I cannot do this.",),
        "an apology",
    ),
    "3: says something": (check_says_something, ("It is salt.",), ("It is, as you and they were …",), "stop words alone"),
    "3: a verdict is something": (check_says_something, ("No.",), ("So!",), "stop words alone"),
    "4: does not speak of the prompt": (
        check_own_words,
        (BASE, "Name three uses of salt and prompt the reader to try one.", PROMPT),
        (BASE, "The given prompt asks for three uses of salt; say why.", PROMPT),
        "copies the words of its prompt",
    ),
    "4: does not speak in its words": (
        check_own_words,
        (BASE, "Name three uses of salt and their causes and consequences.", PROMPT),
        (BASE, "Name uses of salt so that it asks further into its subject.", PROMPT),
        "copies the words of its prompt",
    ),
    "does not give the caption away": (
        check_caption_is_hidden,
        ("Two boats, and a sign with the caption Harbour.", "boats and a sign with a caption"),
        ("According to the caption there are two boats.", "two boats"),
        "speaks of the caption",
    ),
    "three exchanges and more": (
        check_switching,
        ([*exchange("a", made("image")), *exchange("b", made("audio")), *exchange("c", "d")],),
        ([*exchange("a", made("image")), *exchange("b", made("audio"))],),
        "fewer than 3 or more than 7",
    ),
    "seven exchanges at most": (
        check_switching,
        ([*exchange("a", made("image")), *exchange("b", made("audio")), *exchange("c", "d") * 5],),
        ([*exchange("a", made("image")), *exchange("b", made("audio")), *exchange("c", "d") * 6],),
        "fewer than 3 or more than 7",
    ),
    "media in two turns": (
        check_switching,
        ([*exchange("a", made("image")), *exchange(made("image"), "b"), *exchange("c", "d")],),
        ([*exchange("a", [*made("image"), *made("audio")]), *exchange("b", "c") * 2],),
        "fewer than 2 turns",
    ),
    "switches": (
        check_switching,
        ([*exchange("a", made("image")), *exchange("b", made("video")), *exchange("c", "d")],),
        ([*exchange("a", made("image")), *exchange("b", made("image")), *exchange("c", "d")],),
        "switches between no kinds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_each_rule_keeps_one_example_and_drops_the_other(name) -> None:
    rule, kept, dropped, reason = RULES[name]
    rule(*kept)
    with pytest.raises(Dropped, match=reason):
        rule(*dropped)


def test_a_task_is_a_near_duplicate_from_a_rouge_l_of_seven_tenths_on() -> None:
    known = KnownTasks()
    known.add("one two three four five six seven eight nine ten")
    known.check("one two three four five six a b c d")  # 2 · 6 / 20
    with pytest.raises(Dropped, match="near duplicate"):
        known.check("One, two, three, four, five, six, seven: a b c")  # 2 · 7 / 20
    known.check("nothing of it")
    known.check("ten nine eight seven six five four three two one")  # the same words in another order


def test_rouge_l_is_that_of_the_plain_table() -> None:
    def plain(first: list, second: list) -> int:
        table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
        for i, one in enumerate(first):
            for j, other in enumerate(second):
                table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
        return table[-1][-1]

    chance = random.Random(0)
    for _ in range(200):
        first, second = (chance.choices("abcde", k=chance.randrange(12)) for _ in range(2))
        assert longest_common_subsequence(first, second) == plain(first, second)
    # Lin 2004, section 3.1: "police killed the gunman" and "police kill the gunman": 3 of 4 words
    assert rouge_l("police killed the gunman".split(), "police kill the gunman".split()) == 0.75


def test_a_medium_is_found_by_a_caption_like_its_own_and_of_its_kind_only() -> None:
    barn, boats = Medium("image", "a red barn in the snow", "0.png"), Medium("image", "two boats on a lake", "1.png")
    bell = Medium("audio", "a church bell rings twice", "2.wav")
    media = CaptionedMedia([barn, boats, bell])
    assert media.find("image", "A red barn in deep snow.") == barn
    assert media.find("audio", "a bell of a church rings") == bell
    assert media.find("image", "a church bell rings twice") is None
    assert media.find("image", "a green car in the city") is None
    assert media.find("image", "Two boats on a lake", exactly=True) == boats
    assert media.find("image", "two old boats on a lake", exactly=True) is None
    assert CaptionedMedia().find("image", "a red barn") is None


def test_no_near_duplicate_escapes_by_the_words_that_are_looked_up_first() -> None:
    chance = random.Random(1)
    texts = [" ".join(chance.choices("abcdefgh", k=chance.randrange(3, 12))) for _ in range(300)]
    known = KnownTasks()
    kept: list[str] = []
    for text in texts:
        near = any(rouge_l(text.split(), other.split()) >= 0.7 for other in kept)
        try:
            known.check(text)
        except Dropped:
            assert near
        else:
            assert not near
            kept.append(text)
            known.add(text)
    assert 20 < len(kept) < 280
