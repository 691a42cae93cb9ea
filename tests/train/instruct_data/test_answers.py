"""What a teacher wrote: what is taken as it is, what is cleaned, what is dropped."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from nextgpt.train.instruct_data.answers import clean_text, is_public_url, parse_json, to_message
from nextgpt.train.instruct_data.jobs import Dropped, Job
from nextgpt.train.instruct_data.material import CaptionedMedia, Medium, Prompts


@pytest.mark.parametrize(
    ("text", "expected", "what"),
    [
        ("It is 3 < 4 and List<int>.", "It is 3 < 4 and List<int>.", None),
        ("Write `<b>` in ```\n<div>x</div>\n``` so.", "Write `<b>` in ```\n<div>x</div>\n``` so.", None),
        ("See https://en.wikipedia.org/wiki/Salt.", "See https://en.wikipedia.org/wiki/Salt.", None),
        ("It is salt.<|im_end|>\n</s>", "It is salt.", "control tokens"),
        ("<|assistant|> It is salt.", "It is salt.", "control tokens"),
        ("It is salt. [IMG0] [IMG1]", "It is salt.", "control tokens"),
        (f"It is{' ' * 20_000}salt.", f"It is{' ' * 20_000}salt.", None),  # at once: nothing is looked for twice
        ("Import the data: javascript: a language.", "Import the data: javascript: a language.", None),
        ("<p>It is <b>salt</b>.</p><ul><li>white</li></ul>", "It is **salt**.\n\n- white", "HTML"),
    ],
)
def test_a_text_is_cleaned_of_what_is_no_part_of_it(text, expected, what) -> None:
    cleaned: Counter[str] = Counter()
    assert clean_text(text, cleaned) == expected
    assert +cleaned == ({what: 1} if what else {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("It is salt.<|im_end|>\n<|im_start|>user\nAnd this?", "control tokens"),
        ("It is salt.\n### Human: And this?", "control tokens"),
        ("Here: [AUD0] [AUD1] and more.", "control tokens"),
        ("<think>What is it? It is salt.", "reasoning that does not end"),
        ("Run <script>alert(1)</script> it.", "loads or runs"),
        ("<p>Run &lt;script src=x&gt;</p>", "loads or runs"),
        ("<p>Salt.&lt;|im_end|&gt; &lt;|im_start|&gt;user</p> And this?", "control tokens"),
        ("<a href='javascript:alert(1)'>Salt</a>", "loads or runs"),
        ("Open [salt]( JavaScript:alert(1)).", "loads or runs"),
        ("Here: ![salt](https://example.com/salt.png)", "medium by address"),
        ("Ask http://192.168.1.20/admin first.", "private address"),
        ("Ask http://localhost:8000/v1.", "private address"),
        ("Ask http://wiki/page.", "private address"),
        ("Ask http://127.1/page.", "private address"),
        ("Ask http://0x7f.0.0.1/page.", "private address"),
        ("Get https://example.com/x?a=1&X-Amz-Signature=0.", "private address"),
        ("Ask https://build.corp.internal/x.", "private address"),
        ("Open file:///home/anna/salt.txt.", "private address"),
        ("Get https://anna:pass@example.com/x.", "private address"),
        ("Get https://example.com/x?access_token=abc.", "private address"),
        ("It is \ud83d.", "half a character"),
        ("<b>" * 2000 + "salt", "nested too deep"),
    ],
)
def test_a_text_that_cannot_be_learned_is_dropped(text, reason) -> None:
    with pytest.raises(Dropped, match=reason):
        clean_text(text, Counter())


def test_addresses_on_the_public_internet_are_public_however_they_are_written() -> None:
    assert (
        is_public_url("https://example.com")
        and is_public_url("http://8.8.8.8/")
        and is_public_url("https://[2606:4700::1111]/")
    )
    assert (
        not is_public_url("http://[::1]/")
        and not is_public_url("http://10.0.0.1")
        and not is_public_url("http://169.254.169.254/")
    )


def test_json_is_found_between_words_and_in_fences_and_nothing_else_is_taken_for_it() -> None:
    assert parse_json('Sure!\n```json\n{"a": {"b": 1}}\n``` Good luck {') == {"a": {"b": 1}}
    assert parse_json('In place of {name} and {}: {"a": 1}') == {"a": 1}
    for broken in ("no object", '{"a": ', "[1, 2]", '{"a" 1}', "{" * 5000):
        with pytest.raises(Dropped, match="malformed JSON"):
            parse_json(broken)


def job(*media: Medium, shown=("image", "audio"), made=("image",)) -> Job:
    return Job(0, random.Random(0), [], [], CaptionedMedia(list(media)), Prompts(), None, print, list(shown), list(made))


def test_media_of_the_user_come_from_the_set_and_those_of_the_assistant_keep_their_caption() -> None:
    given = job(Medium("image", "a red barn in the snow", "barn.png"))
    asked = to_message("user", "[image: red barn in snow] What is this?", given)
    assert asked["content"] == [{"type": "image", "path": "barn.png"}, {"type": "text", "text": "What is this?"}]
    answered = to_message("assistant", "Like this: [image: a barn in summer] Or so: [Image: a red barn in the snow]", given)
    assert answered["content"] == [
        {"type": "text", "text": "Like this:"},
        {"type": "image", "caption": "a barn in summer"},
        {"type": "text", "text": "Or so:"},
        {"type": "image", "caption": "a red barn in the snow", "path": "barn.png"},
    ]
    assert to_message("assistant", "A barn [red].", given) == {"role": "assistant", "content": "A barn [red]."}


@pytest.mark.parametrize(
    ("role", "text", "reason"),
    [
        ("user", "[image: a blue whale]", "not in the captioned set"),
        ("user", "[video: a red barn in the snow]", "a video, which the model does not take"),
        ("assistant", "[audio: a bell]", "a sound, which the model does not make"),
        ("assistant", "[image: ]", "without a caption"),
        ("assistant", "<|im_end|> ", "an empty turn"),
    ],
)
def test_media_that_cannot_be_there_drop_the_turn(role, text, reason) -> None:
    with pytest.raises(Dropped, match=reason):
        to_message(role, text, job(Medium("image", "a red barn in the snow", "barn.png")))
