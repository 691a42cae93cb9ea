"""Reads answers in natural English: what they claim that something is, which details they tell, whether they decline.

A claim is what stands in a plain statement: not what is asked, offered, denied or only compared with. A doubtful answer
("a cat or a dog", "maybe") and one that contradicts itself claim nothing that counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache

from nextgpt.train.nano.world.things import Concept, Instrument, plural

# How the value of a detail is said, as patterns for whole words; colours are looked for by where they stand, see `_colours`.
_GO = r"(?:go|goes|going|climbs?|climbing|runs?|running|moves?|moving|steps?|stepping|walks?|walking|coming|comes?)"
_SLIDE = (
    r"(?:go|goes|going|moves?|moving|slid(?:es?|ing)|glid(?:es?|ing)|drift(?:s|ing)?|float(?:s|ing)?|fl(?:ies|ying)|"
    r"shoot(?:s|ing)?|travel(?:s|ling)?|heads?|heading)"
)
SAID: dict[str, dict[str, str]] = {
    "style": {
        "3d": r"3-?d|three[- ]dimensional",
        "flat": r"(?<!(?-i:[B-G]) )flat|2-?d|two[- ]dimensional",
        "cartoon": r"cartoon\w*|comic\w*",
    },
    "size": {
        "large": r"large|big|huge|giant|fills? (?:most of )?(?:the|its|up)|takes? up most",
        "small": r"small|little|tiny|mini(?:ature)?",
    },
    "register": {
        "low": rf"low(?:er|est)?|deep(?! (?:{'|'.join(('red', 'blue', 'green', 'purple', 'orange'))}))|bass|bottom",
        "middle": r"middle(?! C\b)(?! of the (?:picture|frame|screen|image))|mid|medium|in between|"
        r"neither (?:high nor low|low nor high)",
        "high": r"high(?:er|est)?|up high|top",
    },
    "figure": {
        "single note": r"(?:a |one |just one |single |long |held |lone )(?:(?!repeat)\w+ )?(?:note|tone)"
        r"(?! (?:after|at a time))",
        "rising scale": rf"(?:rising|ascending|upward|climbing)(?: \w+)? (?:scale|run|notes)|{_GO} (?:\w+ )?(?:up|"
        rf"upwards?)\b"
        r"|scale(?: \w+)? (?:up|upwards?)|up (?:the|a) scale|climbs? (?:a|the) scale|step higher|notes (?:climb|rise)",
        "falling scale": rf"(?:falling|descending|downward)(?: \w+)? (?:scale|run|notes)|{_GO} (?:\w+ )?(?:down|"
        rf"downwards?)\b"
        r"|scale(?: \w+)? (?:down|downwards?)|down (?:the|a) (?:scale|ladder)|step lower|notes (?:fall|drop|descend)",
        "chord": r"chords?|notes? (?:together|at once|at the same time)|several notes",
        "repeated note": r"repeat\w*|again and again|over and over|same note|repetition|quick notes",
    },
    "motion": {
        "sliding left": rf"(?:to|towards?|off|out on|leaves on|exits on|{_SLIDE}) (?:the |its )?left(?! to\b)|leftwards?",
        "sliding right": rf"(?:to|towards?|off|out on|leaves on|exits on|{_SLIDE}) (?:the |its )?right(?! to\b)|rightwards?",
        "sliding up": rf"(?:{_SLIDE}|ris(?:es?|ing))(?: \w+)? (?:up|upwards?)|upwards?|ris(?:es?|ing)|up it (?:goes|"
        rf"floats)|up and away",
        "sliding down": rf"(?:{_SLIDE}|sink(?:s|ing)?|fall(?:s|ing)?|drop(?:s|ping)?)(?: \w+)? (?:down|downwards?)|"
        rf"downwards?"
        r"|sinks?|sinking|falls|falling|down it goes",
        "spinning": r"spin\w*|rotat\w*|twirl\w*|whirl\w*|round and round|(?:turn\w*|go\w*|moving) (?:round|around|"
        r"in circles)\b",
        "bouncing": r"bounc\w*|hop\w*|jump\w*|up and down",
        "growing": r"grow\w*|bigger|larger|expand\w*|swell\w*",
        "shrinking": r"shr[aiu]nk\w*|smaller|tinier",
    },
}
COLOURS = ("white", "black", "red", "orange", "yellow", "green", "blue", "purple", "pink", "grey", "brown", "turquoise")
SAME_COLOUR = {"violet": "purple", "gray": "grey"}
_COLOUR = rf"(?P<colour>{'|'.join((*COLOURS, *SAME_COLOUR))})"
_BEHIND = r"background|backdrop|behind|ground|backing|surface|canvas|wall|square"

# "no" and "not" before a word deny it, when nothing but these stands between.
_DENIED = re.compile(
    r"(?:\bnot|\bno|n't|\bnever|\bwithout|\brather than|\binstead of|\bneither|\bnor)"
    r"(?:\s+(?:a|an|the|any|at all|really|quite|so|very|in|on|of|be|look|looks|looking|sound|like|playing|it's|it|to|going|"
    r"drawn|style|background|from|moving))*\s*$",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:maybe|perhaps|possibly|might|may be|could be|could also be|unsure|hard to (?:say|tell)|either|can'?t decide|"
    r"no idea|"
    r"not (?:quite |really |too |very |entirely )?(?:sure|certain)|(?:I'm|I am) guessing|(?:just |only |wild |"
    r"my best )a? ?guess|"
    r"don'?t know|who knows|or maybe|or something|i mean|no,? wait|one of (?:those|these|the) two)\b",
    re.IGNORECASE,
)
_OFFER = re.compile(
    r"\b(?:shall I|should I|would you like|do you want|want me to|I can|I could|I'd be|could I|may I|how about|what about|"
    r"let me know|if you (?:like|want)|ask me|try asking|you (?:can|could) (?:ask|try|also)|next time|I know)\b|"
    r"you'd better\s*$",
    re.IGNORECASE,
)
_BEFORE_NAME = r"\s+(?:a|an|the|some|one|two)?\s*(?:\w+\s+)?$"
_COMPARED = re.compile(
    r"\b(?:(?:a bit|a little|just|rather|somewhat|much|almost|kind of|sort of)\s+like|reminds me of|unlike|than|as|"
    r"(?:has|have)(?!\s+(?:drawn|filmed|sent|shown|made|played|painted))|"
    r"(?:similar|close|related|cousin|relative|next)\s+(?:to|of)|(?:confused|mixed up) with|made of|(?<!asked )for|called)"
    + _BEFORE_NAME,
    re.IGNORECASE,
)
_LIKE = re.compile(r"(?:\w+,?\s+){0,2}like" + _BEFORE_NAME, re.IGNORECASE)
_PART_OF_IT = re.compile(r"\bwith\s.*$", re.IGNORECASE)
_SEEMING = re.compile(r"\b(?:look|sound|seem)(?:s|ing|ed)?\b", re.IGNORECASE)
_OTHER_THINGS = re.compile(r"\b(?:hot dogs?|letter [A-Z]\b|palm of|star of (?:this|the|my)|sea horses?|guinea pigs?)")
# What may follow a name that is claimed; another noun behind it makes another thing of it ("bell pepper").
_FOLLOWS = frozenset(
    """slide spin bounce grow shrink
    a an the on in at with and or of to for from by is are was were that which who this these it its here there you
    your please
    played plays made drawn shown under behind before against over while as like but so then now again too also not no
    yes i we
    they he she can could shall do does has have sound noise note tone picture image drawing emoji clip video film
    style sketch
    song recording chord scale up down left right low high deep middle into onto across through if just only really
    very rather
    quite all alright today ready rise roll fall out fit""".split()
)
_DESCRIBES = frozenset(
    "little flat 3d cartoon furry round old young cute lovely bright brown red grey white black yellow green blue".split()
)
_ABILITIES = (
    r"draw|pictur|paint|sketch|image",
    r"play|sound|nois|hear|music|instrument",
    r"clip|film|video|animat|mov(?:e|ing)",
)
_CANNOT_DO = re.compile(
    r"\b(?:photos?|photograph\w*|speech|speak\w*|songs?|sing|translat\w*|internet|web|weather|news|edit\w*|poems?|"
    r"stor(?:y|ies)|"
    r"essays?|code|e-?mails?|homework|calculat\w*|maths?|movies?|minutes?|anything|everything|whatever|voices?|full-length|"
    r"read (?:aloud|out))\b",
    re.IGNORECASE,
)
_DECLINES = re.compile(
    r"\b(?:(?<!nothing I )can(?:'t|not)|can not|could(?:n't| not)|(?:am|'m) (?:not able|unable|afraid (?:I|not|that I)|"
    r"sorry)|unable|"
    r"do(?:n't| not) (?:know|have|do|think I|recogni[sz]e|see|hear|speak|understand)|sorry|no idea|wish I could|"
    r"won't be able|"
    r"not (?:able|something|one of|a thing|sure|in my|part of|within)|never (?:learned|learnt|seen|heard|met)|unknown to me|"
    r"have(?:n't| not) (?:learned|learnt|seen|heard|met|got)|(?:beyond|outside|over|above) (?:of )?(?:me|my|what)|only know|"
    r"know (?:no|nothing)|isn't (?:something|in|one|part)|is not (?:something|in|one|part)|new to me|hard to (?:say|tell)|"
    r"too \w+(?: a \w+)? (?:for me|to (?:know|say|tell))|guess is as good)",
    re.IGNORECASE,
)
_YES = re.compile(
    r"^\W*(?:i think so, )?(?:yes|yep|yeah|yup|right|correct|exactly|indeed|sure|certainly|of course|absolutely|true|"
    r"it is\b|it does"
    r"|it sure|it certainly|they are|that it is|(?:that|you)(?:'s|'re| is| are) (?:right|correct)|quite right|well spotted|"
    r"you(?:'ve| have)? got it|good (?:eye|ear)s?|spot on)\b",
    re.IGNORECASE,
)
_NO = re.compile(
    r"^\W*(?:no\b(?! (?:doubt|problem|worries))|nope|nah|not\b|wrong|incorrect|false|(?:it|that|they)(?: is|"
    r" are)?(?:n't| not)|"
    r"(?:it|that)'s (?:not|wrong)|they're not|i'm afraid not|sorry, no|it does(?:n't| not)|unfortunately not|close, but|"
    r"i (?:don't|do not) think so|(?:it|that) (?:isn't|wasn't)|they aren't)",
    re.IGNORECASE,
)


LONG_WORD = 7  # letters; a slip in a shorter one makes another word of it too easily


class AnswerParser:
    """Reads answers about one world.

    Args:
        names: the name of each thing and sound → all the words for it.
    """

    def __init__(self, names: dict[str, Iterable[str]]):
        self.names: dict[str, set[str]] = {}  # word, lower case → whose it is
        for name, words in names.items():
            for word in (name, *words):
                for form in {word.lower(), plural(word.lower()), _singular(word.lower())}:
                    for spelt in {form, form.replace(" ", ""), form.replace(" ", "-")}:
                        self.names.setdefault(spelt, set()).add(name)
        longest = sorted(self.names, key=len, reverse=True)
        self.pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest))})(?![\w])", re.IGNORECASE)
        self.long_words = [name for name in longest if len(name) >= LONG_WORD and name.isalpha()]

    @classmethod
    def of_world(cls, concepts: dict[str, Concept], instruments: dict[str, Instrument]) -> AnswerParser:
        """Of a built world; a thing and the sound that it makes go by each other's names."""
        names: dict[str, set[str]] = {}
        for concept in concepts.values():
            names.setdefault(concept.name, set()).update((concept.plural, *concept.synonyms))
        for instrument in instruments.values():
            names.setdefault(instrument.name, set()).update(instrument.articles)
        return cls(names)

    def misses(self, text: str, told: dict) -> str:
        """What the words should say and do not; empty if they say it."""
        if "names" in told and not self.says(text, told["names"]):
            return f"does not name {', '.join(told['names'])}"
        for part, value in told.get("tells", {}).items():
            if not self.tells(text, part, value):
                return f"does not tell {part} {value}"
        if "yes" in told and self.affirms(text) is not told["yes"]:
            return f"does not say {'yes' if told['yes'] else 'no'}"
        if told.get("refuses") and not self.refuses(text):
            return "does not say that it cannot"
        if told.get("abilities") and not self.abilities(text):
            return "does not say what it can do"
        return ""

    # -- what is read -------------------------------------------------------------------------------------------

    def description(self, text: str, expected: dict[str, str], main: str) -> dict[str, str]:
        """What a description tells, part by part: the expected value where it and nothing else is told, without doubt.

        Args:
            expected: part → value; empty where nothing is to be told, as of an effect's register.
            main: the part that is a thing's name; the others are details.
        """
        found = {}
        for part, value in expected.items():
            if part == main:
                said, right = {"/".join(sorted(claim)) for claim in self.claims(text)}, self.says(text, [value])
            else:
                said = self.told(text, part)
                right = self.tells(text, part, value) if value else not said
            found[part] = value if right else f"says {', '.join(sorted(said)) or 'nothing'}"
        return found

    def claims(self, text: str) -> list[frozenset[str]]:
        """What is said to be there, in order; each as all the names that the word may stand for."""
        found: list[frozenset[str]] = []
        for sentence in map(self._spelt, _statements(text)):
            first = len(found)
            for match in self.pattern.finditer(sentence):
                if len(found) > first and _PART_OF_IT.search(sentence[: match.start()]):
                    continue  # "a bicycle with a bell"
                if self._is_claimed(sentence, match.start(), match.end()):
                    claim = frozenset(self.names[match.group().lower()])
                    if not any(claim & other for other in found):
                        found.append(claim)
        return found

    def _spelt(self, sentence: str) -> str:
        """With slips in long words mended: "saxaphone"."""

        def mend(match: re.Match) -> str:
            word = match.group().lower()
            if len(word) < LONG_WORD or word in self.names:
                return match.group()
            near = get_close_matches(word, self.long_words, n=1, cutoff=0.88)
            return near[0] if near else match.group()

        return re.sub(r"[^\W\d_]+", mend, sentence)

    def says(self, text: str, names: Iterable[str]) -> bool:
        """Whether exactly these things are claimed, without doubt."""
        names, claims = list(names), self.claims(text)
        if _DOUBT.search(_without_questions(text)) or len(claims) != len(names):
            return False
        return all(any(name in claim for claim in claims) for name in names)

    def tells(self, text: str, part: str, value: str) -> bool:
        """Whether a detail is told with this value and no other, without doubt."""
        if _DOUBT.search(_without_questions(text)):
            return False
        return self.told(text, part) == {value}

    def told(self, text: str, part: str) -> set[str]:
        """The values of a detail that are told."""
        found: set[str] = set()
        for sentence in _statements(text):
            if part == "background":
                found |= _colours(sentence)
                continue
            sentence = self.pattern.sub(
                lambda m: "_" * len(m.group()), sentence
            )  # "flat" in the name of a thing does not count
            taken: list[tuple[int, int]] = []
            spots = [
                (match.start(), match.end(), value)
                for value, pattern in SAID[part].items()
                for match in re.finditer(rf"(?<![\w-])(?:{pattern})(?!\w)", sentence, re.IGNORECASE)
            ]
            for start, end, value in sorted(spots, key=lambda spot: spot[0] - spot[1]):  # the longest first
                if any(start < other_end and other < end for other, other_end in taken):
                    continue
                taken.append((start, end))
                if not _DENIED.search(sentence[:start]) and not (part == "size" and _is_of_another_thing(sentence[end:])):
                    found.add(value)
        if "repeated note" in found and not re.search(r"single|just one", text, re.IGNORECASE):
            found.discard("single note")  # "one note, again and again"
        return found

    def affirms(self, text: str) -> bool | None:
        """True for a yes, False for a no; None where it is neither, or both."""
        if _DOUBT.search(_without_questions(text)) or re.match(r"\W*yes and no\b", text, re.IGNORECASE):
            return None
        said = [(bool(_YES.search(s)), bool(_NO.search(s))) for s in _sentences(text)]
        yes, no = any(yes for yes, _ in said), any(no for _, no in said)
        return None if yes == no else yes

    def refuses(self, text: str) -> bool:
        """Whether it says that it cannot, does not know or cannot tell, and claims nothing all the same."""
        # What follows may be an offer.
        told = [re.split(r"\b(?:(?:but|so) )?(?:shall|would)\b", sentence)[0] for sentence in _sentences(text)]
        if not any(_DECLINES.search(each) and not re.match(r"\W*can't (?:you|we)\b", each, re.IGNORECASE) for each in told):
            return False
        return not re.search(r"\bhere(?:'s| is| are| it is| you (?:go|are))\b", text, re.IGNORECASE) and not self._asserts(
            text
        )

    def abilities(self, text: str) -> bool:
        """Whether it says that it draws, plays and films, and offers nothing that it cannot do."""
        offered = [s for s in _sentences(text) if not _DECLINES.search(s)]
        told = " ".join(offered)
        if not re.search(r"\b(?:I|I'm|I'll|me|my|things)\b", told) or _CANNOT_DO.search(told):
            return False
        return all(re.search(rf"\b(?:{pattern})", told, re.IGNORECASE) for pattern in _ABILITIES)

    # -- how ----------------------------------------------------------------------------------------------------

    def _asserts(self, text: str) -> bool:
        """Whether some thing is named as what it is ("that's a cat"), beside the declining."""
        for sentence in _statements(text):
            for match in self.pattern.finditer(sentence):
                before = sentence[: match.start()]
                if re.search(
                    r"(?:\b(?:it|that|this|these|those|they)(?:'s|'re| is| are)|definitely)\b[^,;.]*$", before, re.I
                ):
                    if self._is_claimed(sentence, match.start(), match.end()):
                        return True
        return False

    def _is_claimed(self, sentence: str, start: int, end: int) -> bool:
        before, after = sentence[:start], sentence[end:]
        if _DENIED.search(before) or _OFFER.search(before):
            return False
        for place in (re.search(r"(?:\w+\s)?$", before).start(), start):
            if (other := _OTHER_THINGS.match(sentence, place)) and other.span() != (start, end):
                return False
        follows = re.match(r"(-|\s+)([^\W\d_]+)", after)
        if follows and (follows[1] == "-" or not _may_follow(follows[2].lower())):
            return False  # another noun: "bell pepper"
        if re.match(r"\s+(?:would|could|might)\b", after):
            return False
        word = sentence[start:end].lower()
        if word in COLOURS and (
            _is_background(sentence, start, end) or not re.search(r"\b(?:an?|the|your)\s+(?:\w+\s+)?$", before)
        ):
            return False
        if _COMPARED.search(before):
            return False
        like = _LIKE.search(before)
        return not like or bool(_SEEMING.search(like[0]))


