"""The nano dialogues: what they may hold, what each answer says, and that the same seed says the same again."""

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from near_texts import near
from nextgpt.signals import MODALITIES, answer_only
from nextgpt.train.nano.dialogues import composer as dialogues
from nextgpt.train.nano.dialogues.composer import LINES, combinations, load_composer, make_lines, media_line
from nextgpt.train.nano.dialogues.phrasings import (
    INTENT_SLOTS,
    PHRASINGS,
    RATES,
    TEST_PHRASINGS,
    fault,
    load_phrasings,
    misspell,
    normalise,
    parse_phrasing,
    roughen,
)
from nextgpt.train.nano.dialogues.replies import parts_of, remarkable
from nextgpt.train.nano.dialogues.scenarios import ABOUT, Scenario, load_scenarios, parts_of_user
from nextgpt.train.nano.dialogues.turns import DERIVED, Made, NoSuchMedium, Shown
from nextgpt.train.nano.dialogues.turns_scenarios import ScenarioTurns
from nextgpt.train.nano.evaluation.answers import AnswerParser
from nextgpt.train.nano.world.clips import MOTIONS
from nextgpt.train.nano.world.pictures import CONCEPTS
from nextgpt.train.nano.world.sounds import load_sounds
from nextgpt.train.nano.world.things import (
    SOUND_DEFAULTS,
    Clip,
    Picture,
    Sound,
    modality_of,
    path_of,
)

