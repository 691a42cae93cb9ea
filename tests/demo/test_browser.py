"""The page in a real headless Chromium, by what a visitor sees there: pictures that decode, players that play.

The model is tiny and random; a question that says draw, play or film gets a picture, a sound or a clip.
"""

import json
import re
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from nextgpt.demo.screenshots import SCREENS, take
from nextgpt.errors import UserInputError

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity" / "media"
PICTURE = FIXTURES / "shapes.png"  # 500 x 340
PATIENCE = 60_000  # milliseconds; a busy machine is slow, but the page should get there
SHOWS = {
    "image": "img => img.complete && img.naturalWidth",
    "audio": "audio => audio.readyState >= 1 && audio.duration > 0.1 && audio.duration",
    "video": "video => video.readyState >= 2 && video.duration > 0.1 && video.videoWidth",
}
TAGS = {"image": "img", "audio": "audio", "video": "video"}


@pytest.fixture
def visit(browser, served):
    """Opens the page in a browser profile of its own; gives the tab."""
    profiles = []

    def open_tab(**profile):
        profiles.append(browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | profile)))
        return open_in(profiles[-1], served[1])

    yield open_tab
    for profile in profiles:
        profile.close()


@pytest.fixture
def page(visit):
    return visit()


def open_in(profile, address: str):
    profile.set_default_timeout(PATIENCE)
    page = profile.new_page()
    page.goto(address)
    page.get_by_role("textbox", name="Message").wait_for()
    page.wait_for_function("sessionStorage.getItem('nextgpt-conversation')")
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
    return said(page, who).locator(f"figure.medium:not(.pending) {TAGS[kind]}")


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
    expect(page.get_by_role("button", name="Submit")).to_be_visible()
    expect(said(page, "bot").last).to_be_visible()


def set_option(page, label: str, value: str) -> None:
    """Opens the panel of options with its accordion of pictures, and writes into a box of it."""
    page.get_by_role("button", name="Toggle Sidebar").click()
    field = page.get_by_label(label, exact=True).first
    if not field.is_visible():
        page.get_by_role("button", name=re.compile(r"^Image\b")).click()
    field.fill(value)
    page.get_by_role("button", name="Toggle Sidebar").click()


@pytest.mark.parametrize(
    "direction",
    [
        *("text → image", "image → text", "text → audio", "audio → text"),
        *("text → video", "video → text", "audio → image", "image → audio"),
    ],
)
def test_each_direction_from_the_row_of_examples(page, direction):
    given, answer = direction.split(" → ")
    page.get_by_role("button", name=re.compile(f"^{direction}: ")).click()
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
    order = said(page, "bot").locator("figure.medium > :first-child").evaluate_all("all => all.map(one => one.tagName)")
    assert sorted(order) == ["AUDIO", "IMG", "VIDEO"]
    for kind in TAGS:
        assert value_shown(media(page, "bot", kind), kind)
    page.reload()
    expect(media(page, "bot", "video")).to_be_visible()
    after = said(page, "bot").locator("figure.medium > :first-child").evaluate_all("all => all.map(one => one.tagName)")
    assert after == order


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
    page.get_by_role("button", name=re.compile("^image → text: ")).click()
    expect(words(page, "bot")).not_to_be_empty()
    wait_for_the_end(page)
    page.get_by_role("button", name="Edit").first.click()
    said(page, "user").get_by_role("textbox").last.fill("Draw it.")
    page.get_by_role("button", name="Submit").first.click()
    assert value_shown(media(page, "bot", "image"), "image") == 32
    expect(words(page, "user")).to_have_text(re.compile("Draw it."))
    assert value_shown(media(page, "user", "image"), "image") == 64


def test_clear_empties_the_conversation(page):
    ask(page, "hello")
    page.get_by_role("button", name="Clear").click()
    expect(words(page, "user")).to_have_count(0)
    page.reload()
    expect(page.get_by_text("take an example from below")).to_be_visible()


def test_another_tab_is_another_conversation(page, served):
    ask(page, "first tab")
    other = open_in(page.context, served[1])
    expect(other.get_by_text("take an example from below")).to_be_visible()
    ask(other, "second tab")
    expect(words(other, "user")).to_have_count(1)
    page.reload()
    expect(said(page, "user")).to_have_text(re.compile("first tab"))


def test_a_duplicated_tab_is_another_conversation(page, served):
    ask(page, "first tab")
    stored = "sessionStorage.getItem('nextgpt-conversation')"
    copied = page.evaluate(stored)
    other = page.context.new_page()
    other.add_init_script(f"if (!{stored}) sessionStorage.setItem('nextgpt-conversation', '{copied}')")
    other.goto(served[1])
    other.wait_for_function(f"{stored} && {stored} != '{copied}'")
    ask(other, "second tab")
    for tab, text in ((page, "first tab"), (other, "second tab")):
        tab.reload()
        expect(said(tab, "user")).to_have_text(re.compile(text))


