"""What the page refuses, in a real browser: it is told beside the box, and the conversation stays as it is."""

import asyncio
import re

import pytest

from nextgpt.demo.page import Page
from nextgpt.events import Finished, Reply, TextDelta
from tiny_visits import (
    FIXTURES,
    PICTURE,
    ask,
    box,
    expect,
    media,
    option,
    said,
    set_option,
    value_shown,
    wait_for_the_end,
    words,
)

pytestmark = pytest.mark.slow


def refusal(page):
    return page.locator("#refusal").get_by_role("alert")


def attached(page):
    return page.locator("#message").get_by_role("button", name=re.compile("Remove|Delete"))


def drop(page, place: str, *files: tuple[str, str, bytes]) -> None:
    """Drops files of these names, types and contents on a place of the page."""
    data = page.evaluate_handle(
        """files => {
            const data = new DataTransfer();
            files.forEach(([name, type, bytes]) => data.items.add(new File([new Uint8Array(bytes)], name, {type})));
            return data;
        }""",
        [[name, kind, list(content)] for name, kind, content in files],
    )
    page.dispatch_event(place, "drop", {"dataTransfer": data})


def is_as_it_was(page, questions: int) -> None:
    """Nothing covers the conversation, and nothing has come to it."""
    expect(words(page, "user")).to_have_count(questions)
    expect(words(page, "user").last).to_be_visible()
    expect(page.get_by_text("Error", exact=True)).to_have_count(0)


def test_there_is_nothing_to_send_at_first(page):
    send = page.get_by_role("button", name="Submit")
    expect(send).to_be_hidden()
    box(page).fill("hello")
    expect(send).to_be_visible()
    box(page).fill("")
    expect(send).to_be_hidden()
    page.locator("#message input[type=file]").set_input_files(PICTURE)
    expect(send).to_be_visible()


def test_an_empty_message_is_refused_beside_the_box(page):
    ask(page, "hello")
    box(page).press("Enter")
    expect(refusal(page)).to_have_text("the message is empty: write something or attach a file")
    is_as_it_was(page, questions=1)
    page.wait_for_timeout(500)  # a person is slower, too: the refusal empties the box as it comes
    ask(page, "hello again")
    expect(refusal(page)).to_have_count(0)


def test_what_is_sent_as_soon_as_the_page_is_ready_is_not_lost(page, monkeypatch):
    follow = Page._follow

    async def lingering(self, *given):
        async for update in follow(self, *given):
            yield update
        await asyncio.sleep(1)  # as on a busy machine: the answer stands there, its event is not over

    monkeypatch.setattr(Page, "_follow", lingering)
    ask(page, "hello")
    ask(page, "hello again")


def test_what_is_no_number_is_refused_beside_the_box(page):
    ask(page, "hello")
    set_option(page, "Steps", "abc")
    box(page).fill("draw")
    box(page).press("Enter")
    expect(refusal(page)).to_contain_text("Steps is 'abc': expected a whole number")
    is_as_it_was(page, questions=1)
    expect(box(page)).to_have_value("draw")
    page.get_by_role("button", name="Retry").click()
    expect(refusal(page)).to_contain_text("Steps is 'abc'")
    is_as_it_was(page, questions=1)
    set_option(page, "Steps", "2")
    box(page).press("Enter")
    assert value_shown(media(page, "bot", "image"), "image") == 32


def test_a_refused_file_is_named_and_changes_nothing(page, tmp_path):
    ask(page, "hello")
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    page.locator("#message input[type=file]").set_input_files(broken)
    expect(attached(page)).to_have_count(1)
    box(page).fill("what is this?")
    box(page).press("Enter")
    expect(refusal(page)).to_contain_text("broken.png: not a picture, sound or video that can be read")
    expect(box(page)).to_have_value("what is this?")
    is_as_it_was(page, questions=1)


def test_a_file_of_another_kind_is_not_offered_and_refused_beside_the_box(page, tmp_path):
    ask(page, "hello")
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture")
    chooser = page.locator("#message input[type=file]")
    expect(chooser).to_have_attribute("accept", re.compile(r"image/\*.*video/\*"))
    chooser.set_input_files([notes, PICTURE])
    expect(refusal(page)).to_have_text("notes.txt: not attached, for this model takes image, audio and video files")
    expect(attached(page)).to_have_count(1)  # the picture
    expect(page.get_by_text("Invalid file type")).to_have_count(0)
    is_as_it_was(page, questions=1)
    ask(page, "what is this?")
    expect(refusal(page)).to_have_count(0)
    chooser.set_input_files(notes)
    expect(refusal(page)).to_contain_text("notes.txt")
    expect(attached(page)).to_have_count(0)


