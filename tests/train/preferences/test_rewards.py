"""Rewards by name: one's own from a module, and one clear line for a function that does not do what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextgpt.errors import UserInputError
from nextgpt.train.preferences.rewards import load_reward

PROMPTS = [[{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}]] * 2
COMPLETIONS = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in ("Hi.", "Hello to you.")]
OWN = """
import numpy as np
def length(prompts, completions, **columns):
    return np.array([len(completion[0]["content"][0]["text"]) for completion in completions])
def nothing(prompts, completions, **columns):
    return [None, 1]
def raises(prompts, completions, **columns):
    return 1 / 0
def nan(prompts, completions, **columns):
    return [1.0, float("nan")]
def words(prompts, completions, **columns):
    return ["1", 2]
def short(prompts, completions, **columns):
    return [1.0]
def one(prompts, completions, **columns):
    return 3.0
number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards_for_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


def test_ones_own_function_is_found_in_the_current_folder(own) -> None:
    reward = load_reward("own_rewards_for_a_test:length")
    assert reward(PROMPTS, COMPLETIONS) == [3.0, 13.0] and reward.__name__ == "own_rewards_for_a_test:length"
    assert load_reward("own_rewards_for_a_test:nothing")(PROMPTS, COMPLETIONS) == [None, 1.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("raises", "raised ZeroDivisionError: division by zero"),
        ("nan", "gave nan for completion 2 of 2"),
        ("words", "gave '1' for completion 1 of 2"),
        ("short", "gave 1 values for 2 completions"),
        ("one", "gave float for 2 completions"),
    ],
)
def test_a_function_that_does_not_give_a_number_for_each_is_named(own, name: str, expected: str) -> None:
    with pytest.raises(UserInputError, match=f"^the reward own_rewards_for_a_test:{name} {expected}") as error:
        load_reward(f"own_rewards_for_a_test:{name}")(PROMPTS, COMPLETIONS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hedge", "there is no reward 'hedge'; expected hedging, media_fit"),
        ("own_rewards_for_a_test:", "there is no reward"),
        ("own_rewards_for_a_test:gone", "has no function gone"),
        ("own_rewards_for_a_test:number", "has no function number"),
        ("no.such.module:f", "cannot be imported .ModuleNotFoundError"),
        ("media_fit", "name the model"),
    ],
)
def test_a_reward_that_is_not_there_is_refused(own, name: str, expected: str) -> None:
    with pytest.raises(UserInputError, match=expected):
        load_reward(name)
