"""Conversations as people type them, what must be in the last answer, and whether it is.

A line of `data/scenarios/*.jsonl`, which are learned from, and of the evaluation's `test_scenarios.jsonl` is
`{"about": …, "turns": [{"user": …, "answer": […]}], "only": […]}`. `user` is a text, or a list of texts and attached media
(`{"image": {"concept": "{concept}"}}`, `{"audio": "outside"}`); what is not said of a medium is drawn at random. `answer`
lists in order the media that must come, with the parts that must be right, and checks of the words:
`{"text": {"names": […], "tells": {part: value}}}`, or one of `yes`, `refuses`, `abilities`, `chats`, `asks`; `reply` may
give the words. Texts and values hold slots (`{a_concept_2}`, `{background}`); those of one name share one value in a line.
`only` are the kinds of answer that are allowed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nextgpt.train.nano.dialogues.phrasings import fill
from nextgpt.train.nano.dialogues.turns import Setting
from nextgpt.train.nano.dialogues.turns_pictures import say
from nextgpt.train.nano.world.clips import MOTIONS
from nextgpt.train.nano.world.things import (
    MOTIONS_SAID,
    PARTS,
    PICTURE_DEFAULTS,
    PICTURE_VALUES,
    SOUND_DEFAULTS,
    SOUND_VALUES,
    Clip,
    Medium,
    Picture,
    Sound,
)

if TYPE_CHECKING:
    from nextgpt.train.nano.dialogues.composer import Composer

SCENARIOS = Path(__file__).parent / "data" / "scenarios"
ABOUT = ("plain", "mixture", "correction", "change", "crossing", "new subject", "refusal", "limited", "abilities")
CHECKS = frozenset({"names", "tells", "yes", "refuses", "abilities", "chats", "asks"})
VALUES = {**PICTURE_VALUES, **SOUND_VALUES, "motion": tuple(MOTIONS)}
DEFAULTS = {**PICTURE_DEFAULTS, **SOUND_DEFAULTS}
# Slot → what it names: the same thing may be said in several ways.
NAMED_BY = {
    **dict.fromkeys(("concept", "a_concept", "the_concept", "concepts"), "concept"),
    **dict.fromkeys(("sound", "a_sound", "the_sound"), "sound"),
    **dict.fromkeys(("figure", "a_figure"), "figure"),
    **dict.fromkeys(("motion", "move", "moves"), "motion"),
    **{name: name for name in ("background", "style", "size", "register", "thing")},
}
DETAIL_SHARE = 0.3  # of the things about which a varied scenario says nothing more
_SLOT = re.compile(r"\{(\w+?)(_\d)?\}")
OUTSIDE = "outside"


class ScenarioError(ValueError):
    """A line that is not as agreed."""


@dataclass(frozen=True)
class Scenario:
    """One line of the file."""

    about: str
    turns: tuple[dict[str, Any], ...]
    only: tuple[str, ...] | None = None

    @classmethod
    def from_line(cls, line: str) -> Scenario:
        """Raises ScenarioError where a key, a slot or a value is none of those that there are."""
        row = json.loads(line)
        if unknown := row.keys() - {"about", "turns", "only"}:
            raise ScenarioError(f"unknown key {sorted(unknown)[0]!r}")
        if row["about"] not in ABOUT:
            raise ScenarioError(f"about {row['about']!r}, expected one of {', '.join(ABOUT)}")
        scenario = cls(row["about"], tuple(row["turns"]), tuple(row["only"]) if "only" in row else None)
        for slot, _ in _SLOT.findall(line):
            if slot not in NAMED_BY:
                raise ScenarioError(f"unknown slot {{{slot}}}")
        for turn in scenario.turns:
            if unknown := turn.keys() - {"user", "answer", "reply"}:
                raise ScenarioError(f"a turn has the unknown key {sorted(unknown)[0]!r}")
            for part in (*parts_of_user(turn["user"]), *turn["answer"]):
                _check_part(part)
        return scenario

    @property
    def text(self) -> str:
        return json.dumps([self.turns, self.only])

    @property
    def answer(self) -> list[dict]:
        """What the last answer must hold."""
        return self.turns[-1]["answer"]


def parts_of_user(user: str | list) -> list:
    """What a user's turn is made of: texts and attached media."""
    return [user] if isinstance(user, str) else user


def _check_part(part: str | dict) -> None:
    if isinstance(part, str):
        return
    ((modality, told),) = part.items()
    if told == OUTSIDE:
        known = told = ()
    else:
        known = CHECKS if modality == "text" else PARTS.get(modality)
    if known is None:
        raise ScenarioError(f"unknown kind {modality!r}")
    if unknown := set(told) - set(known):
        raise ScenarioError(f"{modality} has no {sorted(unknown)[0]!r}")