OUTSIDE = ["images/outside/0.png", "sounds/outside/0.wav", "clips/outside/0.mp4"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    concepts = json.loads(CONCEPTS.read_text(encoding="utf-8"))
    (folder / "world.json").write_text(json.dumps({"concepts": concepts}), encoding="utf-8")
    (folder / "sounds.json").write_text(json.dumps(load_sounds()), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def composers(world):
    return {split: load_composer(world, split, OUTSIDE) for split in ("train", "dev")}


@pytest.fixture(scope="module")
def composer(composers):
    return composers["train"]


def parts(line: str):
    for message in json.loads(line)["messages"]:
        for part in message["content"]:
            yield message["role"], part


@pytest.mark.parametrize("media", [("image",), MODALITIES])
@pytest.mark.parametrize("kind", LINES)
def test_the_same_seed_gives_the_same_lines_in_any_chunks(world, kind, media):
    composer = load_composer(world, "train", OUTSIDE, media=media)
    whole = list(make_lines(composer, kind, 0, 60, seed=3))
    chunks = [*make_lines(composer, kind, 0, 25, seed=3), *make_lines(composer, kind, 25, 60, seed=3)]
    assert whole == chunks
    assert whole != list(make_lines(composer, kind, 0, 60, seed=4))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("kind", LINES)
def test_no_combination_of_another_split_is_in_any_line(composers, kind, split):
    composer, allowed, shown = composers[split], {dialogues.OUTSIDE_CAPTION}, set(OUTSIDE)
    for modality, each in itertools.product(MODALITIES, DERIVED[split]):  # dev may make what train may, but shows its own
        media = combinations(composers[each].setting, modality)
        allowed |= {medium.caption for medium in media}
        shown |= {path_of(medium) for medium in media} if each == split else set()
    assert DERIVED["train"] == ("train",) and "heldout" not in DERIVED["dev"]
    for role, part in itertools.chain.from_iterable(map(parts, make_lines(composer, kind, 0, 700))):
        own = composers[split].setting
        if role == "user" and part.get("caption", dialogues.OUTSIDE_CAPTION) != dialogues.OUTSIDE_CAPTION:
            assert part["caption"] in {medium.caption for medium in combinations(own, part["type"])}
        assert part.get("caption") is None or part["caption"] in allowed
        assert part.get("path") is None or part["path"] in shown


def test_all_that_the_turns_hold_is_of_the_training_split(composer):
    made = set()
    for seed in range(1200):
        for turn in composer.conversation(random.Random(seed)):
            parts = [part for part in (*turn.user, *turn.assistant) if not isinstance(part, str)]
            media = [part.medium for part in parts if part.medium]
            assert all(medium.split == "train" for medium in (*media, *filter(None, [turn.medium])))
            made |= {type(medium) for medium in media}
    assert made == {Picture, Sound, Clip}


def test_everything_can_be_asked_for(composer):
    setting = composer.setting
    assert {picture.concept for picture in combinations(setting, "image")} == set(setting.names) == set(setting.glosses)
    assert {sound.name for sound in combinations(setting, "audio")} == set(setting.instruments)
    assert {clip.concept for clip in combinations(setting, "video")} == set(setting.filmed)
    assert {composer.pictures.sample(random.Random(i)).concept for i in range(20_000)} == set(setting.names)
    assert {composer.sounds.sample(random.Random(i)).name for i in range(5_000)} == set(setting.instruments)


@pytest.mark.slow
def test_what_is_announced_is_made_and_nothing_else_is_promised(composer):
    """The last thing that an announcement names is what it announces, in the right number."""
    parser = AnswerParser.of_world(composer.setting.concepts, composer.setting.instruments)
    count = misread = 0
    for line in make_lines(composer, "align_decoders", 0, 400):
        said, made = json.loads(line)["messages"][1]["content"]
        medium = {m.caption: m for m in combinations(composer.setting, made["type"])}[made["caption"]]
        claims = parser.claims(said["text"])
        count, misread = count + 1, misread + any(medium[0] not in claim for claim in claims)
        assert not re.search(r"\ba [aeio]\w|\ban [bcdfgjklmnp]\w|\{", said["text"])
        assert not re.search(rf"\b(?:an?|is|this) {medium[0]}\b", said["text"]) or not medium[0].endswith(
            ("ies", "jeans", "socks")
        )
    assert count == 400 and misread <= 8  # "cake" in "a piece of cake"


def test_what_is_made_is_named_with_all_that_is_remarkable(composer):
    """A person sees what was understood, and the model has it in words before it makes it."""
    words = {"size": r"\b(?:small|smaller|little|tiny|size)", "style": r"\b(?:flat|cartoon)\b", "background": r"\b{}\b"}
    rng, named = random.Random(0), Counter()
    for _ in range(300):
        for turn in composer.conversation(rng):
            for said, made in itertools.pairwise(turn.assistant):
                if not isinstance(made, Made):
                    continue
                parts = parts_of(made.medium)
                assert re.search(rf"\b{made.medium[0]}\b", said, re.IGNORECASE), (said, made)
                for part in remarkable(made.medium) & words.keys():
                    assert re.search(words[part].format(parts[part]), said, re.IGNORECASE), (said, made)
                    named[part] += 1
    assert min(named[part] for part in words) > 10


def test_a_thing_and_its_parts_are_a_phrase(composer):
    phrase = composer.setting.replies.phrase
    owl = Picture("owl", style="flat", background="blue", size="small")
    assert phrase(owl, {"concept", "style", "background", "size"}) == "a small flat owl on blue"
    assert phrase(owl, {"concept"}) == phrase(owl, ()) == "an owl"
    assert phrase(Picture("cherries", style="cartoon"), {"style"}) == "cartoon cherries"
    assert phrase(Clip("owl", "sliding left"), {"motion"}) == "an owl sliding left"
    assert phrase(Sound("violin", "low", "chord"), {"register", "figure"}) == "a chord on a low violin"


def test_every_answer_of_a_scenario_holds_what_it_must(composer):
    """Each last answer of some hundred scenarios, read by the answers' parser as the evaluation reads a model's."""
    parser = AnswerParser.of_world(composer.setting.concepts, composer.setting.instruments)
    every, about = [s for some in composer.scenarios.about.values() for s in some], Counter()
    for number, scenario in enumerate(random.Random(0).sample(every, 500)):
        try:
            last = composer.scenarios(scenario, random.Random(number))[-1]
        except NoSuchMedium:  # it names one sound, which is held out
            continue
        words = " ".join(part for part in last.assistant if isinstance(part, str))
        made = [modality_of(part.medium) for part in last.assistant if isinstance(part, Made)]
        assert made == [kind for part in scenario.answer for kind in part if kind != "text"]
        for told in last.checks:
            assert not parser.misses(words, told), (last, told)
        about[scenario.about] += 1
    assert about.total() > 480 and set(about) == set(ABOUT)


def test_scenarios_keep_what_a_change_does_not_name_and_begin_a_new_subject_with_the_defaults(composer):
    def play(about: str, *turns: dict) -> list[list]:
        scenario = Scenario.from_line(json.dumps({"about": about, "turns": turns}))
        played = composer.scenarios(scenario, random.Random(0))
        return [[part.medium for part in turn.assistant if isinstance(part, Made)] for turn in played]

    first = {
        "user": "{a_concept} on red, small",
        "answer": [{"image": {"concept": "{concept}", "background": "red", "size": "small"}}],
    }
    second = {"user": "flat", "answer": [{"image": {"style": "flat"}}]}
    (was,), (changed,) = play("change", first, second)
    assert changed == was._replace(style="flat") and was.background == "red"
    other = {"user": "now {a_concept_2}", "answer": [{"image": {"concept": "{concept_2}"}}]}
    (_,), (new,) = play("new subject", first, other)
    assert new == Picture(new.concept) and new.concept != was.concept
    several = {
        "user": "play {a_sound}, draw {a_concept}",
        "answer": [{"audio": {"instrument": "{sound}"}}, {"image": {"concept": "{concept}"}}],
    }
    ((sound, picture),) = play("mixture", several)
    assert (type(sound), type(picture)) == (Sound, Picture)


def test_what_is_not_allowed_is_declined_and_the_system_message_says_what_is(composer):
    limited = Counter()
    for seed in range(1500):
        turns = composer.conversation(random.Random(seed))
        if (only := turns[0].only) is None:
            continue
        messages = media_line(turns)["messages"]
        assert messages[0]["role"] == "system" and messages[0]["content"][0]["text"].endswith(answer_only(only))
        for turn in turns:
            made = {modality_of(part.medium) for part in turn.assistant if isinstance(part, Made)}
            assert made <= set(only)
            limited["made" if made else "not"] += 1
    assert min(limited.values()) > 8 and len(limited) == 2
    assert answer_only(("audio", "text")) == "Answer with text and audio only."


def test_text_holds_captions_and_no_files(composer):
    lines = [json.loads(line) for line in make_lines(composer, "text", 0, 300)]
    every = [part for line in lines for message in line["messages"] for part in message["content"]]
    assert all(("text" in part) != ("caption" in part) and "path" not in part for part in every)
    assert {part["type"] for part in every} == {"text", *MODALITIES}


def test_with_pictures_alone_nothing_else_is_spoken_of(world):
    composer = load_composer(world, "train", OUTSIDE, media=("image",))
    lines = [json.loads(line) for line in make_lines(composer, "instruct", 0, 800)]
    assert {part["type"] for line in lines for m in line["messages"] for part in m["content"]} == {"text", "image"}
    assert not {intent for line in lines for intent in line["intents"]} & {"play", "film", "sound_of_shown", "outside_play"}


@pytest.mark.parametrize("other", ["audio", "video"])
def test_pictures_and_one_other_kind_can_be_spoken_of(world, other):
    composer = load_composer(world, "train", OUTSIDE, media=("image", other))
    turns = [turn for seed in range(600) for turn in composer.conversation(random.Random(seed))]
    shown = {part.modality for turn in turns for part in turn.user if isinstance(part, Shown)}
    made = {modality_of(part.medium) for turn in turns for part in turn.assistant if isinstance(part, Made)}
    assert shown == made == {"image", other}


def test_what_the_user_does_not_say_stays_or_takes_the_default(composer):
    checked = dict.fromkeys(MODALITIES, 0)
    for seed in range(400):
        turns = composer.conversation(random.Random(seed))
        for before, after in itertools.pairwise(turns):
            shown = any(isinstance(part, Shown) for part in after.user)
            if before.medium and after.medium and after.intent.startswith("change_") and not shown:
                changed = {k for k in before.medium._fields if getattr(after.medium, k) != getattr(before.medium, k)}
                if isinstance(before.medium, Sound) and not (before.medium.register and after.medium.register):
                    changed = {"name"}  # between instruments and effects the notes come and go
                what = {"sound": "name", "filmed": "concept"}.get(what := after.intent.removeprefix("change_"), what)
                assert len(changed) <= 2 and what in changed
                checked[modality_of(before.medium)] += 1
    assert min(checked.values()) > 10


def test_crossings_lead_from_a_thing_to_its_sound_its_picture_and_its_clip(composer):
    setting = composer.setting
    assert setting.sound_of["helicopter"] == "helicopter" and setting.concept_of["seashore"] == "wave"
    for kind in composer.crossings.crossings:
        modality, other = kind.split(" → ")
        for seed in range(30):
            turn = composer.turn(kind, random.Random(seed))
            (shown,) = [part for part in turn.user if isinstance(part, Shown)]
            (made,) = [part.medium for part in turn.assistant if isinstance(part, Made)]
            assert (shown.modality, modality_of(made)) == (modality, other)
            seen = [setting.concept_of[m.name] if isinstance(m, Sound) else m.concept for m in (shown.medium, made)]
            assert seen[0] == seen[1]
    assert set(composer.crossings.crossings) == {f"{a} → {b}" for a, b in itertools.permutations(MODALITIES, 2)}


def test_two_kinds_in_one_answer_come_in_the_order_asked_for(composer):
    orders = {"draw_and_play": (Picture, Sound), "play_and_draw": (Sound, Picture), "draw_and_film": (Picture, Clip)}
    for intent, order in (orders | {"film_and_play": (Clip, Sound)}).items():
        turns = [composer.turn(intent, random.Random(seed)) for seed in range(40)]
        kinds = [tuple(type(part.medium) for part in turn.assistant if isinstance(part, Made)) for turn in turns]
        assert kinds.count(order) > 15 and set(kinds) <= {order, tuple(kind for kind in order if kind is not Sound)}


def test_what_cannot_be_made_is_declined_and_what_can_is_offered(composer):
    parser = AnswerParser.of_world(composer.setting.concepts, composer.setting.instruments)
    for kind in ("outside_play", "unplayable", "undrawable", "outside_film", "unfilmable", "outside_motion"):
        turns = [composer.turn(kind, random.Random(seed)) for seed in range(60)]
        assert all(parser.refuses(turn.assistant[0]) for turn in turns), kind
        offers = [turn.offer for turn in turns if turn.offer]
        assert len(offers) > 5
        for seed, offer in enumerate(offers):
            turn = composer.talk.answer_offer(random.Random(seed), offer)
            assert {part.medium[0] for part in turn.assistant if isinstance(part, Made)} <= {offer.name}


def test_media_from_outside_the_world_are_not_named(composer):
    for modality in MODALITIES:
        turn = composer.turn(f"{modality} show_outside", random.Random(0))
        (shown,) = [part for part in turn.user if isinstance(part, Shown)]
        assert shown.modality == modality and shown.path in OUTSIDE
        (said,) = turn.assistant
        assert said in {answer.text for answer in composer.setting.replies.answers[f"unknown_{modality}"]}


def test_phrasings_are_well_formed_and_cover_every_intent():
    phrasings = load_phrasings(PHRASINGS)
    assert set(phrasings) == set(INTENT_SLOTS)
    with pytest.raises(ValueError, match="slots not allowed"):
        parse_phrasing('{"intent": "describe", "text": "what is this {colour}?"}')
    with pytest.raises(ValueError, match="needs one of the slots motion, move, moves"):
        parse_phrasing('{"intent": "film", "text": "film {a_concept}"}')


def test_all_malformed_phrasings_are_named_at_once(tmp_path):
    lines = [{"intent": "draw", "text": "draw it"}, {"intent": "name", "text": "what?"}, {"intent": "smell", "text": ""}]
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: .*\n.*line 3: unknown intent 'smell'"):
        load_phrasings(tmp_path)


def test_a_training_phrasing_that_is_tested_is_a_fault():
    line = json.dumps({"intent": "name", "text": "What is this?!"})
    assert "is a test phrasing" in fault(line, {"what is this"}) and fault(line, {"who is this"}) == ""
    assert "unknown intent" in fault('{"intent": "smell", "text": ""}', set())


@pytest.mark.slow
def test_no_test_phrasing_is_within_two_edits_of_what_is_learned():
    tested = {normalise(phrasing.text) for some in load_phrasings(TEST_PHRASINGS).values() for phrasing in some}
    assert not near(tested, {normalise(text) for text in taught()})


def taught() -> list[str]:
    """All that users say, slots open."""
    texts = [phrasing.text for some in load_phrasings().values() for phrasing in some]
    for scenario in load_scenarios():
        texts += [" ".join(p for p in parts_of_user(turn["user"]) if isinstance(p, str)) for turn in scenario.turns]
    return texts


def test_outside_things_are_outside_the_world(composer):
    setting = composer.setting
    inside = {word.lower() for concept in setting.concepts.values() for word in (concept.name, *concept.synonyms)}
    heard = {name for instrument in setting.instruments.values() for name in instrument.articles}
    for things, known in ((setting.outside, inside | heard), (setting.outside_sounds, heard)):
        assert len(things) > 80
        assert not [thing for thing, _ in things if re.sub(r"^(an?|the) ", "", thing) in known]


def test_a_slip_changes_one_word_only():
    rng = random.Random(0)
    slips = {misspell("an old telephone", rng) for _ in range(100)}
    assert len(slips) > 10 and all(slip.startswith("an old ") or slip.endswith(" telephone") for slip in slips)
    assert misspell("so a", rng) == "so a"


def test_requests_are_typed_in_all_the_ways_as_often_as_stated():
    typed = [roughen("What's this? Draw a small cat.", random.Random(seed)) for seed in range(4000)]
    shares = {
        "capitals": sum(text.upper() == text for text in typed),
        "lower case": sum(text.lower() == text for text in typed),
        "no apostrophe": sum("what's" not in text.lower() for text in typed),
    }
    for what, count in shares.items():
        assert 0.8 * RATES[what] <= count / 4000 <= 2.2 * RATES[what], what
    assert len(set(typed)) > 500


def test_there_are_nineteen_thousand_wordings_and_none_is_more_than_one_of_a_hundred(composer):
    assert len({re.sub(r"\{\w+\}", "_", normalise(text)) for text in taught()}) >= 19_000
    said = Counter()
    for line in make_lines(composer, "text", 0, 1000):
        for message in json.loads(line)["messages"]:
            if message["role"] == "user":
                said[normalise(" ".join(part.get("text", "") for part in message["content"]))] += 1
    assert said.most_common(1)[0][1] <= said.total() / 100


def test_a_motion_is_said_as_a_verb_for_one_thing_and_for_several(composer):
    replies = composer.setting.replies
    said = {(motion, replies.words(Clip(thing, motion))["moves"]) for motion in MOTIONS for thing in ("cat", "cherries")}
    assert {("bouncing", "bounces"), ("bouncing", "bounce"), ("shrinking", "shrinks"), ("sliding up", "slide up")} <= said


def test_things_whose_defaults_are_withheld_are_just_asked_for_and_nothing_else_of_them_is_taught(world):
    composer = load_composer(world, "train", OUTSIDE, asks_withheld=True)
    setting, asked = composer.setting, set()
    withheld = {name for name in setting.names if not setting.permits(Picture(name))}
    unheard = {name for name in composer.sounds.pitched if not setting.permits(Sound(name, **SOUND_DEFAULTS))}
    assert len(withheld) > 10 and len(unheard) > 4, "some defaults are held out"
    for line in make_lines(composer, "text", 0, 4_000):
        for role, part in parts(line):
            if "open" in part:
                assert role == "assistant" and part["caption"] in (unheard if part["type"] == "audio" else withheld)
                asked.add(part["caption"])
    assert len(asked) > 0.9 * len(withheld | unheard)


@pytest.mark.parametrize("kind", ["instruct", "align_decoders"])
def test_what_is_withheld_is_not_made_of_real_media(composer, kind):
    lines = make_lines(composer, kind, 0, 300)
    assert not any("open" in part for line in lines for _, part in parts(line))


@pytest.mark.parametrize(("offer", "count"), [("a cat", 1), ("some popcorn instead", 1), ("a zorble", 0), ("a city", 0)])
def test_nobody_is_offered_what_the_world_lacks(composer, offer, count):
    turn = {"user": "Draw me.", "answer": [{"text": {"refuses": True}}], "reply": f"No. I could draw {offer}."}
    assert len(ScenarioTurns(composer, [Scenario("refusal", (turn,))]).about["refusal"]) == count


def test_some_conversations_go_on_for_many_turns(composer):
    lengths = Counter(len(composer.conversation(random.Random(seed), long=0.5)) for seed in range(200))
    most = dialogues.LONG_TURNS[1]
    assert max(lengths) <= most + 1 and sum(n for length, n in lengths.items() if length > 4) > 60
    assert max(len(composer.conversation(random.Random(seed))) for seed in range(100)) <= dialogues.SHORT_TURNS
