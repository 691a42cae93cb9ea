"""What a judge said, and what follows from all of it: rates with intervals, and how much the order counted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nextgpt.train.instruct_data.answers import parse_json
from nextgpt.train.instruct_data.jobs import Dropped
from nextgpt.train.instruct_data.rules import words

LOWEST, HIGHEST = 1, 10
SIDES = ("first", "second")
RESAMPLES = 2000
CHANCE_WORDS = 3  # in a row; fewer may stand in any text
NO_VERDICT = "the judge's answer holds no verdict"
OBEYED = "the judge's answer obeys the text it judges"
CONTRADICTS = "the judge's verdict contradicts its own scores"
# Words of an answer that are meant for the judge, not for the person who asked.
_ADDRESSES_JUDGE = re.compile(
    r"\bignore (?:all|any|the|your|previous|prior|other)\b.{0,40}\b(?:instruction|prompt|answer)|"
    r"\b(?:rate|score|judge|prefer|choose|pick)\b.{0,40}\b(?:this|my|first|second) answer\b|"
    r"\"(?:better|first|second)\"\s*:|\byou are (?:the|a) judge\b",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Verdict:
    """One comparison.

    Args:
        better: `first`, `second` or `tie`.
        first, second: scores, 1 to 10.
        reason: why, in the judge's words.
    """

    better: str
    first: float
    second: float
    reason: str


def read_verdict(answer: str, code: str, judged: Sequence[str]) -> Verdict:
    """The verdict in a judge's answer.

    Args:
        code: that stood in the request and not in what is judged; an answer without it does not come from the request.
        judged: the texts of the two answers.

    Raises:
        Dropped: there is none, it contradicts its scores, or the answer was written by what is judged.
    """
    try:
        found = parse_json(answer)
    except Dropped:
        found = {}
    if found.get("code") != code:
        raise Dropped(OBEYED if any(_stands_in(answer, text) for text in judged) else NO_VERDICT)
    better, reason = str(found.get("better", "")).strip().lower(), found.get("reason")
    scores = [found.get(side) for side in SIDES]
    if better not in (*SIDES, "tie") or not all(
        type(score) in (int, float) and LOWEST <= score <= HIGHEST for score in scores
    ):
        raise Dropped(NO_VERDICT)
    if (scores[0] > scores[1] and better == SIDES[1]) or (scores[1] > scores[0] and better == SIDES[0]):
        raise Dropped(CONTRADICTS)
    return Verdict(better, *scores, reason if isinstance(reason, str) else "")


def _stands_in(answer: str, text: str) -> bool:
    """Whether a text holds a judge's answer word for word, and not by chance as any text may hold a word or two."""
    said = words(answer)
    enough = len(said) >= CHANCE_WORDS or said and addresses_judge(text)
    return bool(enough) and f" {' '.join(said)} " in f" {' '.join(words(text))} "


def addresses_judge(text: str) -> bool:
    """Whether an answer speaks to the judge."""
    return _ADDRESSES_JUDGE.search(text) is not None


@dataclass
class Question:
    """What came of one question.

    Args:
        verdicts: with A's answer first, and with B's first; None where there is none.
        problems: why, in the same order.
        addressing: of A and B, who speaks to the judge.
    """

    verdicts: tuple[Verdict | None, Verdict | None]
    problems: tuple[str, str] = ("", "")
    addressing: tuple[str, ...] = ()

    @property
    def points(self) -> tuple[float, float]:
        """Of A in each order: 1, 0, or 0.5 for a tie."""
        one, other = self.verdicts
        return _points(one.better, SIDES[0]), _points(other.better, SIDES[1])

    @property
    def scores(self) -> tuple[float, float]:
        """Of A and B, the mean of both orders."""
        one, other = self.verdicts
        return (one.first + other.second) / 2, (one.second + other.first) / 2

    @property
    def side_kept(self) -> str:
        """The side that was preferred in both orders, whoever stood there; empty where none was."""
        better = {verdict.better for verdict in self.verdicts}
        return better.pop() if better in ({SIDES[0]}, {SIDES[1]}) else ""


def _points(better: str, side: str) -> float:
    return 0.5 if better == "tie" else float(better == side)


@dataclass
class Tally:
    """Rates over all questions that were judged in both orders.

    Args:
        questions: that were judged.
        rates: name → share of the questions, with a 95% bootstrap interval over questions. `win rate`: A's points, a tie
            counts a half, each order by itself; `win`, `tie`, `loss`: A is better in both orders, neither is, B is.
            `bias to the first` and `to the second`: the same side preferred in both orders.
        scores: of A, B and their difference, with intervals.
        problems: reason → the numbers of the questions, from 1; those with one are in no rate.
        addressing: the same for answers that speak to the judge; they are in the rates.
    """

    questions: int
    rates: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    scores: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    problems: dict[str, list[int]] = field(default_factory=dict)
    addressing: dict[str, list[int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return vars(self)


def tally(questions: Sequence[Question | None], seed: int = 0) -> Tally:
    """Counts those that were judged, and draws them again and again for the intervals."""
    judged = [(number, question) for number, question in enumerate(questions, start=1) if question is not None]
    found = Tally(len(judged))
    for number, question in judged:
        for reason in dict.fromkeys(filter(None, question.problems)):
            found.problems.setdefault(reason, []).append(number)
        for name in question.addressing:
            found.addressing.setdefault(f"the answer of {name} speaks to the judge", []).append(number)
    whole = [question for _, question in judged if None not in question.verdicts]
    if not whole:
        return found
    wins = np.array([(sum(q.points) == 2, q.points == (0, 0), sum(q.points) / 2) for q in whole], dtype=float)
    bias = np.array([[q.side_kept == side for side in SIDES] for q in whole], dtype=float)
    columns = {"win rate": wins[:, 2], "win": wins[:, 0], "tie": 1 - wins[:, 0] - wins[:, 1], "loss": wins[:, 1]}
    columns |= {"bias to the first": bias[:, 0], "bias to the second": bias[:, 1]}
    scores = np.array([q.scores for q in whole])
    drawn = np.random.default_rng(seed).integers(len(whole), size=(RESAMPLES, len(whole)))
    found.rates = {name: _interval(values, drawn) for name, values in columns.items()}
    named = {"A": scores[:, 0], "B": scores[:, 1], "A - B": scores[:, 0] - scores[:, 1]}
    found.scores = {name: _interval(values, drawn) for name, values in named.items()}
    return found


def _interval(values: np.ndarray, drawn: np.ndarray) -> tuple[float, float, float]:
    """The mean, and the 2.5th and 97.5th percentile of the means of the draws (Efron 1979)."""
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)
