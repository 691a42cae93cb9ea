"""Cleans conversations that were taken from web pages, as Vicuna's were: HTML to Markdown, one language, not too long."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bs4 import BeautifulSoup, NavigableString, Tag
from markdownify import MarkdownConverter

from nextgpt.errors import UserInputError
from nextgpt.train.data.markers import Unusable, texts_of

# What a page's own markup is told by; any other `<word>` is text. `<s>` is left out: it is mostly a control token.
_BLOCKS = "header footer main aside figure details summary center".split()  # which the library does not know as such
_DROPPED = "script style head button svg iframe object noscript template form select".split()  # with what is in them
_PLAIN = (
    "p div section article figcaption table caption thead tbody tfoot tr td th ul ol li dl dt dd b strong i em del strike u "
    "sub sup span font small big a br hr img pre code blockquote html body h1 h2 h3 h4 h5 h6 input meta link"
).split()
_NAMES = "|".join([*_BLOCKS, *_DROPPED, *_PLAIN])
_MARKUP = rf"/?(?:{_NAMES})(?:\s[^<>]*)?/?>|!--.*?-->"
_TAG = re.compile(f"<(?:{_MARKUP})", re.IGNORECASE | re.DOTALL)
_NO_TAG = re.compile(f"<(?!{_MARKUP}|!doctype\\b)", re.IGNORECASE | re.DOTALL)
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_HELD = "\ue000{}\ue001"  # stands for a piece of code; from the private use area
_CODE_LANGUAGE = re.compile(r"\blanguage-([\w+#.-]+)")
_COPY_CODE = re.compile(r"(```[^\n`]*?)\s*Copy code[ \t]*\n?", re.IGNORECASE)  # the button of ChatGPT's page

# Frequent words that mean little by themselves: they tell languages of one script apart.
FUNCTION_WORDS = {
    language: frozenset(listed.split())
    for language, listed in {
        "en": "the of and to a in is it that you for was on are with as i be at have this not or from by but what an my can "
        "your which do how will would there their they we if me he she his her so no yes please about into than then "
        "were been had has did does could should these those who when where why them him its our us am also just only very "
        "any some such both each more most other out up again here",
        "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er "
        "hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber ich wir was",
        "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec ou son "
        "aux être cette je vous nous mais comme tout leur y elle ses ces était on quel quelle c'est",
        "es": "de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya o este sí porque "
        "esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos qué es son",
        "it": "di e che la il un a è per in una mi sono ho non ma lo ha le si ti i con cosa se io come da ci no questo qui "
        "del della nel dei gli più al anche alla sua suo delle",
        "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu "
        "sua ou ser quando muito há nos já está eu também só pelo pela até isso você",
        "nl": "de en van ik te dat die in een hij het niet zijn is was op aan met als voor had er maar om hem dan zou of "
        "wat mijn men dit zo door over ze zich bij ook tot je mij uit der daar haar naar heb hoe heeft",
        "sv": "och i att det som en på är av för med den till inte om har de ett jag var så men vi man från hur kan där när "
        "nu ska eller vad detta du sin efter mycket",
        "pl": "i w na z do się nie to że jest o jak a po co tak za od ale przez czy dla być ma już tylko może są jego pod "
        "te przy kiedy lub która który które",
        "tr": "ve bir bu da de için ile çok ne daha o ben sen mi var gibi olarak olan ama kadar en ya değil sonra her şey "
        "nasıl bunu mı olduğu",
    }.items()
}
_SCRIPTS = {
    "CYRILLIC": "ru", "HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh", "ARABIC": "ar", "HEBREW": "he",
    "DEVANAGARI": "hi", "THAI": "th", "GREEK": "el",
}  # fmt: skip
LANGUAGES = (*FUNCTION_WORDS, *dict.fromkeys(_SCRIPTS.values()), "uk")
_LETTERS = 3000  # of a conversation that are looked at
_FEWEST_HITS, _FEWEST_SHARE = 3, 0.12  # function words that tell a language


@dataclass(frozen=True)
class Cleaning:
    """What is done to each conversation.

    Args:
        html: HTML becomes Markdown.
        languages: codes of those that stay; empty: all.
        max_length: in tokens; what is longer becomes several conversations. None: nothing is split.
        model: whose tokens count.
    """

    html: bool = False
    languages: Sequence[str] = ()
    max_length: int | None = None
    model: str = "nano"

    def __post_init__(self):
        if unknown := sorted(set(self.languages) - set(LANGUAGES)):
            known = ", ".join(sorted(LANGUAGES))
            raise UserInputError(f"the language {', '.join(unknown)} cannot be told from others; known are {known}")
        if self.max_length is not None:
            _ = self._processor  # a model that is not there is no fault of a record

    def __call__(self, messages: list[dict]) -> list[list[dict]]:
        """One conversation → one, or several that are short enough.

        Raises:
            Unusable: nothing is left of it.
        """
        if self.html:
            messages = [message | {"content": _each_text(message["content"], html_to_markdown)} for message in messages]
        if self.languages:
            language = language_of(" ".join(texts_of(messages)))
            if language not in self.languages:
                raise Unusable(f"its language is {language}" if language else "its language cannot be told")
        return [messages] if self.max_length is None else split_long(messages, self._length, self.max_length)

    def _length(self, messages: list[dict]) -> int:
        encoded = self._processor(messages, add_generation_prompt=False, load_media=False)
        return encoded["input_ids"].shape[1]

    @cached_property
    def _processor(self) -> Any:
        from nextgpt.configuration_nextgpt import NextGPTConfig
        from nextgpt.hub.parts import fetch_model
        from nextgpt.train.start import load_processor

        location = fetch_model(self.model)
        return load_processor(location, NextGPTConfig.from_pretrained(location))


def _each_text(content: Any, change: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return change(content)
    return [part | {"text": change(part["text"])} if part["type"] == "text" else part for part in content]


# ---------------------------------------------------------------------- length


def split_long(messages: list[dict], length_of: Callable[[list[dict]], int], longest: int) -> list[list[dict]]:
    """Cuts a conversation between an answer and the next question, as seldom as possible; each piece keeps the system text.

    Args:
        length_of: of messages, in tokens.

    Raises:
        Unusable: one exchange alone is too long.
    """
    if length_of(messages) <= longest:
        return [messages]
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    pieces: list[list[dict]] = []
    for first in range(0, len(turns), 2):
        exchange = turns[first : first + 2]
        if pieces and length_of(pieces[-1] + exchange) <= longest:
            pieces[-1] += exchange
        elif length_of(system + exchange) <= longest:
            pieces.append(system + exchange)
        else:
            raise Unusable(f"one exchange of it has more than {longest} tokens")
    return pieces


# ---------------------------------------------------------------------- language


def language_of(text: str) -> str | None:
    """The code of a text's language, by its script and its most frequent words; None where neither tells it."""
    text = CODE.sub(" ", text)
    letters = [letter for letter in text if letter.isalpha()][:_LETTERS]
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in letters)
    if not scripts:
        return None
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.1 * len(letters):
        return "ja"  # beside Chinese characters
    script = scripts.most_common(1)[0][0]
    if script != "LATIN":
        return "uk" if script == "CYRILLIC" and set("іїєґ") & set(text.lower()) else _SCRIPTS.get(script)
    found = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower())[:_LETTERS]
    hits = {language: sum(word in known for word in found) for language, known in FUNCTION_WORDS.items()}
    first, second = sorted(hits, key=hits.__getitem__, reverse=True)[:2]
    enough = hits[first] >= min(_FEWEST_HITS, len(found)) and hits[first] >= _FEWEST_SHARE * len(found)
    return first if enough and hits[first] > hits[second] else None


