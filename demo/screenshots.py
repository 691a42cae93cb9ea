"""Pictures of the page for the README: a real browser, a real conversation, in light, in dark and at a phone's width.

The first, `start.png`, is the page as it opens.

`python -m nextgpt.demo.screenshots --out demo/assets` needs Chromium and Playwright (`pip install 'nextgpt[screenshots]'`).
The conversation begins with one of the page's own examples, the first or the one that `--example` names, and goes on with
what `--then` says.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nextgpt.demo.app import Chat
from nextgpt.errors import UserInputError
from nextgpt.pipeline import DEFAULT_MODEL, NextGPTPipeline
from nextgpt.report.info import known_world

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCREENS = {
    "light": {"viewport": {"width": 1100, "height": 940}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1100, "height": 940}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True},
}
PATIENCE = 300_000  # milliseconds
SETTLED = 1000  # until the conversation has scrolled to its end
THEN = "Now on a white background."
ROWS = "#conversation .message-row.bot-row"
LOADED = """() => {
    const shown = tag => [...document.querySelectorAll(`#conversation ${tag}:not(.enlarged *)`)];
    return shown('img').every(image => image.complete) && shown('audio').every(sound => sound.readyState >= 1)
        && shown('video').every(clip => clip.readyState >= 2);
}"""


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium, driven by Playwright.

    Raises:
        UserInputError: there is none on this machine.
    """
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise UserInputError(f"found none of {', '.join(BROWSERS)}: install one, e.g. with apt-get install chromium")
    from playwright.sync_api import sync_playwright

    is_root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox refuses root
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"] if is_root else [])
        yield opened
        opened.close()


def take(opened: Browser, address: str, screen: dict, example: int | None, then: Sequence[str], path: Path) -> None:
    """Leads a conversation on one screen, from an example, counted from 1 (None: no conversation), and saves its picture.

    Raises:
        UserInputError: the page has no such example.
    """
    profile = opened.new_context(**screen)
    profile.set_default_timeout(PATIENCE)
    page = profile.new_page()
    page.goto(address)
    buttons = page.locator("#conversation button.example")
    buttons.first.wait_for()
    if example is not None:
        _converse(page, buttons, example, then)
    page.wait_for_function(LOADED)
    page.wait_for_timeout(SETTLED)
    page.screenshot(path=path)
    profile.close()


def _converse(page: Page, buttons: Locator, example: int, then: Sequence[str]) -> None:
    if not 1 <= example <= buttons.count():
        raise UserInputError(f"the page has {buttons.count()} examples, none of them is number {example}: name another")
    buttons.nth(example - 1).click()
    _wait_for_answer(page, 0)
    for words in then:
        answered = page.locator(ROWS).count()
        page.get_by_role("textbox", name="Message").fill(words)
        page.get_by_role("button", name="Submit").click()
        _wait_for_answer(page, answered)


def _wait_for_answer(page: Page, rows_before: int) -> None:
    page.locator(ROWS).nth(rows_before).wait_for()
    page.get_by_role("button", name="Stop").wait_for(state="hidden")


def main() -> None:
    """Loads the model, serves the page and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", "--preset", default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, required=True, help="folder for start.png, light.png, dark.png and phone.png")
    parser.add_argument("--example", type=int, default=1, help="number of the one to begin with (default: %(default)s)")
    parser.add_argument("--then", action="append", metavar="WORDS", help=f"what is asked next (default: {THEN}); repeatable")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    chat = Chat(NextGPTPipeline.from_pretrained(args.model), model=args.model, known=known_world(args.model))
    try:
        address = chat.serve("127.0.0.1")
        with browser() as opened:
            for name, screen in {"start": SCREENS["light"], **SCREENS}.items():
                path = args.out / f"{name}.png"
                take(opened, address, screen, None if name == "start" else args.example, args.then or [THEN], path)
                print(path)
    finally:
        chat.close()


if __name__ == "__main__":
    main()
