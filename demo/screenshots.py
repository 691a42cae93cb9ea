"""Pictures of the page for the README: a real browser, a real conversation, in light, in dark and at a phone's width.

`python -m nextgpt.demo.screenshots --out demo/assets` needs Chromium and Playwright (`pip install 'nextgpt[screenshots]'`).
The conversation is made of the page's own examples: the first two, or those that `--examples 2,3,5` names.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nextgpt.demo.app import Chat
from nextgpt.errors import UserInputError
from nextgpt.pipeline import DEFAULT_MODEL, NextGPTPipeline

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCREENS = {
    "light": {"viewport": {"width": 1100, "height": 940}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1100, "height": 940}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True},
}
PATIENCE = 300_000  # milliseconds
ROWS = "#conversation .message-row.bot-row"
LOADED = """() => [...document.images].every(image => image.complete)
    && [...document.querySelectorAll('#conversation audio')].every(sound => sound.readyState >= 1)
    && [...document.querySelectorAll('#conversation video')].every(clip => clip.readyState >= 2)"""


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


def take(opened: Browser, address: str, screen: dict, examples: list[int], path: Path) -> None:
    """Leads a conversation of these examples, counted from 1, on one screen, and saves what it looks like.

    Raises:
        UserInputError: the page has no such example.
    """
    profile = opened.new_context(**screen)
    profile.set_default_timeout(PATIENCE)
    page = profile.new_page()
    page.goto(address)
    buttons = page.locator("#examples button")
    buttons.first.wait_for()
    for number in examples:
        if not 1 <= number <= buttons.count():
            raise UserInputError(f"the page has {buttons.count()} examples, none of them is number {number}: name others")
        answered = page.locator(ROWS).count()
        buttons.nth(number - 1).click()
        page.locator(ROWS).nth(answered).wait_for()
        page.get_by_role("button", name="Submit").wait_for()  # in the place of Stop
    page.wait_for_function(LOADED)
    page.screenshot(path=path)
    profile.close()


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers: write e.g. 2,3,5") from None


def main() -> None:
    """Loads the model, serves the page and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", "--preset", default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, required=True, help="folder for light.png, dark.png and phone.png")
    parser.add_argument("--examples", type=_numbers, default="1,2", help="numbers of those to ask (default: %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    chat = Chat(NextGPTPipeline.from_pretrained(args.model))
    try:
        address = chat.serve("127.0.0.1")
        with browser() as opened:
            for name, screen in SCREENS.items():
                path = args.out / f"{name}.png"
                take(opened, address, screen, args.examples, path)
                print(path)
    finally:
        chat.close()


if __name__ == "__main__":
    main()
