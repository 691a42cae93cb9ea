"""Pictures of the page for the README: a real browser, a real conversation, in light, in dark and at a phone's width.

`python -m nextgpt.demo.screenshots --out demo/assets` needs Chromium and Playwright (`pip install 'nextgpt[screenshots]'`).
The conversation is the first of the page's own examples.
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


def take(opened: Browser, address: str, screen: dict, examples: int, path: Path) -> None:
    """Leads a conversation of the first examples on one screen, and saves what it looks like."""
    profile = opened.new_context(**screen)
    profile.set_default_timeout(PATIENCE)
    page = profile.new_page()
    page.goto(address)
    for number in range(examples):
        page.locator("#examples button").nth(number).click()
        page.locator("#conversation .message-row.user-row").nth(number).wait_for()
        page.get_by_role("button", name="Submit").wait_for()
        page.get_by_role("button", name="Retry").wait_for()
    page.wait_for_function("[...document.images].every(image => image.complete)")
    page.screenshot(path=path)
    profile.close()


def main() -> None:
    """Loads the model, serves the page and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", "--preset", default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, required=True, help="folder for light.png, dark.png and phone.png")
    parser.add_argument("--examples", type=int, default=2, help="how many of the examples to ask (default: %(default)s)")
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
