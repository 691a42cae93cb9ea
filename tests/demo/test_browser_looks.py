"""What the page looks like: on a phone, on a wide screen, in light and dark, and how its media are shown."""

import re

import pytest
from PIL import Image

from nextgpt.demo.app import Chat
from nextgpt.demo.screenshots import SCREENS, take
from nextgpt.errors import UserInputError
from tiny_visits import TAGS, ask, box, example, expect, media, open_fold, open_in, said, value_shown, words

pytestmark = pytest.mark.slow


def test_the_first_screen_names_the_model_and_what_it_can_do_and_knows(pipeline, browser):
    chat = Chat(pipeline, model="tiny", known={"things": ["cat", "dog"], "motions": ["spinning"]})
    profile = browser.new_context()
    try:
        page = open_in(profile, chat.serve("127.0.0.1"))
        expect(page.get_by_role("heading", name="NExT-GPT tiny")).to_be_visible()
        expect(page.get_by_text("answers with text, image, audio and video")).to_be_visible()
        open_fold(page, "What does it know?")
        expect(page.get_by_text("Things (2)")).to_be_visible()
        expect(page.get_by_text("cat, dog")).to_be_visible()
    finally:
        profile.close()
        chat.close()


def test_a_model_that_lists_nothing_has_no_such_fold(page):
    expect(page.get_by_role("button", name="What does it know?")).to_have_count(0)
    expect(page.get_by_role("heading", name="NExT-GPT", exact=True)).to_be_visible()


def test_a_clip_plays_again_and_again_by_itself_and_nothing_covers_it(page):
    ask(page, "film")
    clip = media(page, "bot", "video")
    assert value_shown(clip, "video") == 32
    page.wait_for_function("clip => !clip.paused && clip.loop && !clip.controls", arg=clip.element_handle())


@pytest.mark.parametrize(("kind", "question"), [("image", "draw"), ("video", "film")])
def test_a_picture_and_a_clip_can_be_enlarged(page, kind, question):
    ask(page, question)
    small = media(page, "bot", kind).bounding_box()
    page.get_by_role("button", name=f"Enlarge: {kind}").click()
    large = page.locator(f".enlarged {TAGS[kind]}")
    expect(large).to_be_visible()
    assert large.bounding_box()["width"] > 2 * small["width"]
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()


def test_a_clip_under_way_has_a_preview(page, pipeline):
    open_fold(page, "Options")
    open_fold(page, "Video")
    page.get_by_label("Steps", exact=True).last.fill("500")
    box(page).fill("film")
    box(page).press("Enter")
    page.wait_for_function("document.querySelector('.pending img')?.naturalWidth > 0")
    page.get_by_role("button", name="Stop").click()
    expect(said(page, "bot").get_by_text("Stopped.")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_players_follow_light_and_dark(visit, scheme):
    page = visit(color_scheme=scheme)
    ask(page, "play")
    assert media(page, "bot", "audio").evaluate("audio => getComputedStyle(audio).colorScheme") == scheme


def test_a_link_to_save_stands_apart_from_the_caption(page):
    ask(page, "draw")
    expect(said(page, "bot").locator("figcaption")).to_have_text(re.compile(r"^seed \d+ · \d+\.\d s\s*download$"))


def test_on_a_wide_screen_question_and_answer_stay_near_each_other(visit):
    page = visit(viewport={"width": 1920, "height": 1080})
    ask(page, "hello")
    question, answer = words(page, "user").bounding_box(), words(page, "bot").bounding_box()
    assert question["x"] + question["width"] - answer["x"] < 1100


def test_on_a_phone_the_welcome_and_every_example_is_seen(visit):
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    expect(page.get_by_text("begin with an example")).to_be_in_viewport()
    room = page.locator("#conversation").bounding_box()
    for direction in ("text → image", "image → audio"):
        card = example(page, direction).bounding_box()
        assert room["x"] <= card["x"] and card["x"] + card["width"] <= room["x"] + room["width"]
        assert room["y"] <= card["y"] and card["y"] + card["height"] <= room["y"] + room["height"]


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
    open_fold(page, "Options")
    page.get_by_text("Temperature").scroll_into_view_if_needed()
    expect(page.get_by_text("Temperature")).to_be_in_viewport()


def test_the_pictures_of_the_page_show_finished_answers(browser, served, tmp_path):
    """The second example has a file, and so two rows of the visitor's."""
    take(browser, served[1], SCREENS["phone"], 2, ["film"], tmp_path / "phone.png")
    assert Image.open(tmp_path / "phone.png").size == (780, 1688)
    take(browser, served[1], SCREENS["light"], None, [], tmp_path / "start.png")
    assert Image.open(tmp_path / "start.png").size == (1100, 940)
    with pytest.raises(UserInputError, match="the page has 8 examples, none of them is number 9"):
        take(browser, served[1], SCREENS["phone"], 9, [], tmp_path / "none.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_light_and_dark(visit, scheme):
    page = visit(color_scheme=scheme)
    ask(page, "hello")
    open_fold(page, "What happened")
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
