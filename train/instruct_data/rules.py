"""Which tasks and answers are kept: ROUGE-L, Self-Instruct's and Evol-Instruct's rules.

A rule takes texts and raises `Dropped` with its reason. Sources: Self-Instruct (Wang et al. 2023, section 2.2), Alpaca
(Taori et al. 2023), WizardLM's Evol-Instruct (Xu et al. 2023, section 3.2).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

from nextgpt.train.data.cleaning import FUNCTION_WORDS, language_of
from nextgpt.train.instruct_data.jobs import Dropped

ROUGE_L_BOUND = 0.7  # a task as near as this to another is the same
FEWEST_WORDS, MOST_WORDS = 3, 150  # of an instruction; Alpaca wants four, but "Draw a lighthouse." is a task here
SHORT_ANSWER = 80  # words; an apology that is longer explains something
COPIED_WORDS = 6  # in a row, of the prompt that asked for an evolution
VERDICTS = {"yes", "no"}  # function words that answer a question

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"  # written without spaces: a character counts as a word
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_SHOWN = re.compile(
    r"\b(?:attached|uploaded|(?:this|these|that|the (?:following|above|given|provided)) "
    r"(?:image|picture|photo(?:graph)?|graph|chart|diagram|screenshot|audio|sound|recording|song|video|clip|film)s?)\b",
    re.IGNORECASE,
)
_PROMPT_TALK = re.compile(
    r"\b(?:given|original|rewritten|created|evolved) (?:prompt|instruction)\b|#\w+ (?:prompt|instruction)#",
    re.IGNORECASE,
)
_APOLOGY = re.compile(r"\b(?:sorry|i (?:cannot|can't|can not) (?:help|assist)|as an ai\b)", re.IGNORECASE)


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length. Bit-parallel: a whole row of the table is one integer (Hyyrö 2004)."""
    places: dict[str, int] = defaultdict(int)
    for place, word in enumerate(first):
        places[word] |= 1 << place
    every = (1 << len(first)) - 1
    row = every
    for word in second:
        common = row & places.get(word, 0)
        row = (row + common | row - common) & every
    return len(first) - row.bit_count()


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """ROUGE-L of two lists of words, its F1: 0 to 1 (Lin 2004, section 3.1)."""
    if not first or not second:
        return 0.0
    return 2 * longest_common_subsequence(first, second) / (len(first) + len(second))


class KnownTasks:
    """The tasks so far, to find near duplicates of new ones."""

    def __init__(self, texts: Iterable[str] = ()):
        self._known: list[list[str]] = []
        self._holding: dict[str, list[int]] = defaultdict(list)  # word → tasks
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Remembers a task."""
        tokens = words(text)
        for word in set(tokens):
            self._holding[word].append(len(self._known))
        self._known.append(tokens)

    def __len__(self) -> int:
        return len(self._known)

    def check(self, text: str, first: int | None = None) -> None:
        """Drops a task whose ROUGE-L with a known one reaches the bound.

        Args:
            first: compare with so many only, the first that were added.
        """
        tokens, end = words(text), len(self) if first is None else first
        possible = (self._known[number] for number in self._possible(tokens) if number < end)
        if any(rouge_l(tokens, known) >= ROUGE_L_BOUND for known in possible):
            raise Dropped(f"a near duplicate of another task (ROUGE-L of {ROUGE_L_BOUND:g} or more)")

    def _possible(self, tokens: list[str]) -> set[int]:
        """The tasks that share enough words. The others need not be compared, and they are nearly all.

        With a length of n, the bound asks for a common subsequence of n · bound / (2 - bound) words at least. So of any
        words that make up more than the rest, one is common; the rarest are in the fewest tasks.
        """
        spare = len(tokens) - math.ceil(len(tokens) * ROUGE_L_BOUND / (2 - ROUGE_L_BOUND))
        counts, found, seen = Counter(tokens), set(), 0
        for word in sorted(counts, key=lambda word: len(self._holding.get(word, ()))):
            found.update(self._holding.get(word, ()))
            seen += counts[word]
            if seen > spare:
                break
        return found


def check_instruction(text: str, shows_media: bool) -> None:
    """Self-Instruct's heuristics: not too short, not too long, begins with a word, speaks of no medium that is not there."""
    count = len(words(text))
    if count < FEWEST_WORDS:
        raise Dropped(f"an instruction of fewer than {FEWEST_WORDS} words")
    if count > MOST_WORDS:
        raise Dropped(f"an instruction of more than {MOST_WORDS} words")
    if not text[0].isalnum() and text[0] not in "¿¡\"'“‘«「[(":
        raise Dropped("an instruction that does not begin with a word")
    if not shows_media and _SHOWN.search(text):
        raise Dropped("an instruction about a medium that is not shown")


def check_instance(given: str, answer: str) -> None:
    """Self-Instruct's rule for an input and its output: there is an output, and it is not the input."""
    if not answer.strip():
        raise Dropped("an empty answer")
    if words(answer) == words(given) and given:
        raise Dropped("an answer that repeats its input")


def check_labels(labels: Sequence[str], answers: Sequence[str]) -> None:
    """A classification has at least two labels, and its answers are of them; not all the same where there are several."""
    if len(set(labels)) < 2:
        raise Dropped("a classification with fewer than two labels")
    if not answers or not set(answers) <= set(labels):
        raise Dropped("a classification whose answer is none of its labels")
    if len(answers) > 1 and len(set(answers)) < 2:
        raise Dropped("a classification whose examples all have one label")


def check_gain(before: str, after: str, verdict: str) -> None:
    """Evol-Instruct's first rule: the evolved instruction asks for something else or for more.

    Args:
        verdict: what the teacher answered when asked whether it does; begins with yes or no.
    """
    said = words(verdict)[:1]
    if words(before) == words(after) or said == ["no"]:
        raise Dropped("an evolution that asks for nothing more")
    if said != ["yes"]:
        raise Dropped("no verdict on an evolution")


def check_willing(answer: str) -> None:
    """Evol-Instruct's second rule: the answer is no short apology, which shows that the instruction asks for too much."""
    if _APOLOGY.search(answer) and len(words(answer)) < SHORT_ANSWER:
        raise Dropped(f"an apology of fewer than {SHORT_ANSWER} words in place of an answer")


def check_says_something(answer: str) -> None:
    """Evol-Instruct's third rule: the answer is more than punctuation and stop words."""
    stop_words = FUNCTION_WORDS.get(language_of(answer), FUNCTION_WORDS["en"]) - VERDICTS
    if not set(words(answer)) - stop_words:
        raise Dropped("an answer of punctuation and stop words alone")


def check_own_words(before: str, after: str, prompt: str) -> None:
    """Evol-Instruct's fourth rule: the evolved instruction does not speak of the prompt that asked for it, or in its words.

    Args:
        prompt: its text, with the places still open.
    """
    fresh = _PROMPT_TALK.search(after)
    if fresh and fresh[0].lower() not in before.lower():
        raise Dropped("an evolution that copies the words of its prompt")
    asked, got = words(prompt), words(after)
    run = SequenceMatcher(None, asked, got, autojunk=False).find_longest_match()
    copied = " ".join(got[run.b : run.b + run.size])
    if run.size >= COPIED_WORDS and copied not in " ".join(words(before)):
        raise Dropped("an evolution that copies the words of its prompt")
