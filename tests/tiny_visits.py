"""Helpers of the page's tests: what a visitor does and sees in a real Chromium."""

import re
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures" / "parity" / "media"
PICTURE = FIXTURES / "shapes.png"  # 500 x 340
PATIENCE = 60_000  # milliseconds; a busy machine is slow, but the page should get there
SHOWS = {
    "image": "img => img.complete && img.naturalWidth",
    "audio": "audio => audio.readyState >= 1 && audio.duration > 0.1 && audio.duration",
    "video": "video => video.readyState >= 2 && video.duration > 0.1 && video.videoWidth",
}
TAGS = {"image": "img", "audio": "audio", "video": "video"}


def open_in(profile, address: str):
    profile.set_default_timeout(PATIENCE)
    page = profile.new_page()
    page.goto(address)
    page.get_by_role("textbox", name="Message").wait_for()
    page.wait_for_function("window.nextgptConversation")
    return page


def expect(thing):
    from playwright import sync_api

    sync_api.expect.set_options(timeout=PATIENCE)
    return sync_api.expect(thing)


def box(page):
    return page.get_by_role("textbox", name="Message")


def said(page, who: str):
    """Everything of one side, one element for each stretch of words, medium or note."""
    return page.locator(f"#conversation .message-row.{who}-row")


def words(page, who: str):
    return said(page, who).locator(".md")


def media(page, who: str, kind: str):
    """As they stand in the conversation, not as they are enlarged."""
    return said(page, who).locator(f"figure.medium:not(.pending) {TAGS[kind]}:not(.enlarged *)")


def value_shown(element, kind: str):
    """A picture's or clip's width, a sound's duration, as soon as the browser has decoded it."""
    element.wait_for()
    return element.page.wait_for_function(f"element => ({SHOWS[kind]})(element)", arg=element.element_handle()).json_value()


def ask(page, text: str) -> None:
    """Sends a question and waits for the end of its answer."""
    questions = words(page, "user").count()
    box(page).fill(text)
    box(page).press("Enter")
    expect(words(page, "user")).to_have_count(questions + 1)
    wait_for_the_end(page)


def wait_for_the_end(page) -> None:
    expect(said(page, "bot").last).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def example(page, direction: str):
    """The example of a direction, which an empty conversation offers."""
    return page.get_by_role("button", name=re.compile(rf"^Select example \d+: {direction}: "))


def open_fold(page, name: str) -> None:
    """Unfolds one of the folds below the box, if it is not."""
    fold = page.get_by_role("button", name=re.compile(f"^{re.escape(name)}\\W*$"))
    if "open" not in (fold.get_attribute("class") or ""):
        fold.click()


def option(page, label: str):
    """A box of the options; of the decoders' the first, which is a picture's."""
    open_fold(page, "Options")
    field = page.get_by_label(label, exact=True).first
    if not field.count():
        open_fold(page, "Image")
    return field


def set_option(page, label: str, value: str) -> None:
    """Writes into a box of the options."""
    option(page, label).fill(value)
