"""The rows about what people really type: free phrasings in all directions, mixtures, corrections, refusals.

Everything in an answer must be right: its kinds in their order, every thing and detail that was named, the words where they
matter. Any combination may be asked for, not held-out ones alone; the phrasings are held out.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nextgpt.events import Media, Reply
from nextgpt.train.nano.dialogues.scenarios import Asked, Filler, Scenario, load_scenarios, vary
from nextgpt.train.nano.evaluation.bench import AS_TENSOR, Bench
from nextgpt.train.nano.evaluation.scores import Sample, Score
from nextgpt.train.nano.world.things import PARTS

TEST_SCENARIOS = Path(__file__).parent / "test_scenarios.jsonl"
MEETS_BAR, MIXTURE_BAR, CHANGE_BAR, REFUSAL_BAR = 0.90, 0.90, 0.90, 0.95
VARIED_LOSS = 0.03  # how much capitals, no punctuation or a slipped letter may cost
# What one turn may ask, each as often: from words to each kind and back, between kinds, several media, what it cannot.
DIRECTIONS = (
    *("text → image", "text → audio", "text → video", "image → text", "audio → text", "video → text"),
    *("crossing", "mixture", "cannot"),
)
# Which intents of the older test phrasings ask for what.
PLAIN = {
    "text → image": ("draw",),
    "text → audio": ("play",),
    "text → video": ("film",),
    "image → text": ("name",),
    "audio → text": ("hear_name",),
    "video → text": ("watch_name",),
}


class Answered(NamedTuple):
    """A filled scenario, what came, and what is wrong with it; nothing if it is right."""

    asked: Asked
    reply: Reply
    wrong: str


class People:
    """Asks what people type and reads what comes.

    Args:
        bench: has the assistant, the world and the classifiers.
    """

    def __init__(self, bench: Bench):
        self.bench = bench
        self.fill = Filler(bench.composer, bench.holds)
        self.parser = bench.parser
        self.scenarios: dict[str, list[Scenario]] = defaultdict(list)
        for scenario in load_scenarios(TEST_SCENARIOS):
            self.scenarios[scenario.about].append(scenario)
        self.directions = self._directions()

    def _directions(self) -> dict[str, list[Scenario]]:
        """Scenarios of one turn for each of `DIRECTIONS`."""
        phrasings = self.bench.composer.setting.phrasings
        found = {
            direction: [_as_scenario(direction, p.text) for intent in intents for p in phrasings.get(intent, ())]
            for direction, intents in PLAIN.items()
        }
        for direction, abouts in {
            "crossing": ("crossing",),
            "mixture": ("mixture",),
            "cannot": ("refusal", "abilities"),
        }.items():
            found[direction] = [s for about in abouts for s in self.scenarios[about] if len(s.turns) == 1]
        return {direction: found[direction] for direction in DIRECTIONS}

    def ask(self, row: str, scenarios: Sequence[Scenario], how: str | None = None, before: int = 0) -> list[Answered]:
        """Each scenario with its own things: what came of it.

        Args:
            how: what is done to the last request (see `vary`); nothing by default.
            before: turns about other things that have gone before, each with the answer that it should have had.
        """
        asked = [
            self.fill(scenario, random.Random(f"{self.bench.seed}/{row}/{number}"))
            for number, scenario in enumerate(scenarios)
        ]
        for number, each in enumerate(asked):
            each.messages[:0] = self._talk(random.Random(f"{self.bench.seed}/{row}/{number}/before"), before)
        if how:
            for number, each in enumerate(asked):
                for part in each.messages[-1]["content"]:
                    if part["type"] == "text":
                        part["text"] = vary(part["text"], how, random.Random(number))
        replies: dict[int, Reply] = {}
        groups: dict[tuple[str, ...] | None, list[int]] = defaultdict(list)
        for number, each in enumerate(asked):
            groups[each.scenario.only].append(number)
        for only, numbers in groups.items():
            conversations = [
                self._rendered(asked[number], random.Random(f"{self.bench.seed}/{row}/{number}/shown")) for number in numbers
            ]
            options = {"output_modalities": list(only)} if only else {}
            replies |= dict(zip(numbers, self.bench.ask(row, conversations, **options), strict=True))
        readings = self._readings([replies[number] for number in range(len(asked))])
        return [
            Answered(each, replies[number], self.fault(each, replies[number], readings[number]))
            for number, each in enumerate(asked)
        ]

    def _talk(self, rng: random.Random, turns: int) -> list[dict]:
        """Messages of so many turns, each in one of the directions."""
        messages: list[dict] = []
        for _ in range(turns):
            asked = self.fill(rng.choice(self.directions[rng.choice(DIRECTIONS)]), rng)
            messages += [*asked.messages, {"role": "assistant", "content": list(self.fill.answer(asked.wanted, rng))}]
        return messages

    def _rendered(self, asked: Asked, rng: random.Random) -> list[dict]:
        """The conversation in chat format, media rendered."""
        return [
            {"role": message["role"], "content": [self._part(part, rng) for part in message["content"]]}
            for message in asked.messages
        ]

    def _part(self, part: dict, rng: random.Random) -> dict:
        if "medium" not in part:
            return part
        modality = part["type"]
        if part["medium"] is not None:
            return {"type": modality, modality: self.bench.render(part["medium"])}
        shown = self.bench.composer.setting.outside_shown(rng, modality)
        return {"type": modality, modality: self.bench.outside(shown)}

    def _readings(self, replies: list[Reply]) -> list[list[tuple[str, dict[str, str]]]]:
        """Of each reply the kinds of its media in order and what the classifier finds in each, all of a kind at once."""
        media = [_media(reply) for reply in replies]
        found: list[list[tuple[str, dict[str, str]]]] = [[(kind, {}) for kind, _ in some] for some in media]
        for modality in AS_TENSOR:
            places = [(n, m) for n, some in enumerate(media) for m, (kind, _) in enumerate(some) if kind == modality]
            for (n, m), reading in zip(places, self.bench.look(modality, [media[n][m][1] for n, m in places]), strict=True):
                found[n][m] = (modality, reading)
        return found

    def fault(self, asked: Asked, reply: Reply, readings: list[tuple[str, dict[str, str]]]) -> str:
        """What is wrong with an answer; empty if everything is right."""
        kinds = [kind for kind, _ in readings]
        if kinds != asked.kinds:
            return f"made {' + '.join(kinds) or 'nothing'}, expected {' + '.join(asked.kinds) or 'nothing'}"
        left = list(readings)
        for part in asked.wanted:
            if part.kind == "text":
                if reason := self.parser.misses(reply.text, part.told):
                    return reason
                continue
            _, reading = left.pop(0)
            for name in PARTS[part.kind]:
                if name in part.told and reading.get(name) != part.told[name]:
                    return f"{name}: {reading.get(name)}, expected {part.told[name]}"
        return ""


def _as_scenario(direction: str, text: str) -> Scenario:
    """One of the older test phrasings, which have an intent instead of an answer: what its slots name must be right."""
    start, end = direction.split(" → ")
    main = {"image": ("concept", "{concept}"), "audio": ("instrument", "{sound}"), "video": ("concept", "{concept}")}
    if end == "text":
        part, slot = main[start]
        user = [{start: {part: slot}}, text]
        return Scenario("plain", ({"user": user, "answer": [{"text": {"names": [slot]}}]},))
    told = dict([main[end]])
    told |= {part: f"{{{part}}}" for part in PARTS[end] if f"{{{part}}}" in text and part not in told}
    if "{a_figure}" in text:
        told["figure"] = "{figure}"
    if end == "video":
        told["motion"] = "{motion}"
        if not any(f"{{{slot}}}" in text for slot in ("motion", "move", "moves")):
            del told["motion"]
    return Scenario("plain", ({"user": text.replace("size_word", "size"), "answer": [{end: told}]},))


def _media(reply: Reply) -> list[tuple[str, Media]]:
    """The media of a reply in order, each with its kind."""
    return [(part["type"], part[part["type"]]) for part in reply.message["content"] if part["type"] != "text"]


# -- rows -------------------------------------------------------------------------------------------------------


def what_a_user_meets(bench: Bench, row: str = "what a user meets", before: int = 0) -> list[Score]:
    """One turn in each of `DIRECTIONS`, as often as any other.

    Args:
        before: turns about other things that have gone before.
    """
    people, rng = People(bench), random.Random(bench.seed)
    order = itertools.islice(itertools.cycle(DIRECTIONS), bench.count)
    chosen = [(direction, rng.choice(people.directions[direction])) for direction in order]
    answered = people.ask(row, [scenario for _, scenario in chosen], before=before)
    _keep(bench, row, answered)
    scores = [Score(row, "all of it right", sum(not a.wrong for a in answered), len(answered), MEETS_BAR)]
    for direction in DIRECTIONS:
        some = [a for (d, _), a in zip(chosen, answered, strict=True) if d == direction]
        if some:
            scores.append(Score(row, direction, sum(not a.wrong for a in some), len(some)))
    return scores


def scenarios_about(bench: Bench, about: str, bar: float) -> list[Score]:
    """The scenarios of one kind: mixtures, corrections …"""
    people = People(bench)
    known = people.scenarios[about]
    chosen = random.Random(bench.seed).sample(known, min(len(known), bench.count))
    answered = people.ask(about, chosen)
    _keep(bench, about, answered)
    return [Score(about, "all of it right", sum(not a.wrong for a in answered), len(answered), bar)]


def varied(bench: Bench) -> list[Score]:
    """The same requests as they are, in capitals, without punctuation, with a slipped letter."""
    row = "spelling"
    people, rng = People(bench), random.Random(bench.seed)
    order = itertools.islice(itertools.cycle(PLAIN), bench.count)
    chosen = [rng.choice(people.directions[direction]) for direction in order]
    scores: list[Score] = []
    for how in (None, "capitals", "no punctuation", "slipped letter"):
        answered = people.ask(row, chosen, how)
        _keep(bench, row, answered)
        bar = scores[0].share - VARIED_LOSS if scores else None
        scores.append(Score(row, how or "as typed", sum(not a.wrong for a in answered), len(answered), bar))
    return scores


def _keep(bench: Bench, row: str, answered: list[Answered]) -> None:
    """For the report."""
    for each in answered:
        last = each.asked.messages[-1]["content"]
        told = " ".join(part["text"] for part in last if part["type"] == "text")
        found = {"all": each.wrong or "right"}
        media = [medium for _, medium in _media(each.reply)]
        bench.samples.append(Sample(row, told, {"all": "right"}, found, each.reply.text, media=media))
