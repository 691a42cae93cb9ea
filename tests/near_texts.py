"""Which texts of two sets are within two edits of each other, quickly: two edits leave one of three pieces untouched."""

from collections import defaultdict
from collections.abc import Iterable

EDITS = 2


def near(texts: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of a text and another at most two insertions, deletions or substitutions apart."""
    index: dict[tuple[str, int, int], list[str]] = defaultdict(list)  # a piece, where it begins, the length of its text
    texts = set(texts)
    for text in texts:
        for start, piece in _pieces(text):
            index[piece, start, len(text)].append(text)
    found = set()
    for other in others:
        for length in range(max(0, len(other) - EDITS), len(other) + EDITS + 1):
            for start, size in _cuts(length):
                for at in range(max(0, start - EDITS), start + EDITS + 1):
                    for text in index.get((other[at : at + size], start, length), ()):
                        if (text, other) not in found and distance(text, other) <= EDITS:
                            found.add((text, other))
    return sorted(found)


def distance(first: str, second: str) -> int:
    """Levenshtein's."""
    row = list(range(len(second) + 1))
    for n, a in enumerate(first, 1):
        last, row = row, [n]
        for m, b in enumerate(second, 1):
            row.append(min(last[m] + 1, row[m - 1] + 1, last[m - 1] + (a != b)))
    return row[-1]


def _cuts(length: int) -> list[tuple[int, int]]:
    """Where the three pieces of a text of some length begin, and how long they are."""
    ends = [length * n // (EDITS + 1) for n in range(EDITS + 2)]
    return [(start, end - start) for start, end in zip(ends, ends[1:], strict=False)]


def _pieces(text: str) -> list[tuple[int, str]]:
    return [(start, text[start : start + size]) for start, size in _cuts(len(text))]