def test_a_refused_file_is_named_and_changes_nothing(page, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    page.locator("#message input[type=file]").set_input_files(broken)
    expect(page.locator("#message").get_by_role("button", name=re.compile("Remove|Delete"))).to_have_count(1)
    box(page).fill("what is this?")
    box(page).press("Enter")
    expect(page.get_by_text("broken.png: not a picture that can be read")).to_be_visible()
    expect(box(page)).to_have_value("what is this?")
    assert said(page, "user").count() == 0


def test_an_error_inside_an_answer_leaves_the_conversation_usable(page):
    set_option(page, "Height, pixels", "7")
    ask(page, "draw")
    expect(said(page, "bot").get_by_role("alert")).to_contain_text("Error: image options")
    set_option(page, "Height, pixels", "")
    page.get_by_role("button", name="Retry").click()
    assert value_shown(media(page, "bot", "image"), "image") == 32


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


def test_an_exported_conversation_can_be_imported_elsewhere(page, visit, tmp_path):
    ask(page, "draw")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export", exact=True).click()
    download.value.save_as(tmp_path / "conversation.zip")
    other = visit()
    with other.expect_file_chooser() as chooser:
        other.get_by_role("button", name="Import").click()
    chooser.value.set_files(tmp_path / "conversation.zip")
    assert value_shown(media(other, "bot", "image"), "image") == 32
    expect(said(other, "user")).to_have_text(re.compile("draw"))
    ask(other, "and again")


def test_every_export_is_of_the_moment(page):
    for questions in (1, 2):
        ask(page, "hello")
        with page.expect_download() as download:
            page.get_by_role("button", name="Export", exact=True).click()
        with zipfile.ZipFile(download.value.path()) as packed:
            assert len(json.loads(packed.read("messages.json"))["messages"]) == 2 * questions


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
    page.get_by_role("button", name="What happened").click()
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


def test_a_phone_has_no_sideways_scrolling_and_everything_in_reach(visit):
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    ask(page, "draw and play and film")
    for kind in TAGS:
        element = media(page, "bot", kind)
        assert value_shown(element, kind)
        edges = element.bounding_box()
        assert 0 <= edges["x"] and edges["x"] + edges["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    edges = box(page).bounding_box()
    assert 0 <= edges["x"] and edges["x"] + edges["width"] <= 390 and edges["y"] + edges["height"] <= 844
    page.get_by_role("button", name="Toggle Sidebar").click()
    expect(page.get_by_text("Temperature")).to_be_in_viewport()


def test_the_pictures_of_the_page_show_finished_answers(browser, served, tmp_path):
    """The second example has a file, and so two rows of the visitor's."""
    take(browser, served[1], SCREENS["phone"], [2, 3], tmp_path / "phone.png")
    assert Image.open(tmp_path / "phone.png").size == (780, 1688)
    with pytest.raises(UserInputError, match="the page has 8 examples, none of them is number 9"):
        take(browser, served[1], SCREENS["phone"], [9], tmp_path / "none.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_light_and_dark(visit, scheme):
    page = visit(color_scheme=scheme)
    ask(page, "hello")
    page.get_by_role("button", name="What happened").click()
    for where in ("#title p", "#conversation .user .md", "#conversation .bot .md", "#happened td >> nth=0"):
        assert contrast(page.locator(where).first) >= 4.5, f"{where}: WCAG asks for 4.5 at least"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(background) < 0.2) == (scheme == "dark")


def contrast(element) -> float:
    """Of an element's words to what lies behind them (WCAG 2.2)."""
    colours = element.evaluate("""element => {
        const layers = [];
        let opacity = 1;
        for (let node = element; node; node = node.parentElement) {
            layers.push(getComputedStyle(node).backgroundColor);
            opacity *= getComputedStyle(node).opacity;
        }
        return [getComputedStyle(element).color, opacity, layers];
    }""")
    words, opacity, layers = colours
    behind = (255.0, 255.0, 255.0)
    for layer in reversed(layers):
        behind = over(parsed(layer), behind)
    *rgb, alpha = parsed(words)
    light, dark = sorted((of_rgb(over((*rgb, alpha * opacity), behind)), of_rgb(behind)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def parsed(colour: str) -> tuple[float, ...]:
    numbers = [float(number) for number in re.findall(r"[\d.]+", colour)]
    return (*numbers, 1.0) if len(numbers) == 3 else tuple(numbers)


def over(colour: tuple[float, ...], behind: tuple[float, ...]) -> tuple[float, ...]:
    *rgb, alpha = colour
    return tuple(alpha * a + (1 - alpha) * b for a, b in zip(rgb, behind, strict=True))


def luminance(colour: str) -> float:
    return of_rgb(parsed(colour)[:3])


def of_rgb(rgb: tuple[float, ...]) -> float:
    linear = [c / 12.92 if (c := value / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for value in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
