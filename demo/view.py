"""What the page shows of a conversation, as pieces of text and of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import shorten
from urllib.parse import quote

from nextgpt.demo.conversations import Conversation, Pending, Turn, media_of
from nextgpt.media.text import listed
from nextgpt.modalities import MODALITIES

FILE_ADDRESS = "gradio_api/file="  # below the page's own address, wherever that is
# A click on a picture or a clip opens it large, over the page (HTML's own popover).
ENLARGED = """<button type="button" popovertarget="{id}" aria-label="Enlarge: {label}">{small}</button>
<div id="{id}" class="enlarged" popover>{large}
<button type="button" popovertarget="{id}" popovertargetaction="hide" autofocus>Close</button></div>"""


@dataclass(frozen=True)
class Shown:
    """One bubble's worth: words, or HTML of our own making. `turn` is the index of the turn it shows."""

    role: str
    turn: int
    text: str = ""
    html: str = ""


def shown(conversation: Conversation, place: int = 0) -> list[Shown]:
    """Everything of a conversation; `place` is how many answers come before the one it waits for."""
    pieces = []
    for i, turn in enumerate(list(conversation.turns)):
        pieces += [_part("user", i, part) for part in turn.question]
        if turn.question and not any(part["type"] == "text" for part in turn.question):
            pieces.append(Shown("user", i))  # Gradio's edit button stands at words only
        pieces += [_part("assistant", i, part) for part in list(turn.answer)]
        if status := _status(turn, conversation.busy and turn is conversation.turns[-1], place):
            pieces.append(Shown("assistant", i, html=status))
    return pieces


def title(conversation: Conversation) -> str:
    """A conversation's title: how it begins."""
    if not conversation.turns:
        return "New conversation"
    question = conversation.turns[0].question
    words = " ".join(part["text"] for part in question if part["type"] == "text")
    return shorten(words or f"({listed([part['type'] for part in question])})", 60, placeholder=" …")


def _part(role: str, turn: int, part: dict) -> Shown:
    if part["type"] == "text":
        return Shown(role, turn, text=part["text"])
    return Shown(role, turn, html=_figure(part))


def _figure(part: dict) -> str:
    """A picture, a clip or a player, and for what was made here its seed, its time and a link that saves it."""
    path, kind = Path(part["path"]), part["type"]
    address = escape(FILE_ADDRESS + quote(path.as_posix()))
    seed = part.get("seed")
    label = escape(f"{kind}, seed {seed}" if seed is not None else path.name)
    caption = ""
    if seed is not None:
        took = f" · {part['seconds']:.1f} s" if "seconds" in part else ""
        caption = (
            f'<figcaption><span>seed {seed}{took}</span> <a href="{address}" download '
            f'aria-label="Download the {kind}">download</a></figcaption>'
        )
    row = MODALITIES[kind]
    player = row.player.format(address=address, label=label)
    if row.large_player is not None:
        large = row.large_player.format(address=address, label=label)
        player = ENLARGED.format(
            id=f"large-{quote(path.parent.name)}-{quote(path.name)}", label=label, small=player, large=large
        )
    return f'<figure class="medium">{player}{caption}</figure>'


def _status(turn: Turn, under_way: bool, place: int) -> str:
    if turn.pending:
        return _progress(turn.pending)
    if turn.note:
        return f'<p class="note" role="alert">{escape(turn.note)}</p>'
    if under_way and place:
        before = "one answer comes" if place == 1 else f"{place} answers come"
        return f'<p class="note" role="status">Waiting: {before} before yours.</p>'
    if under_way and not turn.answer:
        return '<p class="note" role="status">Reading …</p>'
    return ""


def _progress(pending: Pending) -> str:
    step = f"step {pending.step} of {pending.total}" if pending.total else "starting"
    value = f' value="{pending.step}" max="{pending.total}"' if pending.total else ""
    preview = f'<img src="{pending.preview}" alt="preview">' if pending.preview else ""
    return (
        f'<figure class="medium pending" aria-live="off">{preview}<figcaption>Making the {pending.modality}: {step}'
        f'<progress{value} aria-label="Making the {pending.modality}"></progress></figcaption></figure>'
    )


# ---------------------------------------------------------------------- what happened


def happened(turns: Sequence[Turn]) -> str:
    """The way of the last answer through the model, step by step, with times."""
    turn = next((turn for turn in reversed(turns) if turn.timings), None)
    if turn is None:
        return "<p>Ask something, and the way of the answer through the model is shown here.</p>"
    times = turn.timings
    read = [part["type"] for part in media_of(turn.question)]
    media_in = f"{listed(read)}: one embedding each, and the words as tokens" if read else "the words as tokens"
    rows = [
        ("encoder → projection", media_in, times.prepare),
        (
            "language model reads",
            f"{times.prompt_tokens} tokens, {times.cached_tokens} of them still known from before",
            times.first_token - times.prepare,
        ),
        (
            "language model writes",
            f"{times.new_tokens} tokens, {times.tokens_per_second:.0f} a second; the first after {times.first_token:.2f} s",
            times.prepare + times.generate - times.first_token,
        ),
    ]
    made = iter(media_of(turn.answer))
    for kind, run in turn.signals:
        rows.append(("signal tokens", f"<code>{escape(_run(run))}</code> call for the {kind}", None))
        if kind in turn.switched_off:
            rows.append(("projection → decoder", f"{kind}: switched off, not made", None))
        elif part := next(made, None):
            rows.append(("projection → decoder", f"{kind}, seed {part['seed']}", part["seconds"]))
        else:
            rows.append(("projection → decoder", f"{kind}, stopped before it was finished", None))
    if not turn.signals:
        rows.append(("signal tokens", "none: the answer is words alone", None))
    rows.append(("in all", "", times.total))
    return f'<table class="happened"><tbody>{"".join(_row(*row) for row in rows)}</tbody></table>'


def _row(stage: str, what: str, seconds: float | None) -> str:
    took = "" if seconds is None else f"{max(seconds, 0):.2f} s"
    return f'<tr><th scope="row">{stage}</th><td>{what}</td><td>{took}</td></tr>'


def _run(tokens: Sequence[str]) -> str:
    return " ".join(tokens) if len(tokens) <= 4 else f"{tokens[0]} … {tokens[-1]}"
