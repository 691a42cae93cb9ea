"""Writes what an evaluation found as one HTML page: the table, the mistakes, true media beside what was made."""

from __future__ import annotations

import base64
import tempfile
from collections import Counter
from html import escape
from pathlib import Path

from PIL import Image

from nextgpt.decoders import Audio
from nextgpt.events import Media
from nextgpt.media import save_media
from nextgpt.train.nano.evaluation.scores import Sample, Score, table

SHOWN = 60  # samples of a row that are shown with their media
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; border-bottom: 1px solid #8884; text-align: left }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem }
figure { margin: 0; padding: .6rem; border: 1px solid #8884; border-radius: .5rem }
figure.wrong { border-color: #d33 } img, video { width: 96px; image-rendering: pixelated; margin-right: .3rem }
audio { width: 100%; height: 2rem }
figcaption { font-size: .85rem } .wrong b { color: #d33 }
"""


def write_report(folder: Path, scores: list[Score], samples: list[Sample]) -> Path:
    """Writes `index.html` into `folder`, all media inside it; returns its path."""
    rows: dict[str, list[Sample]] = {}
    for sample in samples:
        rows.setdefault(sample.row, []).append(sample)
    body = [_html_table(table(scores)), *(_row(name, some) for name, some in rows.items())]
    page = f"<!doctype html><meta charset=utf-8><title>nano, measured</title><style>{STYLE}</style>"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(f"{page}<h1>What nano can do</h1>{''.join(body)}\n", encoding="utf-8")
    return path


def _html_table(markdown: str) -> str:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in lines[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines[2:])
    return f"<table><tr>{head}</tr>{body}</table>"


def _row(name: str, samples: list[Sample]) -> str:
    figures = "".join(_figure(sample) for sample in samples[:SHOWN])
    return f"<h2>{escape(name)}</h2>{_mistakes(samples)}<div class=samples>{figures}</div>"


def _mistakes(samples: list[Sample]) -> str:
    """What was taken for what, most frequent first."""
    counts = Counter(
        (part, expected, sample.found.get(part) or "nothing")
        for sample in samples
        for part, expected in sample.expected.items()
        if expected != sample.found.get(part)
    )
    if not counts:
        return "<p>No mistakes.</p>"
    lines = "".join(
        f"<tr><td>{escape(part)}</td><td>{escape(expected)}</td><td>{escape(found)}</td><td>{count}</td></tr>"
        for (part, expected, found), count in counts.most_common(40)
    )
    return f"<table><tr><th>part</th><th>expected</th><th>found</th><th>times</th></tr>{lines}</table>"


def _figure(sample: Sample) -> str:
    wrong = [
        f"<b>{escape(part)}: {escape(expected)}, found {escape(sample.found.get(part) or 'nothing')}</b>"
        for part, expected in sample.expected.items()
        if expected != sample.found.get(part)
    ]
    media = "".join(map(_html, sample.media))
    words = "<br>".join([f"“{escape(sample.asked)}”", escape(sample.answer), *wrong])
    return f"<figure class={'wrong' if wrong else 'right'}>{media}<figcaption>{words}</figcaption></figure>"


def _html(medium: Media) -> str:
    """A picture, or a player of a sound or of a clip."""
    if isinstance(medium, Image.Image):
        return f"<img alt='' src='{_address(medium, 'image/png', '.png')}'>"
    if isinstance(medium, Audio):
        return f"<audio controls preload=none src='{_address(medium, 'audio/wav', '.wav')}'></audio>"
    return f"<video controls loop muted src='{_address(medium, 'video/mp4', '.mp4')}'></video>"


def _address(medium: Media, kind: str, suffix: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"medium{suffix}"
        save_media(medium, file)
        return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
