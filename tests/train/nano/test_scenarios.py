"""What people type: the file is well-formed, its slots are filled with what fits, and faults in an answer are found."""

import json
import random
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from PIL import Image

from near_texts import near
from nextgpt.events import Reply
from nextgpt.hub.parts import preset_folder
from nextgpt.train.nano.dialogues import scenarios
from nextgpt.train.nano.dialogues.composer import DATA, load_composer
from nextgpt.train.nano.dialogues.phrasings import PHRASINGS, load_phrasings, normalise
from nextgpt.train.nano.dialogues.scenarios import Filler, Scenario, ScenarioError, load_scenarios, parts_of_user, vary
from nextgpt.train.nano.evaluation.bench import Bench
from nextgpt.train.nano.evaluation.people import DIRECTIONS, TEST_SCENARIOS, People
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


@pytest.fixture(scope="module")
def tested():
    return load_scenarios(TEST_SCENARIOS)


def asked(some: list[Scenario]) -> set[str]:
    """What users say in the last turn, as one text without case and punctuation."""
    texts = (" ".join(p for p in parts_of_user(s.turns[-1]["user"]) if isinstance(p, str)) for s in some)
    return {normalise(text) for text in texts}


def test_there_are_six_hundred_to_test_with_and_none_twice(tested):
    about = Counter(scenario.about for scenario in tested)
    assert len(tested) >= 600 and about["mixture"] >= 200 and about["correction"] >= 100 and about["crossing"] >= 100
    assert set(about) == set(scenarios.ABOUT)
    texts = Counter(re.sub(r"\W+", " ", scenario.text.lower()) for scenario in tested)
    assert max(texts.values()) == 1


def test_those_to_learn_from_are_as_many_as_agreed_and_no_wording_is_in_more_than_one_of_a_hundred():
    taught = load_scenarios()
    about = Counter(scenario.about for scenario in taught)
    assert len(taught) >= 7000 and set(about) == set(scenarios.ABOUT)
    wordings = Counter(re.sub(r"\{\w+\}", "_", normalise(str(scenario.turns))) for scenario in taught)
    assert wordings.most_common(1)[0][1] <= len(taught) / 100


def test_what_is_tested_is_not_within_two_edits_of_what_is_learned(tested):
    phrasings = {normalise(phrasing.text) for some in load_phrasings(PHRASINGS).values() for phrasing in some}
    assert not near(asked(tested), phrasings | asked(load_scenarios()))


def test_near_texts_are_found():
    assert near(["draw a cat"], ["draw the cat", "draws a cat!", "dra a caat", "paint a cat"]) == [
        ("draw a cat", "dra a caat"),
        ("draw a cat", "draws a cat!"),
    ]


@pytest.mark.parametrize("files", [(), (TEST_SCENARIOS,)], ids=["learned", "tested"])
def test_every_scenario_can_be_filled_from_the_package(files, composer):
    bench = Bench(None, folder=NANO)
    fill = Filler(composer, bench.holds)
    for number, scenario in enumerate(load_scenarios(*files)):
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
        assert asked.wanted[0].told["concept"] in made[0]["text"].lower() and made[1] == {"type": "image"}
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
    part = people._part({"type": "image", "medium": None}, random.Random(0))
    assert isinstance(part["image"], Image.Image)


def test_a_tenth_turn_comes_after_nine_that_were_answered(people, monkeypatch):
    asked = []

    def ask(row, conversations, **options):
        asked.extend(conversations)
        return [Reply({"role": "assistant", "content": []})] * len(conversations)

    monkeypatch.setattr(people.bench, "ask", ask)
    scenario = one(turns=[{"user": "Say {a_concept}.", "answer": [{"text": {"names": ["{concept}"]}}]}])
    (answered,) = people.ask("tenth turn", [scenario], before=9)
    (messages,) = asked
    assert [message["role"] for message in messages] == ["user", "assistant"] * 9 + ["user"]
    assert all(message["content"] for message in messages) and "Say " in str(messages[-1])
    assert len(answered.asked.messages) == 19
