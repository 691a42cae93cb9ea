"""A page to read: the rates, and each question with both answers and what the judge said of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from nextgpt.modalities import MODALITIES
from nextgpt.train.data.files import whole_file
from nextgpt.train.data.markers import parts_of
from nextgpt.train.judge.answers import in_words
from nextgpt.train.judge.verdicts import Question, Verdict

STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
section { border-top: 1px solid #8884; padding: .5rem 0 } pre { white-space: pre-wrap; font: inherit; margin: 0 }
pre.rates { font: .9rem/1.5 ui-monospace, monospace }
.answers { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
.answers > div { padding: .6rem; border: 1px solid #8884; border-radius: .5rem; overflow-wrap: anywhere }
img, video { max-width: 16rem; min-width: 6rem; image-rendering: pixelated } audio { width: 100% }
.problem { color: #d33 } small { opacity: .7 }
"""


def write_page(
    file: Path,
    summary: Sequence[str],
    questions: Sequence[list[dict]],
    answers: Sequence[list[list[dict]]],
    found: Sequence[Question | None],
) -> None:
    """Writes the page; what models and the judge wrote stands there as text, never as HTML."""

    def beside(path: str) -> str:
        return quote(os.path.relpath(path, file.parent))

    body = [f"<h1>{escape(summary[0])}</h1><pre class=rates>{escape(chr(10).join(summary[1:]))}</pre>"]
    for number, (messages, question) in enumerate(zip(questions, found, strict=True), start=1):
        turns = "".join(
            f"<small>{escape(m['role'])}</small>{parts_as_html(parts_of(m['content']), beside)}" for m in messages
        )
        sides = "".join(
            f"<div><small>{name}</small>{parts_as_html(side[number - 1], beside)}</div>"
            for name, side in zip("AB", answers, strict=True)
        )
        said = _said(question) if question is not None else "<p class=problem>not judged</p>"
        body.append(f"<section><h2>{number}</h2>{turns}<div class=answers>{sides}</div>{said}</section>")
    head = f"<!doctype html><meta charset=utf-8><title>Judged</title><style>{STYLE}</style>"
    with whole_file(file) as written:
        written.write_text(f"{head}{''.join(body)}\n", encoding="utf-8", errors="backslashreplace")


def parts_as_html(parts: Sequence[dict], address: Callable[[str], str]) -> str:
    """Parts of a message as HTML: words as text, whatever stands in them, and media in players.

    Args:
        address: the path of a file → where the page has it.
    """
    shown = []
    for part in parts:
        if part["type"] == "text":
            shown.append(f"<pre>{escape(part['text'])}</pre>")
        elif part.get("path"):
            label = escape(in_words(part)[1:-1])
            shown.append(MODALITIES[part["type"]].player.format(address=escape(address(part["path"])), label=label))
        else:
            shown.append(f"<pre>{escape(in_words(part))}</pre>")
    return "".join(shown)


def _said(question: Question) -> str:
    lines = []
    for first, verdict, problem in zip("AB", question.verdicts, question.problems, strict=True):
        lines.append(
            f"<p>{first} first: {_verdict(verdict, first) if verdict else f'<b class=problem>{escape(problem)}</b>'}</p>"
        )
    return "".join(lines) + "".join(f"<p class=problem>{name} speaks to the judge</p>" for name in question.addressing)


def _verdict(verdict: Verdict, first: str) -> str:
    names = {"first": first, "second": "B" if first == "A" else "A"}
    better = names.get(verdict.better, "neither")
    scores = f"{names['first']} {verdict.first}, {names['second']} {verdict.second}"
    return f"<b>{better}</b> ({scores}): {escape(verdict.reason)}"
