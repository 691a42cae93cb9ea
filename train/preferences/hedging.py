"""The reward for saying how sure one is: unhedged right > hedged right > "I don't know" > hedged wrong > wrong.

By a rule on the words, which is what the tests hold:

- *Right*: one of the `accepted` words stands in the answer as a whole word (or its plural), not in a question and not
  denied ("not a cat"); and none of the `others` does. Words, not meanings: give the synonyms.
- *Don't know*: it says so ("I can't tell", "I don't recognise it", "no idea", …), is not right, names none of the `others`,
  and no other clause of it claims or guesses something ("… but maybe a dog").
- *Hedged*: it holds a word of doubt ("I think", "maybe", "probably", "might be", "seems", "not sure", …) or says that it
  does not know. "It looks like a cat" and "it sounds like a flute" tell what is seen and heard, and are no hedges.

With equal steps, a model that is right with probability p does best by asserting where p > 1/2, and by saying that it does
not know below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nextgpt.errors import UserInputError
from nextgpt.train.data.markers import words_of

REWARDS = {"right": 1.0, "hedged right": 0.5, "don't know": 0.0, "hedged wrong": -0.5, "wrong": -1.0}
_ADVERB = r"(?:really |quite |honestly |just |simply |too |very |entirely |exactly |fully |be )*"
_DOES_NOT_KNOW = re.compile(
    rf"\b(?:can(?:'t|not| not)|could(?:n't| not)|unable to|not able to) {_ADVERB}"
    r"(?:say|tell|name|make|place|recogni[sz]e|identify|help|put|understand|answer|know|follow)\b|"
    rf"\b(?:do|did)(?:n't| not) {_ADVERB}(?:know|recogni[sz]e|understand)\b|"
    rf"\bnot {_ADVERB}(?:sure|certain) (?:what|which|who|whether|if|how)\b|"
    r"\bno (?:idea|clue)\b|\bwho knows\b|\b(?:is |are |'s )?beyond me\b|\bnew to me\b|\bmeans nothing to me\b|"
    r"\boutside (?:of )?what I\b|\bnever (?:seen|heard|met)\b|\bhave(?:n't| not) (?:learn\w+|seen|heard|met)\b|"
    r"\b(?:is|are)(?:n't| not) good enough\b|\brather not guess\b|\bguess is as good\b|"
    r"(?:\bnot|n't|\bnone) (?:\w+ ){0,2}?(?:of (?:them|the|my|those)|I (?:know|have learn\w+)|from (?:it|there))\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\bI (?:would |'d )?(?:think|believe|guess|suppose|suspect|assume|imagine)\b|\bI'd (?:say|guess|think)\b|"
    r"\b(?:maybe|perhaps|possibly|probably|presumably|likely|apparently|unsure|seems?|seemed|appears?)\b|"
    r"\b(?:might|may|could|must) (?:also |well )*be\b|\bmight\b|"
    rf"(?:\bnot|n't) {_ADVERB}(?:sure|certain|confident)\b|\bas far as I (?:can|know)\b|\bif I'm not mistaken\b|"
    r"\b(?:my|a|wild|best) guess\b|\bguessing\b|\bhard to (?:say|tell)\b|\bor something\b",
    re.IGNORECASE,
)
_CLAIM = re.compile(r"\b(?:it|that|this)(?:'s| is| was) (?:an?|the|some)\b|\b(?:looks?|sounds?) like\b", re.IGNORECASE)
_DENIED = re.compile(
    r"(?:\bnot|\bno(?! mistaking)|n't|\bnever|\bneither|\bnor|\bwithout)\s+(?:[\w']+\s+){0,2}$", re.IGNORECASE
)
_QUESTION = re.compile(r"[^.!?]*\?")
_CLAUSE = re.compile(r"[.;:!?,\n]+|\b(?:but|so|though|although|still)\b", re.IGNORECASE)


def hedging(
    prompts: Sequence[list[dict]],
    completions: Sequence[list[dict]],
    accepted: Sequence[list[str] | str | None] | None = None,
    others: Sequence[list[str] | str | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """The reward of each completion, -1 to 1; None where nothing is `accepted`.

    Args:
        accepted: for each completion, the words that a right answer may name.
        others: words of which each makes an answer wrong, so that naming everything is not right; may be left out.

    Raises:
        UserInputError: the data have no such column.
    """
    if accepted is None:
        raise UserInputError('hedging needs the column accepted, e.g. "accepted": ["cat", "kitten"] beside the messages')
    others = others or [None] * len(completions)
    found = []
    for completion, right, wrong in zip(completions, accepted, others, strict=True):
        kind = judge_answer(words_of(completion[-1]), _words(right, "accepted"), _words(wrong, "others")) if right else None
        found.append(None if kind is None else REWARDS[kind])
    return found


def judge_answer(text: str, accepted: Sequence[str], others: Sequence[str] = ()) -> str:
    """Which of the five steps of `REWARDS` an answer stands on."""
    text = text.replace("\u2019", "'")
    names_other = _names(text, others)
    if _names(text, accepted) and not names_other:
        return "hedged right" if is_hedged(text) else "right"
    if not names_other and says_it_does_not_know(text):
        return "don't know"
    return "hedged wrong" if is_hedged(text) else "wrong"


def is_hedged(text: str) -> bool:
    """Whether a word of doubt stands in an answer, or that it does not know."""
    text = text.replace("\u2019", "'")
    return bool(_HEDGE.search(text) or _DOES_NOT_KNOW.search(text))


def says_it_does_not_know(text: str) -> bool:
    """Whether an answer says so, and no clause of it claims or guesses something all the same."""
    text = text.replace("\u2019", "'")
    if not _DOES_NOT_KNOW.search(text):
        return False
    others = [clause for clause in _CLAUSE.split(text) if not _DOES_NOT_KNOW.search(clause)]
    return not any(_CLAIM.search(clause) or (_HEDGE.search(clause) and "guessing" not in clause) for clause in others)


def _names(text: str, words: Sequence[str]) -> bool:
    """Whether a text that asks and denies nothing of the kind names one of the words."""
    stated = _QUESTION.sub(" ", text)
    for word in words:
        for match in re.finditer(rf"\b{re.escape(word)}(?:e?s)?\b", stated, re.IGNORECASE):
            if not _DENIED.search(stated[: match.start()]):
                return True
    return False


def _words(value: Any, column: str) -> list[str]:
    words = [value] if isinstance(value, str) else value or []
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) and word.strip() for word in words):
        raise UserInputError(f"the column {column} holds {value!r}; expected a list of words")
    return list(words)
