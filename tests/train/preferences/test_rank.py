"""Pairs by a rule, by a judge over a local server and by a person's choices: the same file, whoever made it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from nextgpt.__main__ import main
from nextgpt.train.preferences.collect.person import NEITHER, RIGHT, Choices
from nextgpt.train.preferences.collect.rank import rank_by_person
from nextgpt.train.preferences.pairs import PreferencePair, read_pairs

ANSWERS = [["It's a dog.", "It's a cat.", "I can't tell.", "Maybe a cat."], ["A cat.", "A cat."], ["A dog.", "A horse."]]


def message(role: str, text: str) -> dict:
    return {"role": role, "content": [{"type": "text", "text": text}]}


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    lines = [
        {
            "prompt": [message("user", f"What is in picture {number}?")],
            "answers": [message("assistant", text) for text in texts],
            "accepted": ["cat"],
        }
        for number, texts in enumerate(ANSWERS)
    ]
    (tmp_path / "out" / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "out"


def texts(pairs: list[PreferencePair]) -> list[tuple[str, str]]:
    return [(pair.chosen[0]["content"][0]["text"], pair.rejected[0]["content"][0]["text"]) for pair in pairs]


def rank(answers: Path, *given: str) -> int:
    return main(["preferences", "rank", str(answers), "-o", str(answers.parent / "pairs.jsonl"), *given])


def test_a_rule_makes_pairs_of_the_answers_that_lie_furthest_apart(answers, tmp_path, capsys) -> None:
    assert rank(answers, "--by", "rule:hedging", "--pairs", "3") == 0
    pairs = read_pairs([tmp_path / "pairs.jsonl"])
    expected = [("It's a cat.", "It's a dog."), ("Maybe a cat.", "It's a dog."), ("It's a cat.", "I can't tell.")]
    assert texts(pairs) == expected and {pair.ranked_by for pair in pairs} == {"rule:hedging"}
    assert [pair.scores for pair in pairs] == [(1.0, -1.0), (0.5, -1.0), (1.0, 0.0)]
    told = capsys.readouterr().out
    assert "3 pairs from 3 prompts" in told and "no pair 1 times: neither answer is better" in told
    assert "no pair 1 times: all answers are equal or empty" in told
    assert rank(answers, "--by", "rule:hedging") == 0, "the same ranking may be made again"


def test_what_another_made_is_not_written_over(answers, tmp_path, capsys) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"messages": []}\n')
    assert rank(answers, "--by", "rule:hedging") == 2
    assert "pairs.jsonl: is there already" in capsys.readouterr().err
    assert (tmp_path / "pairs.jsonl").read_text() == '{"messages": []}\n'
    assert main(["preferences", "rank", str(answers), "--by", "rule:hedging", "-o", str(tmp_path)]) == 2
    assert f"{tmp_path}: a folder; name a file with -o" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--by", "rule"], "--by rule: expected rule:NAME"),
        (["--by", "rule:hedge"], "there is no reward 'hedge'"),
        (["--by", "judge"], "--by judge needs --judge"),
        (["--by", "reward:gone"], "gone"),
    ],
)
def test_a_ranking_by_nobody_is_refused_in_one_line(answers, capsys, given, expected) -> None:
    assert rank(answers, *given) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("nextgpt: error:") and expected in error


def test_a_judge_is_asked_in_both_orders_and_one_that_prefers_a_place_makes_no_pair(teacher, answers, tmp_path) -> None:
    asked = []

    def judge(text: str, number: int) -> str:
        asked.append(text)
        (code,) = re.findall(r"^(\w{8}) conversation$", text, re.MULTILINE)
        first, second = re.search(rf"{code} first answer\n(.*)\n{code} second answer\n(.*)\n{code} end", text).groups()
        scores = [10 if "cat" in answer else 2 for answer in (first, second)]
        better = "first" if scores[0] >= scores[1] else "second"  # where both are equal, it prefers the first
        verdict = {"code": code, "reason": "So.", "first": scores[0], "second": scores[1], "better": better}
        return json.dumps(verdict)

    teacher.answers = {"*": judge}
    given = ["--by", "judge", "--judge", teacher.url, "--judge-model", "tiny", "--pairs", "9"]
    assert rank(answers, *given) == 0
    pairs = read_pairs([tmp_path / "pairs.jsonl"])
    good, bad = {"It's a cat.", "Maybe a cat."}, {"It's a dog.", "I can't tell."}
    assert sorted(texts(pairs)) == sorted((a, b) for a in good for b in bad)
    assert {pair.ranked_by for pair in pairs} == {"judge:tiny"} and {pair.scores for pair in pairs} == {(10.0, 2.0)}
    assert len(asked) == 2 * (6 + 1) and rank(answers, *given) == 0 and len(asked) == 14, "nothing is asked twice"


def test_a_person_can_stop_take_back_and_go_on(answers, tmp_path) -> None:
    seen = []

    def begin(choices: Choices) -> None:
        seen.append(choices.pairs)
        choices.choose(RIGHT)
        choices.choose(RIGHT)
        choices.undo()
        choices.choose(NEITHER, number=0)  # a key that was pressed twice
        assert choices.made == [RIGHT]

    def end(choices: Choices) -> None:
        seen.append(choices.pairs)
        assert choices.made == [RIGHT]
        choices.choose(NEITHER)

    report = rank_by_person(answers, tmp_path / "pairs.jsonl", begin)
    assert report.pairs == 1 and "1 of 2 choices are left" in report.stopped
    report = rank_by_person(answers, tmp_path / "pairs.jsonl", end)
    assert not report.stopped and report.without == Counter(
        {"all answers are equal or empty": 1, "neither answer is better": 1}
    )
    assert seen[0] == seen[1], "what stands on which side does not change"
    (pair,) = read_pairs([tmp_path / "pairs.jsonl"])
    assert pair.chosen[0]["content"] == seen[0][0][2] and pair.ranked_by == "person"
