"""Turns from the written scenarios: their slots filled, their media made, their answers in natural English."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from typing import TYPE_CHECKING

from nextgpt.train.nano.dialogues.phrasings import fill, roughen
from nextgpt.train.nano.dialogues.replies import ASKING_BACK, CHATTING, GREETING, NO, WONDERING, YES, parts_of
from nextgpt.train.nano.dialogues.scenarios import Filled, Filler, NothingHeld, Scenario, Wanted
from nextgpt.train.nano.dialogues.turns import Made, NoSuchMedium, Part, Shown, Turn, changed_parts
from nextgpt.train.nano.dialogues.turns_talk import theirs
from nextgpt.train.nano.world.things import (
    PARTS,
    PICTURE_DEFAULTS,
    SOUND_DEFAULTS,
    Clip,
    Medium,
    Picture,
    Sound,
    modality_of,
)

if TYPE_CHECKING:
    from nextgpt.train.nano.dialogues.composer import Composer

TRIES = 200
KEEPING = frozenset({"change", "correction", "crossing"})  # what these do not name stays as it was
UNSAID_MOTIONS = ("spinning", "bouncing", "growing")  # the first that the split may hold
_GOES_BACK = re.compile(r"\b(?:undo|original|back to|go back|take (?:it|that) back|as it was|like before)\b", re.IGNORECASE)
_OFFERS = re.compile(
    r"\b(?:could|can) (?:draw|play|film)(?: you)? (?:an? |some )(?!picture|sound|clip|thing|few|lot)([^.,!?]+)"
)
_GREETS = re.compile(r"\b(?:hi|hello|hey|hiya|good (?:morning|afternoon|evening|day)|greetings|back)\b", re.IGNORECASE)


class ScenarioTurns:
    """Makes conversations of scenarios.

    Args:
        composer: of the world and of one split.
        scenarios: all that there are.
    """

    def __init__(self, composer: Composer, scenarios: list[Scenario]):
        self.composer, self.setting, self.replies = composer, composer.setting, composer.setting.replies
        self.fill = Filler(composer, self.setting.permits, vary=True)
        self.about: dict[str, list[Scenario]] = defaultdict(list)
        things = [name for each in self.setting.concepts.values() for name in (each.name, each.plural, *each.synonyms)]
        sounds = [name for each in self.setting.instruments.values() for name in each.articles]
        self._names = tuple(name.lower() for name in (*things, *sounds))
        for scenario in filter(self._offers_known, scenarios):
            self.about[_group(scenario)].append(scenario)
        turns = [turn for scenario in self.about["abilities"] for turn in scenario.turns]
        told = [turn["reply"] for turn in turns if "reply" in turn and turn["answer"] == [{"text": {"abilities": True}}]]
        self.abilities = [reply for reply in told if "{" not in reply]

    def __call__(self, scenario: Scenario, rng: random.Random) -> list[Turn]:
        """The conversation of a scenario. Raises NoSuchMedium where the split holds nothing that it could be about."""
        for _ in range(TRIES):
            try:
                return self._turns(scenario, rng)
            except (NoSuchMedium, NothingHeld):
                continue
        raise NoSuchMedium(f"no {self.setting.split} combinations fill {scenario.turns}")

    def _offers_known(self, scenario: Scenario) -> bool:
        """Whether the things that its answers offer, if any, are of the world."""
        offers = [offer for turn in scenario.turns for offer in _OFFERS.findall(turn.get("reply", "").lower())]
        return all(offer.startswith(self._names) for offer in offers)

    def some(self, about: str, rng: random.Random, most: int = 4) -> list[Turn]:
        """A conversation of at most so many turns about something."""
        while True:
            scenario = rng.choice(self.about[about])
            if len(scenario.turns) <= most:
                return self(scenario, rng)

    def _turns(self, scenario: Scenario, rng: random.Random) -> list[Turn]:
        filled = self.fill.draw(scenario, rng)
        known: list[Medium] = []
        turns = []
        for number, (content, wanted) in enumerate(zip(filled.users, filled.wanted, strict=True)):
            user: list[Part] = [self._shown_or_said(part, rng) for part in content]
            known += [_plain(part.medium) for part in user if isinstance(part, Shown) and part.medium]
            assistant = self._answer(scenario, number, filled, wanted, user, known, rng)
            made = [part.medium for part in assistant if isinstance(part, Made)]
            known += made
            on_table = known[-1] if len(made) == 1 or (known and not made) else None
            if any(part.is_withheld for part in assistant if isinstance(part, Made)):
                on_table = None
            intent = f"scenario {scenario.about}"
            checks = tuple(part.told for part in wanted if part.kind == "text")
            turns.append(Turn(intent, user, assistant, on_table, None, None if number else scenario.only, checks))
        return turns

    def _shown_or_said(self, part: dict, rng: random.Random) -> Part:
        if part["type"] == "text":
            return roughen(part["text"], rng)
        if part["medium"] is None:
            return self.setting.outside_shown(rng, part["type"])
        return self.setting.shown(rng, part["medium"])

    # -- answers ------------------------------------------------------------------------------------------------

    def _answer(
        self,
        scenario: Scenario,
        number: int,
        filled: Filled,
        wanted: list[Wanted],
        user: list[Part],
        known: list[Medium],
        rng: random.Random,
    ) -> list[Part]:
        turn = scenario.turns[number]
        if "reply" in turn:
            return [fill(turn["reply"], {slot: theirs(words) for slot, words in filled.words.items()})]
        assistant: list[Part] = []
        for part in wanted:
            if part.kind == "text":
                assistant.append(self._said(part.told, turn, filled, user, known, rng))
                continue
            was = self._kept(scenario, part, known, back=bool(_GOES_BACK.search(str(turn["user"]))))
            medium = self._made(part, was, is_last=turn is scenario.turns[-1])
            if was is not None and len(wanted) == 1:
                changed = changed_parts(was, medium)
                how = ("correction" if scenario.about == "correction" else "change") if changed else "again"
                assistant.append(self.replies.announce(medium, rng, how, changed))
            else:
                after = [part.medium for part in assistant if isinstance(part, Made)]
                assistant.append(self.replies.announce(medium, rng, after=after[-1] if after else None))
            assistant.append(self.setting.made(medium))
        return assistant

    @staticmethod
    def _kept(scenario: Scenario, part: Wanted, known: list[Medium], back: bool) -> Medium | None:
        """The medium that is changed: the last of its kind, or the first where someone wants to go back."""
        if scenario.about not in KEEPING:
            return None
        return next((medium for medium in (known if back else reversed(known)) if modality_of(medium) == part.kind), None)

    def _made(self, part: Wanted, was: Medium | None, is_last: bool) -> Medium:
        """The medium that is wanted: what is not told is kept, or at its default. Raises NoSuchMedium.

        Args:
            is_last: no later turn says more of it.
        """
        told = (parts_of(was) if was else {}) | part.told
        match part.kind:
            case "image":
                medium = Picture(**PICTURE_DEFAULTS | told)
            case "audio":
                name = told.pop("instrument")
                medium = Sound(name, **SOUND_DEFAULTS | told) if self.setting.instruments[name].pitched else Sound(name)
            case _:
                clips = [Clip(told["concept"], motion) for motion in UNSAID_MOTIONS]
                permitted = [clip for clip in clips if self.setting.permits(clip, derived=True)] or clips
                medium = Clip(told["concept"], told["motion"]) if "motion" in told else permitted[0]
        is_bare = is_last and was is None and len(part.told) == 1 and part.kind != "video"
        if not self.setting.permits(medium, derived=True) and not (is_bare and self.setting.asks_withheld):
            raise NoSuchMedium(f"{medium} is not in {self.setting.split}")
        return medium

    def _said(
        self, told: dict, turn: dict, filled: Filled, user: list[Part], known: list[Medium], rng: random.Random
    ) -> str:
        if "names" in told:
            media = [self._known(name, known) for name in told["names"]]
            if "tells" in told and len(media) == 1:
                return self.replies.describe(media[0], rng, told["tells"])
            return self.replies.name_all(media, rng)
        if "tells" in told:
            found = [(part, next(m for m in reversed(known) if part in parts_of(m))) for part in told["tells"]]
            return " ".join(self.replies.tell(part, medium, rng) for part, medium in found)
        if "yes" in told:
            if not known:
                return rng.choice(("Yes, I can.", "Yes.", "Sure, yes.") if told["yes"] else ("No, I can't.", "No, sorry."))
            return self._yes_or_no(told["yes"], turn, filled, known[-1], rng)
        text = " ".join(part for part in user if isinstance(part, str))
        if "refuses" in told:
            return self.composer.talk.cannot(rng, text, filled.chosen.get("thing", "that"))
        if "abilities" in told:
            return rng.choice(self.abilities)
        if "asks" in told:
            return rng.choice(ASKING_BACK)
        return rng.choice(WONDERING if "?" in str(turn["user"]) else GREETING if _GREETS.search(text) else CHATTING)

    def _known(self, name: str, known: list[Medium]) -> Medium:
        """The medium that shows or plays what is named."""
        for medium in reversed(known):
            if medium[0] == name:
                return medium
        return Picture(name) if name in self.setting.concepts else Sound(name)

    def _yes_or_no(self, yes: bool, turn: dict, filled: Filled, medium: Medium, rng: random.Random) -> str:
        """Which part the question is about is seen by what the user's turn says beside the thing."""
        said = str(turn["user"])
        slots = {"figure": ("figure", "a_figure"), "motion": ("motion", "move", "moves")}
        parts = [
            part
            for part in PARTS[modality_of(medium)][1:]
            if f"'{part}'" in said or any(f"{{{slot}" in said for slot in slots.get(part, (part,)))
        ]
        if len(parts) > 1:
            return rng.choice(YES if yes else NO)
        part = parts[0] if parts else ""
        if part and part not in parts_of(medium):
            return rng.choice(YES if yes else NO)
        if yes:
            return self.replies.confirm(medium, rng, part)
        main = {filled.chosen[name] for name in filled.chosen if name.split("_")[0] in ("concept", "sound")}
        return self.replies.deny(medium, rng, part, asked=next(iter(sorted(main - {medium[0]})), ""))


def _group(scenario: Scenario) -> str:
    """What a scenario is about; plain ones that ask for words are `reading` a medium, or `chat`."""
    told = scenario.answer[0].get("text") if scenario.about == "plain" else None
    return scenario.about if told is None else "chat" if "chats" in told else "reading"


def _plain(medium: Medium) -> Medium:
    """A medium that is shown, as it would be made: in its own key or look."""
    match medium:
        case Sound():
            return medium._replace(take=0)
        case Clip():
            return Clip(medium.concept, medium.motion)
    return medium