def _may_follow(word: str) -> bool:
    """Whether a word can stand behind a name without making another thing of it: no noun but in the plural, mostly verbs."""
    return word in _FOLLOWS or word.endswith(("ing", "s"))


def _is_of_another_thing(after: str) -> bool:
    """Whether a size is that of something else: "in a large field"; the world's own names stand as `_`."""
    follows = re.match(r"\s+([^\W\d_]+)(?:\s+(\S))?", after)
    if not follows or follows[2] == "_":
        return False
    return not (follows[1].lower() in _DESCRIBES or _may_follow(follows[1].lower()) or follows[1].lower() in ("one", "size"))


@lru_cache(maxsize=4096)
def _singular(word: str) -> str:
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+|\n+|;\s*", text.replace("’", "'").strip()) if s]


def _statements(text: str) -> list[str]:
    """The sentences that state something: no questions, no offers."""
    return [s for s in _sentences(text) if not s.rstrip(" )\"'").endswith("?")]


def _without_questions(text: str) -> str:
    return " ".join(_statements(text))


_GOES_ON = re.compile(
    rf"\s+(?:{_BEHIND}|{'|'.join(COLOURS)}|and|in|with|it|this|here|as|one|colou?r|drawn|too|at|this|that|for)\b",
    re.IGNORECASE,
)


