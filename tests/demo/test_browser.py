"""The page in a real headless Chromium, by what a visitor sees there: pictures that decode, players that play.

The model is tiny and random; a question that says draw, play or film gets a picture, a sound or a clip.
"""

import re

import pytest
from PIL import Image

from tiny_visits import (
    FIXTURES,
    PICTURE,
    TAGS,
    ask,
    box,
    example,
    expect,
    media,
    open_fold,
    said,
    set_option,
    value_shown,
    wait_for_the_end,
    words,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "direction",
    [
        *("text → image", "image → text", "text → audio", "audio → text"),
        *("text → video", "video → text", "audio → image", "image → audio"),
    ],
)
def test_each_direction_from_the_row_of_examples(page, direction):
    given, answer = direction.split(" → ")
    example(page, direction).click()
    if given != "text":
        assert value_shown(media(page, "user", given), given)
    if answer == "text":
        expect(words(page, "bot")).not_to_be_empty()
        wait_for_the_end(page)
        assert not any(media(page, "bot", kind).count() for kind in TAGS)
    else:
        shown = value_shown(media(page, "bot", answer), answer)
        assert shown > 0.4 if answer == "audio" else shown == 32
        expect(said(page, "bot").locator("figcaption")).to_contain_text(re.compile(r"seed \d+ · \d+\.\d s"))


def test_an_uploaded_file_is_shown_and_looked_at(page):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a file").click()
    chooser.value.set_files([PICTURE, FIXTURES / "sweep.wav"])
    expect(page.locator("#message").get_by_role("button", name=re.compile("Remove|Delete"))).to_have_count(2)
    ask(page, "What is this?")
    assert value_shown(media(page, "user", "image"), "image") == 500
    assert value_shown(media(page, "user", "audio"), "audio") == pytest.approx(5, abs=0.1)


def test_a_medium_is_saved_by_its_link(page, tmp_path):
    ask(page, "draw")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the image").click()
    assert re.fullmatch(r"\d+-image-seed-\d+\.png", download.value.suggested_filename)
    download.value.save_as(tmp_path / "saved.png")
    assert Image.open(tmp_path / "saved.png").size == (32, 32)


def test_an_answer_of_several_media_keeps_its_order(page):
    ask(page, "film it, play it and draw it")
    order = tags_in_order(page)
    assert sorted(order) == ["AUDIO", "IMG", "VIDEO"]
    for kind in TAGS:
        assert value_shown(media(page, "bot", kind), kind)
    page.reload()
    expect(media(page, "bot", "video")).to_be_visible()
    assert tags_in_order(page) == order


def tags_in_order(page) -> list[str]:
    players = said(page, "bot").locator("figure.medium :is(img, audio, video):not(.enlarged *)")
    return players.evaluate_all("all => all.map(one => one.tagName)")


def test_progress_sharpens_and_stop_really_stops(page):
    set_option(page, "Steps", "500")
    box(page).fill("draw")
    box(page).press("Enter")
    for step in (1, 50):
        page.wait_for_function(
            f"(bar => bar?.max == 500 && bar.value >= {step})(document.querySelector('.pending progress'))"
        )
        page.wait_for_function("document.querySelector('.pending img')?.naturalWidth > 0")
    expect(page.get_by_role("progressbar", name="Making the image")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(said(page, "bot").get_by_text("Stopped.")).to_be_visible()
    assert media(page, "bot", "image").count() == 0
    ask(page, "hello")
    expect(words(page, "bot").last).not_to_be_empty()


def test_a_player_is_left_alone_while_the_conversation_goes_on(page):
    ask(page, "film")
    media(page, "bot", "video").evaluate("video => { video.mine = true }")
    ask(page, "draw")
    assert media(page, "bot", "video").evaluate("video => video.mine") is True


def test_retry_draws_anew_with_another_seed(page):
    ask(page, "draw")
    caption = said(page, "bot").locator("figcaption")
    first = caption.inner_text()
    page.get_by_role("button", name="Retry").click()
    expect(caption).not_to_have_text(first)
    wait_for_the_end(page)
    seeds = [re.search(r"seed (\d+)", text)[1] for text in (first, caption.inner_text())]
    assert seeds[0] != seeds[1]
    expect(words(page, "user")).to_have_count(1)


def test_undo_puts_the_question_back_into_the_box(page):
    ask(page, "hello")
    ask(page, "again")
    page.get_by_role("button", name="Undo").click()
    expect(box(page)).to_have_value("again")
    expect(words(page, "user")).to_have_count(1)


def test_an_edited_question_is_answered_in_its_new_words(page):
    ask(page, "hello")
    page.get_by_role("button", name="Edit").first.click()
    said(page, "user").get_by_role("textbox").fill("draw")
    page.get_by_role("button", name="Submit").first.click()
    assert value_shown(media(page, "bot", "image"), "image") == 32
    expect(said(page, "user")).to_have_text(re.compile("draw"))


def test_an_edited_question_keeps_its_picture(page):
    example(page, "image → text").click()
    expect(words(page, "bot")).not_to_be_empty()
    wait_for_the_end(page)
    page.get_by_role("button", name="Edit").first.click()
    said(page, "user").get_by_role("textbox").last.fill("Draw it.")
    page.get_by_role("button", name="Submit").first.click()
    assert value_shown(media(page, "bot", "image"), "image") == 32
    expect(words(page, "user")).to_have_text(re.compile("Draw it."))
    assert value_shown(media(page, "user", "image"), "image") == 64


def test_a_conversation_survives_a_reload_even_in_the_midst_of_an_answer(page):
    ask(page, "draw")
    set_option(page, "Steps", "200")
    box(page).fill("draw again")
    box(page).press("Enter")
    said(page, "bot").locator("progress").wait_for()
    page.reload()
    expect(media(page, "bot", "image")).to_have_count(2)
    assert [value_shown(media(page, "bot", "image").nth(i), "image") for i in range(2)] == [32, 32]
    wait_for_the_end(page)


def test_who_waits_sees_the_place_and_who_finds_no_place_is_told(visit):
    """The page of these tests has one place to wait."""
    first, second, third = visit(), visit(), visit()
    set_option(first, "Steps", "500")
    for page in (first, second, third):
        box(page).fill("draw")
    box(first).press("Enter")
    said(first, "bot").locator("progress").wait_for()
    box(second).press("Enter")
    expect(second.get_by_text("Waiting: one answer comes before yours.")).to_be_visible()
    box(third).press("Enter")
    expect(third.get_by_text("too many are waiting")).to_be_visible()
    first.get_by_role("button", name="Stop").click()
    assert value_shown(media(second, "bot", "image"), "image") == 32


def test_what_happened_shows_the_mechanism(page):
    open_fold(page, "What happened")
    ask(page, "draw")
    for expected in ("encoder → projection", "tokens", "a second", "[IMG0]", "projection → decoder", "in all"):
        expect(page.locator("#happened table")).to_contain_text(expected)


def test_everything_is_done_by_keyboard(page):
    page.keyboard.type("draw")  # the box has the focus at first
    page.keyboard.press("Enter")
    caption = said(page, "bot").locator("figcaption")
    expect(caption).to_contain_text("seed")
    wait_for_the_end(page)
    first = caption.inner_text()
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == "Retry":
            break
    page.keyboard.press("Enter")
    expect(caption).not_to_have_text(first)
