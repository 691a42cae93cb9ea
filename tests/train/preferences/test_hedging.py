"""The five steps of hedging: what counts as right, as hedged and as not knowing, by its rule on the words."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from nextgpt.errors import UserInputError
from nextgpt.train.preferences.hedging import REWARDS, judge_answer
from nextgpt.train.preferences.rewards import load_reward

PROMPT = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]


def answer(text: str) -> list[dict]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def test_the_five_steps_stand_in_the_order_of_the_table() -> None:
    texts = ["It's a cat.", "I think it's a cat.", "I can't tell.", "Maybe it's a dog.", "It's a dog."]
    rewards = load_reward("hedging")([PROMPT] * 5, [answer(text) for text in texts], accepted=[["cat"]] * 5)
    assert rewards == [1.0, 0.5, 0.0, -0.5, -1.0] == list(REWARDS.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A CAT!", "right"),
        ("Two kitties? No: cats.", "right"),
        ("It looks like a cat.", "right"),
        ("There's no mistaking a cat.", "right"),
        ("Probably a cat.", "hedged right"),
        ("I\u2019m not sure, but it could be a cat.", "hedged right"),
        ("I can't tell for certain. It may be a kitten.", "hedged right"),
        ("I don't know.", "don't know"),
        ("Sorry, I do not really recognise this.", "don't know"),
        ("I wish I could tell you, but I don't know.", "don't know"),
        ("I don't know, maybe a dog.", "hedged wrong"),
        ("I can't say what it is, but it looks like a dog.", "hedged wrong"),
        ("I don't know. It's a dog.", "hedged wrong"),
        ("It might be a dog.", "hedged wrong"),
        ("It's not a cat.", "wrong"),
        ("This isn't really a cat.", "wrong"),
        ("A catalogue.", "wrong"),
        ("Is it a cat?", "wrong"),
        ("A cat or a horse.", "wrong"),
        ("", "wrong"),
    ],
)
def test_an_answer_stands_on_one_step(text: str, expected: str) -> None:
    assert judge_answer(text, ["cat", "kitten", "kitty"], others=["horse"]) == expected


def test_nanos_own_ways_to_say_that_it_does_not_know_are_that() -> None:
    lines = resources.files("nextgpt.train.nano.dialogues").joinpath("data/answers/answers.jsonl").read_text()
    unknown = [each["text"] for each in map(json.loads, lines.splitlines()) if each["for"].startswith("unknown_")]
    assert len(unknown) > 100
    assert [text for text in unknown if judge_answer(text, ["zebra"]) != "don't know"] == []


def test_without_accepted_words_it_does_not_apply_and_without_the_column_it_says_so() -> None:
    reward = load_reward("hedging")
    assert reward([PROMPT] * 2, [answer("A cat.")] * 2, accepted=["cat", None]) == [1.0, None]
    with pytest.raises(UserInputError, match="hedging needs the column accepted"):
        reward([PROMPT], [answer("A cat.")])
    with pytest.raises(UserInputError, match="column accepted holds .*; expected a list of words"):
        reward([PROMPT], [answer("A cat.")], accepted=[[3]])
