"""The page on which a person chooses, in a real Chromium: keys, undo, media, and words that stay words."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from nextgpt.train.instruct_data.record import Record
from nextgpt.train.preferences.collect.person import LEFT, NEITHER, RIGHT, Choices, Page

pytestmark = pytest.mark.slow
PATIENCE = 60_000  # milliseconds; a busy machine is slow, but the page should get there
HOSTILE = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'> ${window.ran = 1} {{value}}"
ALL_SEEN = (
    "() => document.querySelectorAll('.side img').length == 2 && [...document.images].every(each => each.naturalWidth)"
)


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def test_keys_choose_and_take_back_media_are_seen_and_words_are_never_html(browser, tmp_path: Path) -> None:
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
    red, blue = ({"type": "image", "path": str(tmp_path / f"{colour}.png"), "seed": 1} for colour in ("red", "blue"))
    (tmp_path / "secret.txt").write_text("not shown")
    pairs = [
        ([{"role": "user", "content": [text("Draw a <b>red</b> square.")]}], [text(HOSTILE), red], [text("There."), blue]),
        ([{"role": "user", "content": [text("And now?")]}], [text("one")], [text("two")]),
    ]
    with Record(tmp_path / "choices.jsonl") as record:
        record.begin({"answers": "these"})
        choices = Choices(pairs, record)
        served = Page(choices)
        address = served.open()
        assert address.startswith("http://127.0.0.1:")
        visitor = browser.new_context()
        try:
            page = visitor.new_page()
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            page.get_by_text("1 of 2").wait_for()
            page.wait_for_function(ALL_SEEN)
            assert page.locator(".side").first.inner_text().strip() == HOSTILE
            assert page.locator(".prompt pre").inner_text() == "Draw a <b>red</b> square."
            assert page.evaluate("window.ran") is None
            assert visitor.request.get(f"{address}gradio_api/file={tmp_path / 'secret.txt'}").status == 403

            for key, shown, made in (
                ("ArrowRight", "2 of 2", [RIGHT]),
                ("Backspace", "1 of 2", []),
                ("ArrowLeft", "2 of 2", [LEFT]),
                ("ArrowDown", "All 2 are chosen", [LEFT, NEITHER]),
            ):
                page.keyboard.press(key)
                page.get_by_text(shown).wait_for()
                assert choices.made == made
        finally:
            visitor.close()
            served.close()
