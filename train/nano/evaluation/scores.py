"""What an evaluation finds: figures with their bars, samples to look at, and the table of them."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from nextgpt.events import Media


@dataclass
class Score:
    """One figure of the table: how many of how many were right, or a quantity with its unit."""

    row: str
    part: str = ""
    right: int = 0
    count: int = 0
    bar: float | None = None
    effective: float | None = None  # questions about media of their own that would tell as much, where some share one
    quantity: float | None = None  # instead of right and count; then `bar` is the most it may be
    unit: str = ""
    more_is_better: bool = False  # then it is the least
    note: str = ""  # instead of a figure: why there is none

    @classmethod
    def from_json(cls, text: str) -> list[Score]:
        """What `as_json` wrote."""
        known = {each.name for each in fields(cls)}
        return [cls(**{name: value for name, value in row.items() if name in known}) for row in json.loads(text)]

    @property
    def share(self) -> float:
        return self.right / self.count if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% confidence interval of the share, of the `effective` count where there is one."""
        if not self.count:
            return 0.0, 1.0
        z, n, p = 1.96, self.effective or self.count, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None where there is none."""
        if self.bar is None or self.note:
            return None
        if self.quantity is None:
            return self.share >= self.bar
        return self.quantity >= self.bar if self.more_is_better else self.quantity <= self.bar


@dataclass
class Sample:
    """One question of the report: what was expected, what came, and the media of both."""

    row: str
    asked: str
    expected: dict[str, str]
    found: dict[str, str]
    answer: str = ""
    about: str = ""  # the medium that is asked for or shown; samples about the same one are not independent
    media: list[Media] = field(default_factory=list)  # true beside made


def effective_count(right: Sequence[bool], about: Sequence[str]) -> float | None:
    """How many independent questions tell as much as these, of which those about the same thing go together.

    The count that gives a share the variance that its groups have (Kish 1965, "Survey Sampling", the design effect).

    Returns:
        None where each is about something of its own.
    """
    groups: dict[str, list[bool]] = defaultdict(list)
    for number, (is_right, name) in enumerate(zip(right, about, strict=True)):
        groups[name or f" {number}"].append(is_right)
    if len(groups) == len(right):
        return None
    share, count = sum(right) / len(right), len(groups)
    spread = sum((sum(each) - share * len(each)) ** 2 for each in groups.values()) * count / max(count - 1, 1)
    if not spread:  # all right or all wrong, or alike in each group: each group tells as much as one question
        return float(count)
    return min(share * (1 - share) * len(right) ** 2 / spread, float(len(right)))


def table(scores: list[Score]) -> str:
    """The scores as a Markdown table."""
    lines = ["| what | measured | 95% interval | bar | |", "|---|---|---|---|---|"]
    for score in scores:
        interval = bar = ""
        if score.note:
            measured = score.note
        elif score.quantity is None:
            low, high = score.interval
            measured = f"{100 * score.share:.1f}% ({score.right} of {score.count})"
            interval, bar = f"{100 * low:.1f} – {100 * high:.1f}%", f"{100 * score.bar:.3g}%" if score.bar else ""
        else:
            measured, bar = f"{score.quantity:.2f} {score.unit}", f"{score.bar:g} {score.unit}"
        verdict = {None: "", True: "met", False: "missed"}[score.met]
        lines.append(f"| {': '.join(filter(None, (score.row, score.part)))} | {measured} | {interval} | {bar} | {verdict} |")
    return "\n".join(lines)


def summary(scores: list[Score]) -> str:
    """The scores of one row in one line, e.g. "text → image: concept 67.5%, style 80.0%"."""
    figures = []
    for score in scores:
        figure = f"{100 * score.share:.1f}%" if score.quantity is None else f"{score.quantity:.2f} {score.unit}"
        figures.append(" ".join(filter(None, (score.part, score.note or figure))))
    return f"{scores[0].row}: {', '.join(figures)}"


def as_json(scores: list[Score]) -> str:
    """The scores as one JSON list."""
    return json.dumps([vars(score) | {"share": score.share, "met": score.met} for score in scores], indent=1)
