"""What people type: the file is well-formed, its slots are filled with what fits, and faults in an answer are found."""

import json
import random
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from PIL import Image

from nextgpt.events import Reply
from nextgpt.parts import preset_folder
from nextgpt.train.nano.dialogues.composer import DATA, load_composer
from nextgpt.train.nano.dialogues.phrasings import PHRASINGS, load_phrasings, normalise
from nextgpt.train.nano.evaluation import scenarios
from nextgpt.train.nano.evaluation.bench import Bench
from nextgpt.train.nano.evaluation.people import DIRECTIONS, People
from nextgpt.train.nano.evaluation.scenarios import Filler, Scenario, ScenarioError, load_scenarios, vary
from nextgpt.train.nano.world.things import Clip, Picture, Sound

NANO = preset_folder("nano")


@pytest.fixture(scope="module")
def composer():
    return load_composer(NANO / "world", "heldout", [], DATA)


@pytest.fixture(scope="module")
def people():
    pipeline = SimpleNamespace(
        model=SimpleNamespace(config=SimpleNamespace(input_modalities=["image", "audio", "video"])),
        decoders={"image": None, "audio": None, "video": None},
    )
    return People(Bench(pipeline, count=9))


def one(**row) -> Scenario:
    return Scenario.from_line(json.dumps({"about": "plain", **row}))


def test_there_are_six_hundred_of_them_and_none_twice():
    found = load_scenarios()
    about = Counter(scenario.about for scenario in found)
    assert len(found) >= 600 and about["mixture"] >= 200 and about["correction"] >= 100 and about["crossing"] >= 100
    assert set(about) == set(scenarios.ABOUT)
    texts = Counter(re.sub(r"\W+", " ", scenario.text.lower()) for scenario in found)
    assert max(texts.values()) == 1


def test_none_of_them_is_within_two_edits_of_a_training_phrasing():
    trained = {normalise(phrasing.text) for some in load_phrasings(PHRASINGS).values() for phrasing in some}
    lengths = {length: [t for t in trained if len(t) == length] for length in {len(t) for t in trained}}
    asked = {normalise(part) for s in load_scenarios() for part in _user(s) if isinstance(part, str)}
    close = [
        (text, other)
        for text in asked
        for length in range(len(text) - 2, len(text) + 3)
        for other in lengths.get(length, ())
        if _within_two_edits(text, other)
    ]
    assert not close


def _within_two_edits(first: str, second: str) -> bool:
    start = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    first, second = first[start:], second[start:]
    end = next(
        (n for n, (a, b) in enumerate(zip(first[::-1], second[::-1], strict=False)) if a != b), min(len(first), len(second))
    )
    first, second = first[: len(first) - end], second[: len(second) - end]
    if max(len(first), len(second)) > 12:  # two edits lie near each other or are found by the full table below
        return _distance(first, second) <= 2 if abs(len(first) - len(second)) <= 2 and _bag(first, second) <= 4 else False
    return _distance(first, second) <= 2


def _bag(first: str, second: str) -> int:
    a, b = Counter(first), Counter(second)
    return sum(((a - b) + (b - a)).values())