def load_scenarios(*files: Path) -> list[Scenario]:
    """All lines of some files, by default of those that are learned from.

    Raises:
        ScenarioError: names every line that is not as agreed.
    """
    scenarios, bad = [], []
    for file in files or sorted(SCENARIOS.glob("*.jsonl")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                scenarios.append(Scenario.from_line(line))
            except (ValueError, KeyError) as error:
                bad.append(f"{file}, line {number}: {error}")
    if bad:
        raise ScenarioError("\n".join(bad))
    return scenarios


class Wanted(NamedTuple):
    """A part of the answer: the kind of a medium and the parts that must be right, or `text` and what it must say."""

    kind: str
    told: dict[str, Any]


@dataclass
class Asked:
    """A scenario with its slots filled.

    Attributes:
        messages: in chat format; an attached medium is `{"type": modality, "medium": Medium or None}`, None for one from
            outside the world; the assistant's own media are `{"type": modality}`.
        wanted: what the answer must hold, in order.
    """

    scenario: Scenario
    messages: list[dict] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """The kinds of media that the answer must hold, in order."""
        return [part.kind for part in self.wanted if part.kind != "text"]


class Filled(NamedTuple):
    """The turns of a scenario with values for their slots.

    Attributes:
        users: of each turn the user's parts, texts and media (`Asked.messages` says how).
        wanted: of each turn what its answer must hold.
        chosen: slot → its value; `words`: slot → how it is said.
    """

    users: list[list[dict]]
    wanted: list[list[Wanted]]
    chosen: dict[str, str]
    words: dict[str, str]


class NothingHeld(LookupError):
    """The world's folder renders no medium with these parts: of the sounds the package holds only some."""


class Filler:
    """Fills scenarios with things of the world.

    Args:
        composer: of a built world; its split plays no part here: any combination may be asked for.
        holds: whether a medium can be rendered.
        vary: also say things by their other names, and name details that the scenario leaves open.
    """

    def __init__(self, composer: Composer, holds: Callable[[Medium], bool] = lambda medium: True, vary: bool = False):
        self.composer, self.setting, self.holds, self.vary = composer, composer.setting, holds, vary

    def __call__(self, scenario: Scenario, rng: random.Random) -> Asked:
        """A scenario with values drawn for its slots.

        Raises:
            LookupError: the world can render none of what it shows.
        """
        for _ in range(200):
            try:
                return self._draw(scenario, rng)
            except NothingHeld as error:
                why = error
        raise LookupError(f"{scenario.turns}: {why}")

    def _draw(self, scenario: Scenario, rng: random.Random) -> Asked:
        filled, asked = self.draw(scenario, rng), Asked(scenario)
        for number, (content, wanted) in enumerate(zip(filled.users, filled.wanted, strict=True)):
            asked.messages.append({"role": "user", "content": content})
            if number < len(scenario.turns) - 1:
                asked.messages.append({"role": "assistant", "content": list(self.answer(wanted, rng))})
        defaults = scenario.about == "new subject"
        asked.wanted = [_with_defaults(part, self.setting) if defaults else part for part in wanted]
        return asked

    def draw(self, scenario: Scenario, rng: random.Random) -> Filled:
        """One try to fill a scenario. Raises NothingHeld."""
        values = _Values(scenario, self.composer, rng, self.vary)
        users = [[self._user_part(part, values, rng) for part in parts_of_user(turn["user"])] for turn in scenario.turns]
        wanted = [[values.wanted(part) for part in turn["answer"]] for turn in scenario.turns]
        return Filled(users, wanted, values.chosen, values.words)

    def _user_part(self, part: str | dict, values: _Values, rng: random.Random) -> dict:
        if isinstance(part, str):
            return {"type": "text", "text": fill(part, values.words)}
        ((modality, told),) = part.items()
        if told == OUTSIDE:
            return {"type": modality, "medium": None}
        told = values.wanted(part).told
        for _ in range(20):
            medium = self._random(modality, told, rng)
            if self.holds(medium):
                return {"type": modality, "medium": medium}
        raise NothingHeld(f"the world holds no {modality} with {told}")

    def _random(self, modality: str, told: dict[str, str], rng: random.Random) -> Medium:
        def of(part: str, values) -> str:
            return told.get(part) or rng.choice(list(values))

        match modality:
            case "image":
                concept = of("concept", self.setting.names)
                return Picture(concept, *(of(part, VALUES[part]) for part in ("style", "background", "size")))
            case "audio":
                name = of("instrument", self.setting.instruments)
                if not self.setting.instruments[name].pitched:
                    return Sound(name)
                return Sound(name, of("register", VALUES["register"]), of("figure", VALUES["figure"]))
        return Clip(of("concept", self.setting.filmed), of("motion", VALUES["motion"]))

    def answer(self, wanted: list[Wanted], rng: random.Random) -> Iterator[dict]:
        """The parts of an earlier answer, as it should have been."""
        for part in wanted:
            if part.kind == "text":
                yield {"type": "text", "text": self._said(part.told)}
                continue
            medium = self.default(part)
            yield {"type": "text", "text": self.setting.replies.announce(medium, rng)}
            yield {"type": part.kind}

    def default(self, part: Wanted) -> Medium:
        """The medium of a part of an answer, what is not said of it at its default."""
        told = _with_defaults(part, self.setting).told
        match part.kind:
            case "image":
                return Picture(**told)
            case "audio":
                return Sound(told["instrument"], told.get("register", ""), told.get("figure", ""))
        return Clip(told["concept"], told.get("motion", "spinning"))

    def _said(self, told: dict[str, Any]) -> str:
        if "names" in told:
            return f"This is {' and '.join(self._indefinite(name) for name in told['names'])}."
        if "tells" in told:
            return f"{', '.join(told['tells'].values())}.".capitalize()
        if "yes" in told:
            return "Yes." if told["yes"] else "No."
        return "I can't do that, sorry." if "refuses" in told else "Hello! What would you like to see or hear?"

    def _indefinite(self, name: str) -> str:
        known = self.setting.concepts.get(name) or self.setting.instruments[name]
        return known.indefinite


def _with_defaults(part: Wanted, setting: Setting) -> Wanted:
    """With the parts that are not said at their defaults; an effect has no register and no figure."""
    if part.kind == "image":
        return part._replace(told={**PICTURE_DEFAULTS, **part.told})
    if part.kind == "audio" and setting.instruments[part.told["instrument"]].pitched:
        return part._replace(told={**SOUND_DEFAULTS, **part.told})
    return part


class _Values:
    """What the slots of a scenario stand for, and how each is said."""

    def __init__(self, scenario: Scenario, composer: Composer, rng: random.Random, vary: bool):
        self.composer, self.setting, self.vary = composer, composer.setting, vary
        self.chosen: dict[str, str] = {}
        self.beside: dict[str, dict[str, str]] = {}  # thing → details that are named beside it, though nobody asked
        text, setting = scenario.text, self.setting
        names = sorted({f"{NAMED_BY[slot]}{number}" for slot, number in _SLOT.findall(text)})
        is_played = any(f'"{part}"' in text for part in SOUND_VALUES) or "{register" in text or "figure" in text
        several = len(scenario.turns) > 1
        for name in names:
            kind = name.split("_")[0]
            taken = {value for other, value in self.chosen.items() if other.split("_")[0] == kind}
            match kind:
                case "concept" | "sound":
                    choices = self._things(kind, name, text, is_played) - taken - self._linked(kind)
                case "thing":
                    choices = {thing for thing, _ in setting.outside}
                case _:
                    constants = {value for value in VALUES[kind] if f'"{kind}": "{value}"' in text}
                    choices = set(VALUES[kind]) - constants - taken
                    if several and len(choices) > 1:
                        choices -= {DEFAULTS.get(kind)}
            if not choices:
                raise NothingHeld(f"nothing of the world fits {name} in {scenario.turns}")
            self.chosen[name] = rng.choice(sorted(choices))
            if vary and kind in ("concept", "sound") and rng.random() < DETAIL_SHARE:
                self.beside[name] = self._details(scenario, name, rng)
        self.words = {key: value for name in names for key, value in self._say(name, rng).items()}

    def _details(self, scenario: Scenario, name: str, rng: random.Random) -> dict[str, str]:
        """Details of the picture or sound of a thing that is spoken of once only and said no more of."""
        said = [
            slot
            for slot, number in _SLOT.findall(str([turn["user"] for turn in scenario.turns]))
            if f"{NAMED_BY[slot]}{number}" == name
        ]
        kind, main = ("image", "concept") if name.startswith("concept") else ("audio", "instrument")
        used = [part for turn in scenario.turns for part in turn["answer"] if f'"{{{name}}}"' in json.dumps(part)]
        if len(said) != 1 or len(used) != 1 or used[0].get(kind) != {main: f"{{{name}}}"} or len(scenario.turns) > 1:
            return {}
        if kind == "audio" and not self.setting.instruments[self.chosen[name]].pitched:
            return {}
        values = PICTURE_VALUES if kind == "image" else SOUND_VALUES
        return {part: rng.choice(values[part]) for part in rng.sample(list(values), rng.choice((1, 1, 2)))}

    def _things(self, kind: str, name: str, text: str, is_played: bool) -> set[str]:
        """Things that can be all that the scenario makes of them."""
        setting = self.setting
        used = {part for part in ("image", "audio", "video") if _uses(text, part, name)}
        if kind == "sound":
            found = {n for n, instrument in setting.instruments.items() if instrument.pitched or not is_played}
            if used & {"image", "video"}:
                found &= set(setting.concept_of)
            return {n for n in found if "video" not in used or setting.concept_of.get(n) in setting.filmed}
        found = set(setting.filmed if "video" in used else setting.names)
        if "audio" in used:
            found = {n for n in found if n in setting.sound_of}
            found = {n for n in found if not is_played or setting.instruments[setting.sound_of[n]].pitched}
        return found

    def _linked(self, kind: str) -> set[str]:
        """Those that go with what was chosen of the other kind: a trumpet beside the sound of a trumpet says too little."""
        if kind == "sound":
            return {
                self.setting.sound_of.get(value, "") for name, value in self.chosen.items() if name.startswith("concept")
            }
        return {self.setting.concept_of.get(value, "") for name, value in self.chosen.items() if name.startswith("sound")}

    def _say(self, name: str, rng: random.Random) -> dict[str, str]:
        kind, value = name.split("_")[0], self.chosen[name]
        end, beside = name[len(kind) :], self.beside.get(name, {})
        match kind:
            case "concept" if self.vary:
                said = self.composer.pictures.concept_values(rng, Picture(value, **beside), list(beside))
            case "concept":
                concept = self.setting.concepts[value]
                said = {"concept": value, "a_concept": concept.indefinite, "the_concept": f"the {value}"}
                said["concepts"] = concept.plural
            case "sound" if self.vary:
                said = self.composer.sounds.values(rng, Sound(value, **SOUND_DEFAULTS | beside), list(beside))
                said = {slot: said[slot] for slot in ("sound", "a_sound", "the_sound")}
            case "sound":
                instrument = self.setting.instruments[value]
                said = {"sound": value, "a_sound": instrument.indefinite, "the_sound": f"the {value}"}
            case "motion":
                participle, move, moves = rng.choice(MOTIONS_SAID[value]) if self.vary else MOTIONS_SAID[value][0]
                said = {"motion": participle, "move": move, "moves": moves}
            case "figure":
                said = {"figure": value, "a_figure": f"a {value}"}
            case _:
                said = {kind: say(value, rng) if self.vary and rng.random() < 0.5 else value}
        return {f"{slot}{end}": words for slot, words in said.items()}

    def wanted(self, part: dict) -> Wanted:
        """A part of an answer with its slots filled."""
        ((kind, told),) = part.items()
        filled = {key: self._filled(value) for key, value in told.items()}
        if kind == "text":
            return Wanted(kind, filled)
        if self._is_concept(told, "instrument"):
            filled["instrument"] = self.setting.sound_of[filled["instrument"]]
        if self._is_sound(told, "concept"):
            filled["concept"] = self.setting.concept_of[filled["concept"]]
        for name, beside in self.beside.items():
            if beside and f"{{{name}}}" in told.values():
                filled |= beside
        return Wanted(kind, filled)

    @staticmethod
    def _is_concept(told: dict, part: str) -> bool:
        return str(told.get(part, "")).startswith("{concept")

    @staticmethod
    def _is_sound(told: dict, part: str) -> bool:
        return str(told.get(part, "")).startswith("{sound")

    def _filled(self, value: Any) -> Any:
        if isinstance(value, str):
            return _SLOT.sub(lambda m: self.chosen[f"{NAMED_BY[m[1]]}{m[2] or ''}"], value)
        if isinstance(value, list):
            return [self._filled(each) for each in value]
        return {key: self._filled(each) for key, each in value.items()} if isinstance(value, dict) else value


def _uses(text: str, modality: str, name: str) -> bool:
    """Whether some medium of this kind shows, or plays, the thing of a slot."""
    main = "instrument" if modality == "audio" else "concept"
    return bool(re.search(rf'"{modality}": {{[^{{}}]*(?:{{[^{{}}]*}}[^{{}}]*)*"{main}": "{{{name}}}"', text))


# -- how it is typed ---------------------------------------------------------------------------------------------


def vary(text: str, how: str, rng: random.Random) -> str:
    """The same request in capitals, without punctuation, or with one letter slipped; slots are filled already."""
    if how == "capitals":
        return text.upper()
    if how == "no punctuation":
        return re.sub(r"[^\w\s'+-]", "", text).lower()
    letters = [at for at in range(1, len(text) - 1) if text[at - 1 : at + 2].isalpha()]
    if not letters:
        return text
    at = rng.choice(letters)
    return rng.choice((text[:at] + text[at + 1 :], text[: at - 1] + text[at] + text[at - 1] + text[at + 1 :]))