def _is_background(sentence: str, start: int, end: int) -> bool:
    before, after = sentence[:start], sentence[end:]
    return bool(
        re.match(rf"[- ]?(?:coloured |colored )?\s*(?:in the )?(?:{_BEHIND})", after, re.IGNORECASE)
        or re.search(rf"\b(?:{_BEHIND})\s+(?:(?:{'|'.join(COLOURS)})\s+)*$", before, re.IGNORECASE)
        or re.search(
            r"\b(?:on|against|in front of|over|upon)\s+(?:a |an |plain |solid |bright |the )*$", before, re.IGNORECASE
        )
        or re.search(rf"\b(?:{_BEHIND}|colou?r)\b[^.,;]*\b(?:is|was|looks|in)\s+(?:a |plain |all )*$", before, re.IGNORECASE)
    )


def _colours(sentence: str) -> set[str]:
    """Colours that are told of a background; a colour that stands alone is an answer to a question for it."""
    found = set()
    for clause in re.split(r",\s*|\bbut\b", sentence):
        alone = re.fullmatch(
            rf"\W*(?:(?:it|that)(?:'s| is)|they're|just|plain|all|i see|i'd say|\s)*\s*{_COLOUR}\W*", clause, re.I
        )
        for match in re.finditer(rf"\b{_COLOUR}\b", clause, re.IGNORECASE):
            before, after = clause[: match.start()], clause[match.end() :]
            stands = _is_background(clause, match.start(), match.end())
            if re.match(rf"\s+[a-z](?!\w*\b\s*{_BEHIND})", after, re.IGNORECASE) and not _GOES_ON.match(after):
                stands = False  # "on a red apple"
            if (stands or alone) and not _DENIED.search(before):
                colour = match["colour"].lower()
                found.add(SAME_COLOUR.get(colour, colour))
    return found