# ---------------------------------------------------------------------- HTML


def has_html(text: str) -> bool:
    """Whether a text holds a web page's markup outside of code."""
    return bool(_TAG.search(CODE.sub(" ", text)))


def html_to_markdown(text: str) -> str:
    """A text whose HTML has become Markdown. Code, and words in angle brackets that are no tags of HTML, stay.

    Raises:
        Unusable: its tags are nested some hundred deep.
    """
    if has_html(text):
        code: list[str] = []

        def hold(found: re.Match) -> str:
            code.append(found[0])
            return _HELD.format(len(code) - 1)

        page = BeautifulSoup(_NO_TAG.sub("&lt;", CODE.sub(hold, text)), "html.parser")
        try:
            text = _TO_MARKDOWN.convert_soup(_tidied(page)).strip()
        except RecursionError:
            raise Unusable("its HTML is nested too deep") from None
        for number, piece in enumerate(code):
            text = text.replace(_HELD.format(number), piece)
    return _COPY_CODE.sub(r"\1\n", text)


def _tidied(page: BeautifulSoup) -> BeautifulSoup:
    for element in page(_DROPPED):
        element.decompose()
    for element in page(_BLOCKS):
        element.name = "div"
    for item in page.select("li > li"):  # the one before was not closed
        item.parent.insert_after(item)
    for box in page("pre"):
        if len(code := box("code")) == 1 and code[0].parent is not box:  # a page's box, with a head beside the code
            box.clear()
            box.append(code[0])
    return page


class _ToMarkdown(MarkdownConverter):
    """What the library does, for texts that are half Markdown already and show no pictures."""

    convert_strike = MarkdownConverter.convert_del

    def convert_br(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return " " if "_inline" in parent_tags else "\n"

    def convert_img(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return el.get("alt") or ""

    def process_text(self, el: NavigableString, parent_tags: set[str]) -> str:
        return super().process_text(el, {*parent_tags, "pre"})  # blank lines and indentation stay as in <pre>


def _code_language(box: Tag) -> str:
    named = _CODE_LANGUAGE.search(" ".join(box.code.get("class", ()))) if box.code else None
    return named[1] if named else ""


_TO_MARKDOWN = _ToMarkdown(
    bullets="-",
    code_language_callback=_code_language,
    escape_asterisks=False,
    escape_underscores=False,
    heading_style="atx",
    table_infer_header=True,
)
