"""Dialogues from web pages, as ShareGPT's: HTML becomes Markdown, other languages go, what is too long is split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextgpt.__main__ import main
from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.train.data.cleaning import Cleaning, html_to_markdown, language_of, split_long
from nextgpt.train.data.markers import Unusable

PAGE_CODE = (
    '<p>Run:</p><pre><div class="bg-black"><div><span>python</span><button>Copy code</button></div>'
    '<div><code class="hljs language-python"><span class="kw">for</span> i in x:\n    print(i &lt; 3)\n</code></div>'
    "</div></pre>"
)


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("<p>One <b>two</b> <em>three</em>.</p><p>Four &amp; five</p>", "One **two** *three*.\n\nFour & five"),
        ("<h2>Head</h2>Text<br>more<hr>", "## Head\n\nText\nmore\n\n---"),
        ("<ul><li>a</li><li><p>b</p><ol><li>c</li><li>d</li></ol></li></ul>", "- a\n- b\n\n  1. c\n  2. d"),
        ("<ul>\n  <li>a</li>\n  <li>b\n  <li>c</li>\n</ul>", "- a\n- b\n- c"),
        ("<ol><li>a<pre><code>x\n\n\ny</code></pre></li></ol>", "1. a\n\n   ```\n   x\n\n\n   y\n   ```"),
        ("<pre><code>one</code>\n<code>two</code></pre>", "```\none\ntwo\n```"),
        ("<pre>$ run <code>x</code></pre>", "```\n$ run x\n```"),
        ('<a href="https://example.com">here</a> and <a name="x">there</a>', "[here](https://example.com) and there"),
        ("<blockquote><p>one</p><p>two</p></blockquote>", "> one\n>\n> two"),
        ("<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("<table>\n<tr>\n<td>1<br>2</td>\n<td><p>3</p></td>\n</tr>\n</table>", "| 1 2 | 3 |\n| --- | --- |"),
        ("a <img src='a.png' alt='cat'> <header>b</header>c", "a cat\n\nb\n\nc"),
        (PAGE_CODE, "Run:\n\n```python\nfor i in x:\n    print(i < 3)\n```"),
        ("```python\nCopy code\nx = 1\n```", "```python\nx = 1\n```"),
        ("a<script>alert(1)</script><!-- note -->b <div>c</div>", "ab\n\nc"),
        ("Use <code>a &lt; b</code> <i>so</i>.", "Use `a < b` *so*."),
        ("a<button><svg></button>b<select><form><select>x</select></form></select> <b>c</b>", "ab **c**"),
    ],
)
def test_html_becomes_markdown(html, markdown) -> None:
    assert html_to_markdown(html) == markdown


@pytest.mark.parametrize(
    "text",
    [
        "If 3 < 4 and 5 > 4, then &amp; stays.",
        "A `<div>` in code, and ```html\n<p>a block</p>\n``` too.",
        "List<String> of <image> and <your name>",
    ],
)
def test_what_is_no_markup_stays(text) -> None:
    assert html_to_markdown(text) == text


def test_code_and_unknown_tags_stay_beside_markup() -> None:
    text = "<p>Write `<b>` for <image> in a Map<K, V>:</p>\n```html\n<p>x</p>\n```"
    assert html_to_markdown(text) == "Write `<b>` for <image> in a Map<K, V>:\n\n```html\n<p>x</p>\n```"


def test_markdown_beside_markup_keeps_its_lines_and_marks() -> None:
    text = "One_two *three*  \nfour.\n\n- a\n    - b\n\n```\nx  \n\n\ny\n```\n\n| a |\n| --- |\n"
    assert html_to_markdown(text + "<b>So</b> it is.") == text + "**So** it is."


def test_html_that_is_nested_too_deep_is_said() -> None:
    with pytest.raises(Unusable, match="nested too deep"):
        html_to_markdown("<div>" * 2000 + "x" + "</div>" * 2000)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the best way to learn how a clock works?", "en"),
        ("Wie lernt man am besten, wie eine Uhr funktioniert? Das ist nicht schwer.", "de"),
        ("Quelle est la meilleure façon d'apprendre comment une horloge fonctionne ?", "fr"),
        ("¿Cuál es la mejor manera de aprender cómo funciona un reloj?", "es"),
        ("Qual é a melhor forma de aprender como um relógio funciona? Não sei.", "pt"),
        ("Wat is de beste manier om te leren hoe een klok werkt?", "nl"),
        ("Как лучше всего узнать, как работают часы?", "ru"),
        ("时钟是怎么工作的？", "zh"),
        ("時計はどのように動きますか。", "ja"),
        ("시계는 어떻게 작동하나요?", "ko"),
        ("```python\nfor the in of: pass\n``` 12 345", None),
        ("Xqz vvrt.", None),
    ],
)
def test_a_language_is_told_by_script_and_frequent_words(text, language) -> None:
    assert language_of(text) == language


def turns(*texts: str) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def test_a_long_conversation_is_cut_before_a_question_and_each_piece_keeps_the_system_text() -> None:
    def length_of(messages: list[dict]) -> int:
        return sum(len(message["content"]) for message in messages)

    system = [{"role": "system", "content": "sy"}]
    messages = [*system, *turns("aa", "aa", "bb", "bb", "cccc", "cccc")]
    assert split_long(messages, length_of, 100) == [messages]
    assert split_long(messages, length_of, 10) == [
        [*system, *turns("aa", "aa", "bb", "bb")],
        [*system, *turns("cccc", "cccc")],
    ]
    with pytest.raises(Unusable, match="one exchange of it has more than 9 tokens"):
        split_long(messages, length_of, 9)


def test_sharegpt_is_cleaned_on_the_way_and_what_is_left_out_is_counted(tmp_path: Path, capsys) -> None:
    def record(*texts: str) -> dict:
        sides = ("human", "gpt")
        return {"conversations": [{"from": sides[i % 2], "value": text} for i, text in enumerate(texts)]}

    long = " and this is what the answer to it would be about" * 12
    records = [
        record("What is salt?", "<p>It is a <b>mineral</b> that you can eat.</p>"),
        record("Was ist Salz?", "Das ist ein Mineral, das man essen kann und das auch im Meer ist."),
        record("What is it?", "It" + long, "And what is that?", "It" + long),
        record("What is it?", "<script>x</script>"),
    ]
    source, out = tmp_path / "sharegpt.json", tmp_path / "out.jsonl"
    source.write_text(json.dumps(records))
    options = ["--html", "--languages", "en", "--max-length", "200"]
    assert main(["data", "convert", str(source), "-o", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert "3 conversations" in said and "its language is de" in said and "an empty assistant turn" in said
    found = [json.loads(line)["messages"] for line in out.read_text().splitlines()]
    assert found[0] == turns("What is salt?", "It is a **mineral** that you can eat.")
    assert [len(messages) for messages in found] == [2, 2, 2]
    assert found[1] + found[2] == turns("What is it?", "It" + long, "And what is that?", "It" + long)


def test_a_language_that_cannot_be_told_is_refused_by_name() -> None:
    with pytest.raises(UserInputError, match="the language xx cannot be told from others; known are ar, de, el, en"):
        Cleaning(languages=("en", "xx"))


def test_a_model_that_is_not_there_is_said_before_anything_is_converted() -> None:
    with pytest.raises(NextGPTError, match="no-such-model"):
        Cleaning(max_length=100, model="./no-such-model")
