"""A small page on which a person says which of two answers is better: keyboard, undo, for this machine alone.

What was chosen stands in a record before the next pair is shown. Answers are shown as text, never as HTML.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nextgpt.errors import UserInputError
from nextgpt.train.instruct_data.record import Record
from nextgpt.train.judge.page import parts_as_html

LEFT, RIGHT, NEITHER = "left", "right", "neither"
HOST = "127.0.0.1"  # loopback: whoever can open the page can see the answers and choose
KEYS = {LEFT: "ArrowLeft", RIGHT: "ArrowRight", NEITHER: "ArrowDown", "undo": "Backspace"}
LABELS = {LEFT: "← left is better", RIGHT: "right is better →", NEITHER: "↓ neither", "undo": "⌫ undo"}
LISTEN = """() => {
    const names = NAMES;
    document.addEventListener('keydown', event => {
        const name = names[event.key];
        if (!name || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
        if (event.target.closest && event.target.closest('input, textarea, audio, video')) return;
        event.preventDefault();
        document.querySelector(`#${name}`).click();
    });
}"""
STYLE = """
.side { border: 1px solid #8884; border-radius: .5rem; padding: .6rem; min-height: 8rem; overflow-wrap: anywhere }
pre { white-space: pre-wrap; font: inherit; margin: 0; background: none }
.side img, .side video, .prompt img, .prompt video { max-width: 16rem; min-width: 6rem } audio { width: 100% }
"""
Shown = tuple[list[dict], list[dict], list[dict]]  # a prompt's messages, and the parts of two answers


class Choices:
    """Pairs of answers in turn, and what a person chose of each.

    Args:
        pairs: to choose from.
        record: what was chosen before, and where each choice is written.
    """

    def __init__(self, pairs: Sequence[Shown], record: Record):
        self.pairs, self.record, self._lock = pairs, record, threading.Lock()

    @property
    def made(self) -> list[str]:
        """What was chosen so far, in order: `left`, `right` or `neither`."""
        made = []
        for number in range(len(self.pairs)):
            choice = (self.record.answers.get(str(number)) or {}).get("answer")
            if choice not in (LEFT, RIGHT, NEITHER):
                break
            made.append(choice)
        return made

    def choose(self, choice: str, number: int | None = None) -> None:
        """Chooses of the pair in turn.

        Args:
            number: of the pair that was shown; a choice that comes late, as of a key pressed twice, does not count.

        Raises:
            Stopped: it cannot be written.
        """
        with self._lock:
            turn = len(self.made)
            if turn < len(self.pairs) and number in (None, turn):
                self.record.add({"key": str(turn), "answer": choice})

    def undo(self) -> None:
        """Takes the last choice back."""
        with self._lock:
            if turn := len(self.made):
                self.record.add({"key": str(turn - 1), "answer": None})


def view(choices: Choices, address: Callable[[str], str]) -> tuple[int, str, str, str, str]:
    """What is shown in turn: the number of the pair, the heading, and the prompt and both answers as HTML."""
    number, total = len(choices.made), len(choices.pairs)
    if number == total:
        return number, f"All {total:,} are chosen. The pairs are written once this page is stopped (Ctrl-C).", "", "", ""
    prompt, left, right = choices.pairs[number]
    turns = "".join(f"<small>{message['role']}</small>{_html(message['content'], address)}" for message in prompt)
    sides = [f"<div class=side>{_html(parts, address)}</div>" for parts in (left, right)]
    return number, f"**{number + 1:,} of {total:,}**: which answer is better?", f"<div class=prompt>{turns}</div>", *sides


def _html(parts: Sequence[dict], address: Callable[[str], str]) -> str:
    html = parts_as_html(parts, address)
    return html.replace("$", "&#36;").replace("{", "&#123;")  # Gradio fills `${…}` and `{{…}}` in HTML


def serve(choices: Choices, port: int | None = None, on_ready: Callable[[str], Any] = lambda address: None) -> None:
    """Shows the page on this machine until Ctrl-C.

    Args:
        port: None: the first free one from 7860 on.
        on_ready: is told the address.

    Raises:
        UserInputError: the port is taken.
    """
    page = Page(choices)
    try:
        on_ready(page.open(port))
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        page.close()


class Page:
    """The page and its server.

    Args:
        choices: that are made on it.
    """

    def __init__(self, choices: Choices):
        import gradio as gr

        self.choices = choices
        messages = [content for prompt, *sides in choices.pairs for content in (*(m["content"] for m in prompt), *sides)]
        self._files = sorted({str(Path(part["path"]).resolve()) for parts in messages for part in parts if part.get("path")})
        with gr.Blocks(title="Which answer is better?", analytics_enabled=False) as self.blocks:
            number, heading = gr.State(0), gr.Markdown()
            prompt = gr.HTML()
            with gr.Row():
                left, right = gr.HTML(), gr.HTML()
            shown = [number, heading, prompt, left, right]
            with gr.Row():
                buttons = {name: gr.Button(label, elem_id=name) for name, label in LABELS.items()}
            quiet = {"show_progress": "hidden", "api_visibility": "private"}
            for name, button in buttons.items():
                button.click(self._press(name), number, shown, **quiet)
            self.blocks.load(self._view, None, shown, **quiet)
            names = {key: name for name, key in KEYS.items()}
            self.blocks.load(None, js=LISTEN.replace("NAMES", str(names)))

    def open(self, port: int | None = None) -> str:
        """Begins to listen and returns the page's address; UserInputError where the port is taken."""
        try:
            _, local, _ = self.blocks.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                allowed_paths=self._files,
                enable_monitoring=False,
                footer_links=[],
                css=STYLE,
            )
        except (OSError, OverflowError) as error:
            raise UserInputError(f"the page cannot listen on port {port} ({error}): give another --port") from None
        return local

    def close(self) -> None:
        """Ends the server."""
        self.blocks.close(verbose=False)

    def _press(self, name: str) -> Callable[[int], tuple]:
        def press(number: int) -> tuple:
            if name == "undo":
                self.choices.undo()
            else:
                self.choices.choose(name, number)
            return self._view()

        return press

    def _view(self) -> tuple:
        return view(self.choices, lambda path: f"gradio_api/file={quote(str(Path(path).resolve()))}")