def _distance(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for n, a in enumerate(first, 1):
        last, row = row, [n]
        for m, b in enumerate(second, 1):
            row.append(min(last[m] + 1, row[m - 1] + 1, last[m - 1] + (a != b)))
    return row[-1]


def _user(scenario: Scenario) -> list:
    last = scenario.turns[-1]["user"]
    return last if isinstance(last, list) else [last]


def test_every_scenario_can_be_filled_from_the_package(composer):
    bench = Bench(None, folder=NANO)
    fill = Filler(composer, bench.holds)
    for number, scenario in enumerate(load_scenarios()):
        asked = fill(scenario, random.Random(number))
        texts = [part["text"] for message in asked.messages for part in message["content"] if part["type"] == "text"]
        assert not any("{" in text for text in texts)
        shown = [part["medium"] for message in asked.messages for part in message["content"] if part.get("medium")]
        assert all(bench.holds(medium) for medium in shown)


def test_slots_of_one_name_share_a_value_and_numbered_ones_differ(composer):
    scenario = one(
        turns=[
            {"user": "draw {a_concept} on {background}", "answer": [{"image": {"concept": "{concept}"}}]},
            {
                "user": "not {background}, {background_2}. and then {a_concept_2}",
                "answer": [{"image": {"concept": "{concept}", "background": "{background_2}"}}],
            },
        ]
    )
    for seed in range(20):
        asked = Filler(composer)(scenario, random.Random(seed))
        first, made, second = (message["content"] for message in asked.messages)
        background = first[0]["text"].split(" on ")[1]
        assert second[0]["text"].startswith(f"not {background}, ")
        assert background not in ("white", asked.wanted[0].told["background"])
        assert asked.wanted[0].told["concept"] in made[0]["text"] and made[1] == {"type": "image"}
        assert asked.kinds == ["image"]


def test_what_is_to_be_heard_or_filmed_can_be(composer):
    hear = one(turns=[{"user": "play {a_concept}", "answer": [{"audio": {"instrument": "{concept}"}}]}])
    low = one(turns=[{"user": "{a_sound}, low", "answer": [{"audio": {"instrument": "{sound}", "register": "low"}}]}])
    film = one(
        turns=[{"user": [{"audio": {"instrument": "{sound}"}}, "film it"], "answer": [{"video": {"concept": "{sound}"}}]}]
    )
    for seed in range(30):
        fill, rng = Filler(composer), random.Random(seed)
        assert fill(hear, rng).wanted[0].told["instrument"] in composer.setting.concept_of
        assert composer.setting.instruments[fill(low, rng).wanted[0].told["instrument"]].pitched
        asked = fill(film, rng)
        shown = asked.messages[0]["content"][0]["medium"]
        assert isinstance(shown, Sound) and asked.wanted[0].told["concept"] == composer.setting.concept_of[shown.name]
        assert asked.wanted[0].told["concept"] in composer.setting.filmed


def test_attached_media_are_drawn_with_what_is_told_of_them(composer):
    asked = Filler(composer)(
        one(
            turns=[
                {
                    "user": [
                        {"image": {"concept": "{concept}", "background": "red"}},
                        {"video": {"concept": "{concept_2}"}},
                        "hm?",
                    ],
                    "answer": [{"text": {"names": ["{concept}", "{concept_2}"]}}],
                }
            ]
        ),
        random.Random(0),
    )
    picture, clip, _ = asked.messages[0]["content"]
    assert isinstance(picture["medium"], Picture) and picture["medium"].background == "red"
    assert isinstance(clip["medium"], Clip) and asked.wanted[0].told["names"] == [
        picture["medium"].concept,
        clip["medium"].concept,
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"turns": [{"user": "{cat}", "answer": []}]}, "unknown slot {cat}"),
        ({"turns": [{"user": "x", "answer": [{"image": {"colour": "red"}}]}]}, "image has no 'colour'"),
        ({"turns": [{"user": "x", "answer": [{"smell": {}}]}]}, "unknown kind 'smell'"),
        ({"about": "weather", "turns": []}, "about 'weather'"),
        ({"turns": [], "seed": 1}, "unknown key 'seed'"),
    ],
)
def test_a_line_that_is_not_as_agreed_is_named(tmp_path, row, said):
    file = tmp_path / "some.jsonl"
    file.write_text(json.dumps({"about": "plain", **row}) + "\n")
    with pytest.raises(ScenarioError, match=f"line 1: .*{re.escape(said)}"):
        load_scenarios(file)


def test_capitals_punctuation_and_slips_keep_the_words():
    rng = random.Random(0)
    assert vary("Draw a cat!", "capitals", rng) == "DRAW A CAT!"
    assert vary("Not green. Orange.", "no punctuation", rng) == "not green orange"
    slipped = vary("draw a banana", "slipped letter", rng)
    assert slipped != "draw a banana" and abs(len(slipped) - 13) <= 1


def test_faults_are_found_in_kinds_things_details_and_words(people):
    def fault(wanted: list[dict], readings: list, text: str = "") -> str:
        asked = people.fill(one(turns=[{"user": "x", "answer": wanted}]), random.Random(0))
        return people.fault(asked, Reply({"role": "assistant", "content": [{"type": "text", "text": text}]}), readings)

    cat = {"concept": "cat", "background": "white", "style": "3d", "size": "large"}
    assert not fault([{"image": {"concept": "cat"}}], [("image", cat)])
    assert fault([{"image": {"concept": "cat"}}], []) == "made nothing, expected image"
    assert "expected image + audio" in fault([{"image": {"concept": "cat"}}, {"audio": {}}], [("audio", {}), ("image", cat)])
    assert fault([{"image": {"concept": "dog"}}], [("image", cat)]) == "concept: cat, expected dog"
    assert (
        fault([{"image": {"concept": "cat", "background": "blue"}}], [("image", cat)]) == "background: white, expected blue"
    )
    assert not fault([{"text": {"names": ["cat"]}}], [], "That's a kitty.")
    assert fault([{"text": {"names": ["cat"]}}], [], "A dog.") == "does not name cat"
    assert fault([{"text": {"refuses": True}}], [("image", cat)], "Sorry, I can't.").startswith("made image")


def test_a_new_subject_has_its_own_defaults(people):
    scenario = Scenario.from_line(
        json.dumps(
            {
                "about": "new subject",
                "turns": [
                    {"user": "{a_concept} on red", "answer": [{"image": {"concept": "{concept}", "background": "red"}}]},
                    {"user": "now {a_concept_2}", "answer": [{"image": {"concept": "{concept_2}"}}]},
                ],
            }
        )
    )
    (wanted,) = people.fill(scenario, random.Random(0)).wanted
    assert (wanted.told["background"], wanted.told["style"], wanted.told["size"]) == ("white", "3d", "large")


def test_each_direction_has_phrasings_of_its_own(people):
    assert set(people.directions) == set(DIRECTIONS)
    assert all(len(found) >= 10 for found in people.directions.values())
    assert people.parser and isinstance(people.bench._outside, dict)
    part = people._part({"type": "image", "medium": None})
    assert isinstance(part["image"], Image.Image)
