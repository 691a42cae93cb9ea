"""Cleans conversations that were taken from web pages, as Vicuna's were: HTML to Markdown, one language, not too long."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from typing import Any

from nextgpt.errors import UserInputError
from nextgpt.train.data.markers import Unusable, texts_of

# What a page's own markup is told by; any other `<word>` is text. `<s>` is left out: it is mostly a control token.
_BLOCKS = ("p div section article header footer main aside figure figcaption table ul ol dl dt dd details summary").split()
_MARKS = {"b": "**", "strong": "**", "i": "*", "em": "*", "del": "~~", "strike": "~~"}
_PLAIN = (
    "span font u small big center sup sub a thead tbody tfoot tr td th caption li br hr img pre code blockquote html body "
    "h1 h2 h3 h4 h5 h6"
).split()
_DROPPED = "script style head button svg iframe object noscript template form select".split()  # with what is in them
_TAGS = {*_BLOCKS, *_MARKS, *_PLAIN, *_DROPPED, "input", "meta", "link"}
_NAMES = "|".join(sorted(_TAGS, key=len, reverse=True))
_TAG = re.compile(rf"</?(?:{_NAMES})(?:\s[^<>]*)?/?>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
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
        from nextgpt.train.stages import load_processor

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
    text = _CODE.sub(" ", text)
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
    return bool(_TAG.search(_CODE.sub(" ", text)))


def html_to_markdown(text: str) -> str:
    """A text whose HTML has become Markdown. Code, and words in angle brackets that are no tags of HTML, stay."""
    if not has_html(text):
        return _COPY_CODE.sub(r"\1\n", text)
    code: list[str] = []

    def hold(found: re.Match) -> str:
        code.append(found[0])
        return _HELD.format(len(code) - 1)

    parser = _Markdown()
    parser.feed(_CODE.sub(hold, text))
    parser.close()
    markdown = "".join(parser.pieces)
    for number, piece in enumerate(code):
        markdown = markdown.replace(_HELD.format(number), piece)
    markdown = re.sub(r"[ \t]+\n", "\n", _COPY_CODE.sub(r"\1\n", markdown))
    return re.sub(r"\n{3,}", "\n\n", markdown).strip()


class _Markdown(HTMLParser):
    """Writes what it is fed as Markdown, to `pieces`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.skipping: list[str] = []  # open elements whose content is left out
        self.lists: list[int | None] = []  # open lists: the next number, or None for bullets
        self.links: list[str] = []
        self.starts: list[int] = []  # where open quotes begin
        self.rows = self.cells = 0  # of the table so far, and of its row
        self.code_from: int | None = None  # where an open block of code begins

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in _DROPPED:
            self.skipping.append(tag)
        elif self.skipping:
            return
        elif tag not in _TAGS:
            self.pieces.append(self.get_starttag_text() or "")
        elif tag == "pre":
            self.pieces.append("\n\n```\n")
            self.code_from = len(self.pieces)
        elif self.code_from is not None:
            if tag == "code":  # what stood before it is the head of the page's box
                named = _CODE_LANGUAGE.search(given.get("class") or "")
                self.pieces[self.code_from - 1 :] = [f"\n\n```{named[1] if named else ''}\n"]
            elif tag == "br":
                self.pieces.append("\n")
        elif tag in _MARKS or tag == "code":
            self.pieces.append(_MARKS.get(tag, "`"))
        elif tag in ("ul", "ol"):
            self.pieces.append("" if self.lists else "\n\n")
            self.lists.append(1 if tag == "ol" else None)
        elif tag == "li":
            self._item()
        elif tag == "a":
            self.links.append(given.get("href") or "")
            self.pieces.append("[" if self.links[-1] else "")
        elif tag == "blockquote":
            self.starts.append(len(self.pieces))
        elif tag == "img":
            self.pieces.append(given.get("alt") or "")
        elif tag in ("td", "th"):
            self.pieces.append("| ")
            self.cells += 1
        elif tag == "tr":
            self.cells = 0
        else:
            self.rows = 0 if tag == "table" else self.rows
            self.pieces.append({"br": "\n", "hr": "\n\n---\n\n"}.get(tag) or self._block(tag))

    def _block(self, tag: str) -> str:
        if re.fullmatch(r"h[1-6]", tag):
            return f"\n\n{'#' * int(tag[1])} "
        in_item = self.lists and self.pieces and re.search(r"(?:-|\d\.) $", self.pieces[-1])
        return "\n\n" if tag in _BLOCKS and not in_item else ""

    def _item(self) -> None:
        number = self.lists[-1] if self.lists else None
        self.pieces.append("\n" + "   " * (len(self.lists) - 1) + ("- " if number is None else f"{number}. "))
        if number is not None:
            self.lists[-1] = number + 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _DROPPED:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self.skipping:
            while tag in self.skipping and self.skipping.pop() != tag:  # what is open inside ends with it
                pass
        elif tag not in _TAGS:
            self.pieces.append(f"</{tag}>")
        elif tag == "pre" and self.code_from is not None:
            self.pieces[self.code_from :] = ["".join(self.pieces[self.code_from :]).strip("\n"), "\n```\n\n"]
            self.code_from = None
        elif self.code_from is not None:
            return
        elif tag in _MARKS or tag == "code":
            self.pieces.append(_MARKS.get(tag, "`"))
        elif tag in ("ul", "ol") and self.lists:
            self.lists.pop()
            self.pieces.append("" if self.lists else "\n\n")
        elif tag == "a" and self.links:
            address = self.links.pop()
            self.pieces.append(f"]({address})" if address else "")
        elif tag == "blockquote" and self.starts:
            start = self.starts.pop()
            quoted = re.sub(r"\n{3,}", "\n\n", "".join(self.pieces[start:])).strip()
            self.pieces[start:] = ["\n\n", re.sub(r"^", "> ", quoted, flags=re.MULTILINE), "\n\n"]
        elif tag in ("td", "th"):
            self.pieces.append(" ")
        elif tag == "tr":
            self.pieces.append("|\n" + ("" if self.rows else "| --- " * self.cells + "|\n"))
            self.rows += 1
        elif tag in _BLOCKS or re.fullmatch(r"h[1-6]", tag):
            self.pieces.append("" if self.lists else "\n\n")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.pieces.append(data)