def test_a_kind_that_goes_by_the_ending_of_its_files_is_attached(page):
    """As kinds that a program brings do where it says no more."""
    page.eval_on_selector("#message input[type=file]", "input => input.setAttribute('accept', '.png')")
    page.locator("#message input[type=file]").set_input_files(PICTURE)
    expect(attached(page)).to_have_count(1)
    expect(refusal(page)).to_have_count(0)


@pytest.mark.parametrize("place", ["#conversation", "#message [role=group]"])
def test_a_dropped_file_of_another_kind_is_refused_beside_the_box(page, place):
    ask(page, "hello")
    drop(page, place, ("notes.txt", "text/plain", b"no picture"), ("shapes.png", "image/png", PICTURE.read_bytes()))
    expect(refusal(page)).to_have_text("notes.txt: not attached, for this model takes image, audio and video files")
    expect(attached(page)).to_have_count(1)
    expect(page.get_by_text(re.compile("rejected|Invalid file"))).to_have_count(0)
    is_as_it_was(page, questions=1)


def test_a_long_text_does_not_become_a_file_when_it_is_pasted(page):
    ask(page, "hello")
    box(page).evaluate(
        """(box, words) => {
            const data = new DataTransfer();
            data.setData('text', words);
            box.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true}));
        }""",
        "long " * 4000,
    )
    expect(page.get_by_text("Invalid file type")).to_have_count(0)
    expect(attached(page)).to_have_count(0)


def test_a_refused_edit_leaves_the_old_words(page):
    ask(page, "hello")
    page.get_by_role("button", name="Edit").first.click()
    said(page, "user").get_by_role("textbox").fill("long " * 1000)
    page.get_by_role("button", name="Submit").first.click()
    expect(refusal(page)).to_contain_text("tokens")
    expect(words(page, "user")).to_have_text("hello")


def test_an_option_that_the_decoder_refuses_changes_nothing(page):
    set_option(page, "Height, pixels", "7")
    box(page).fill("draw")
    box(page).press("Enter")
    expect(refusal(page)).to_contain_text("image options")
    expect(said(page, "user")).to_have_count(0)
    set_option(page, "Height, pixels", "")
    ask(page, "draw")
    assert value_shown(media(page, "bot", "image"), "image") == 32


def test_a_file_dropped_beside_the_box_is_attached(page):
    drop(page, "#conversation", ("shapes.png", "image/png", PICTURE.read_bytes()))
    expect(attached(page)).to_have_count(1)
    ask(page, "what is this?")
    assert value_shown(media(page, "user", "image"), "image") == 500


def test_a_message_of_files_alone_can_be_edited(page, pipeline):
    page.locator("#message input[type=file]").set_input_files([PICTURE, FIXTURES / "sweep.wav"])
    expect(attached(page)).to_have_count(2)
    box(page).press("Enter")
    wait_for_the_end(page)
    page.get_by_role("button", name="Edit").first.click()
    said(page, "user").get_by_role("textbox").last.fill("Draw it.")
    page.get_by_role("button", name="Submit").first.click()
    assert value_shown(media(page, "bot", "image"), "image") == 32
    assert [part["type"] for part in pipeline.asked[-1]["content"]] == ["image", "audio", "text"]


def test_a_kind_that_is_switched_off_is_told_beside_the_answer(page, pipeline, monkeypatch):
    given = {}

    def answer(messages, **options):
        given.update(options)
        content = [{"type": "text", "text": "Here is a horse."}]
        yield TextDelta("Here is a horse.")
        yield Finished(Reply({"role": "assistant", "content": content}, switched_off=["image"]))

    monkeypatch.setattr(pipeline, "stream", answer)
    option(page, "Temperature")
    page.get_by_role("checkbox", name="image").uncheck()
    expect(page.get_by_role("checkbox", name="text")).to_have_count(0)
    ask(page, "draw a horse")
    assert set(given["output_modalities"]) == {"text", "audio", "video"}
    expect(said(page, "bot").get_by_role("alert")).to_have_text("Not made, because switched off: image.")
