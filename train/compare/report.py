"""The table of a comparison."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextgpt.train.compare.adapters import Compared
    from nextgpt.train.compare.settings import CompareConfig

MEGA = 1e6
COLUMNS = ("method", "size", "parameters", "of the LLM", "rate", "s a step", "gradients", "optimizer", "activations")


def table(compared: Sequence[Compared], config: CompareConfig) -> str:
    """Markdown: methods of about one size first, then those of a size of their own; what a column means stands below."""
    rows = _score_rows(compared)
    head = [*COLUMNS, "loss", "text loss", *(name for name, _ in rows)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    ordered = [each for each in compared if each.sized] + [each for each in compared if not each.sized]
    for each in ordered:
        fixed = "" if each.sized or not each.parameters else " (fixed size)"
        cells = [
            each.name + fixed,
            each.described,
            f"{each.parameters:,}",
            f"{100 * each.share:.2f}%",
            "–" if each.rate is None else f"{each.rate:g}",
            f"{statistics.median(run['seconds'] for run in each.runs):.3g}",
            *(_megabytes(each.runs, name) for name in ("gradients", "optimizer", "activations")),
            *(_spread([run[name] for run in each.runs]) for name in ("loss", "text_loss")),
            *(_score(each.runs, key) for _, key in rows),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_notes(config)])


def _notes(config: CompareConfig) -> list[str]:
    seeds, rates = ", ".join(map(str, config.seeds)), ", ".join(f"{rate:g}" for rate in config.learning_rates)
    rows = f"; rows of evaluate: all seeds together ({config.split}), and the seeds apart" if config.evaluate else ""
    return [
        f"Each: {config.max_steps} steps from {config.model} with the seeds {seeds}, the projections and signal rows "
        f"trained alike beside the adapter. Rate: the adapter's, the one of {rates} with the least loss on the development "
        f"split after {config.search_steps} steps.",
        "Parameters: the adapter's, counted. s a step: median, measured. Gradients and optimizer: of all that is trained, "
        "in fp32, computed. Activations: what one batch keeps for its backward pass, measured. Loss: mean and standard "
        f"deviation over the seeds, on the development split{rows}.",
    ]


def _megabytes(runs: Iterable[dict[str, Any]], name: str) -> str:
    found = [run[name] for run in runs]
    return "–" if None in found else f"{statistics.mean(found) / MEGA:.3g} MB"


def _spread(values: Sequence[float]) -> str:
    apart = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{apart}"


def _score_rows(compared: Sequence[Compared]) -> list[tuple[str, tuple[str, str]]]:
    """The title of each row of `evaluate`, and its row and part."""
    keys = {(score["row"], score["part"]): None for each in compared for run in each.runs for score in run["scores"]}
    return [(": ".join(filter(None, key)), key) for key in keys]


def _score(runs: Iterable[dict[str, Any]], key: tuple[str, str]) -> str:
    found = [score for run in runs for score in run["scores"] if (score["row"], score["part"]) == key]
    if not found or any(score.get("note") for score in found):
        return "–"
    if all(score.get("quantity") is not None for score in found):
        return _range([score["quantity"] for score in found], lambda value: f"{value:.2f}") + f" {found[0].get('unit', '')}"
    right, count = (sum(score[name] for score in found) for name in ("right", "count"))
    shares = [score["right"] / score["count"] for score in found if score["count"]]
    return _range(shares, lambda value: f"{100 * value:.1f}", right / count) + " %" if count else "–"


def _range(values: Sequence[float], form: Callable[[float], str], whole: float | None = None) -> str:
    middle = form(statistics.mean(values) if whole is None else whole)
    return middle if len(values) == 1 else f"{middle} ({form(min(values))} – {form(max(values))})"
