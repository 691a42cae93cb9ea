"""Several conversations of one browser, and what it keeps, in a real Chromium."""

import json
import re
import zipfile

import pytest

from tiny_visits import ask, box, example, expect, media, open_fold, open_in, option, said, set_option, value_shown, words

pytestmark = pytest.mark.slow


def past(page):
    open_fold(page, "Conversations")
    return page.get_by_role("radio")


def titles(page) -> list[str]:
    open_fold(page, "Conversations")
    return page.locator("#conversations label").all_inner_texts()


def begin_another(page) -> None:
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_text("begin with an example")).to_be_visible()


def test_a_new_conversation_leaves_the_others_in_the_list(page):
    ask(page, "first")
    begin_another(page)
    ask(page, "second")
    expect(past(page)).to_have_count(2)
    assert titles(page) == ["second", "first"]
    past(page).nth(1).click()
    expect(words(page, "user")).to_have_text(["first"])
    ask(page, "third")
    page.reload()
    expect(words(page, "user")).to_have_text(["first", "third"])
    expect(past(page)).to_have_count(2)
    assert titles(page) == ["second", "first"]


def test_what_is_cleared_can_be_taken_back_from_the_list(page):
    ask(page, "hello")
    page.get_by_role("button", name="Clear").click()
    expect(words(page, "user")).to_have_count(0)
    expect(past(page)).to_have_count(2)
    page.reload()
    expect(page.get_by_text("begin with an example")).to_be_visible()
    expect(past(page)).to_have_count(2)
    past(page).nth(1).click()
    expect(words(page, "user")).to_have_text(["hello"])


def test_an_answer_goes_on_while_the_page_shows_another_conversation(page):
    set_option(page, "Steps", "300")
    box(page).fill("draw")
    box(page).press("Enter")
    said(page, "bot").locator("progress").wait_for()
    begin_another(page)
    expect(said(page, "bot")).to_have_count(0)
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    past(page).nth(1).click()
    assert value_shown(media(page, "bot", "image"), "image") == 32


def test_a_conversation_is_deleted_with_its_files_after_a_question(page, served):
    ask(page, "draw")
    conversation = served[0].store.get(page.evaluate("window.nextgptConversation"))
    begin_another(page)
    past(page).nth(1).click()
    expect(words(page, "user")).to_have_text(["draw"])
    page.get_by_role("button", name="Delete", exact=True).click()
    assert conversation.folder.exists()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("begin with an example")).to_be_visible()
    assert not conversation.folder.exists()
    page.reload()
    expect(page.get_by_text("begin with an example")).to_be_visible()


def test_a_conversation_that_is_gone_meanwhile_is_told(page, served):
    ask(page, "hello")
    gone = served[0].store.get(page.evaluate("window.nextgptConversation"))
    begin_another(page)
    ask(page, "here")
    served[0].store.delete(gone)
    past(page).nth(1).click()
    expect(page.locator("#refusal").get_by_role("alert")).to_contain_text("this conversation is not kept here")
    ask(page, "still here")
    expect(words(page, "user")).to_have_text(["here", "still here"])


def test_another_browser_sees_none_of_them(page, visit):
    ask(page, "hello")
    other = visit()
    expect(past(other)).to_have_count(1)
    assert titles(other) == ["New conversation"]


def test_examples_are_offered_where_nothing_comes_before_them(page):
    expect(example(page, "text → video")).to_be_visible()
    ask(page, "draw a violin")
    expect(example(page, "text → video")).to_have_count(0)
    begin_another(page)
    expect(example(page, "text → video")).to_be_visible()


def test_options_are_kept_over_a_reload_and_for_other_tabs(page, served):
    set_option(page, "Steps", "7")
    page.get_by_role("checkbox", name="audio").uncheck()
    page.wait_for_timeout(300)  # the browser writes them down
    page.reload()
    for tab in (page, open_in(page.context, served[1])):
        expect(option(tab, "Steps")).to_have_value("7")
        expect(tab.get_by_role("checkbox", name="audio")).not_to_be_checked()
        expect(tab.get_by_role("checkbox", name="image")).to_be_checked()


def test_another_tab_is_another_conversation(page, served):
    ask(page, "first tab")
    other = open_in(page.context, served[1])
    expect(other.get_by_text("begin with an example")).to_be_visible()
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


def test_an_exported_conversation_can_be_imported_elsewhere(page, visit, tmp_path):
    ask(page, "draw")
    open_fold(page, "Conversations")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export", exact=True).click()
    download.value.save_as(tmp_path / "conversation.zip")
    other = visit()
    ask(other, "what was here before")
    open_fold(other, "Conversations")
    with other.expect_file_chooser() as chooser:
        other.get_by_role("button", name="Import").click()
    chooser.value.set_files(tmp_path / "conversation.zip")
    assert value_shown(media(other, "bot", "image"), "image") == 32
    expect(said(other, "user")).to_have_text(re.compile("draw"))
    expect(other.locator("#conversations").get_by_role("radio")).to_have_count(2)
    ask(other, "and again")


def test_every_export_is_of_the_moment(page):
    open_fold(page, "Conversations")
    for questions in (1, 2):
        ask(page, "hello")
        with page.expect_download() as download:
            page.get_by_role("button", name="Export", exact=True).click()
        with zipfile.ZipFile(download.value.path()) as packed:
            assert len(json.loads(packed.read("messages.json"))["messages"]) == 2 * questions
