"""The nano dialogues: what they may hold, what each answer says, and that the same seed says the same again."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest
import torch

from nextgpt.signals import MODALITIES
from nextgpt.train.nano.dialogues import composer as dialogues
from nextgpt.train.nano.dialogues import corpus
from nextgpt.train.nano.dialogues.composer import LINES, combinations, load_composer, make_lines
from nextgpt.train.nano.dialogues.phrasings import (
    INTENT_SLOTS,
    PHRASINGS,
    TEST_PHRASINGS,
    fault,
    load_phrasings,
    misspell,
    normalise,
    parse_phrasing,
)
from nextgpt.train.nano.dialogues.turns import DERIVED, Made, Shown
from nextgpt.train.nano.models import language_model
from nextgpt.train.nano.world.pictures import CONCEPTS
from nextgpt.train.nano.world.sounds import load_sounds
from nextgpt.train.nano.world.things import CAPTION, SHOWN, Clip, Picture, Sound, modality_of, path_of

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


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("kind", LINES)
def test_no_combination_of_another_split_is_in_any_line(composers, kind, split):
    composer = composers[split]
    setting, allowed, shown = composer.setting, {dialogues.OUTSIDE_CAPTION}, set(OUTSIDE)
    for modality, each in itertools.product(MODALITIES, DERIVED[split]):  # dev may make what train may, but shows its own
        media = combinations(composers[each].setting, modality)
        allowed |= {caption for medium in media for caption in (medium.caption, setting.spoken(medium))}
        shown |= {path_of(medium) for medium in media} if each == split else set()
    assert DERIVED["train"] == ("train",) and "heldout" not in DERIVED["dev"]
    for role, part in itertools.chain.from_iterable(map(parts, make_lines(composer, kind, 0, 700))):
        text = part.get("text", part.get("caption", ""))
        captions = CAPTION.findall(text) if role == "assistant" else SHOWN.findall(text)
        assert set(captions) <= allowed
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


@pytest.mark.parametrize("kind", ["instruct", "align_decoders"])
def test_each_medium_is_announced_by_its_caption(composer, kind):
    spoken = {}
    for modality in MODALITIES:
        spoken |= {medium.caption: composer.setting.spoken(medium) for medium in combinations(composer.setting, modality)}
    made = dict.fromkeys(MODALITIES, 0)
    for line in make_lines(composer, kind, 0, 1000):
        said = ""
        for role, part in parts(line):
            if role == "assistant" and part["type"] != "text":
                assert re.search(rf"ere (is|are) {re.escape(spoken[part['caption']])}\.$", said)
                made[part["type"]] += 1
            said = part.get("text", "")
    assert min(made.values()) > 100


def test_text_holds_words_only(composer):
    lines = list(make_lines(composer, "text", 0, 500))
    assert all(part["type"] == "text" for line in lines for _, part in parts(line))
    for said in ("(picture: a large", "(sound: a low", "(sound: the sound of a", "(clip: a"):
        assert any(said in line for line in lines)


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
            if before.medium and after.intent.startswith("change_") and not shown:
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
    for kind in ("outside_play", "unplayable", "undrawable", "outside_film", "unfilmable", "outside_motion"):
        turns = [composer.turn(kind, random.Random(seed)) for seed in range(60)]
        assert all(re.match("I can't |I don't know ", turn.assistant[0]) for turn in turns)
        assert not any(CAPTION.search(turn.assistant[0]) for turn in turns)
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
        assert turn.assistant == ["I can't tell what this is."]


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


def test_test_phrasings_are_not_among_the_training_phrasings():
    tested = {normalise(phrasing.text) for phrasings in load_phrasings(TEST_PHRASINGS).values() for phrasing in phrasings}
    for media in (("image",), MODALITIES):
        trained = {normalise(phrasing.text) for some in load_phrasings(media=media).values() for phrasing in some}
        assert sorted(tested & trained) == []


def test_outside_things_are_outside_the_world(composer):
    setting = composer.setting
    inside = {word.lower() for concept in setting.concepts.values() for word in (concept.name, *concept.synonyms)}
    heard = {name for instrument in setting.instruments.values() for name in instrument.articles}
    for things, known in ((setting.outside, inside | heard), (setting.outside_sounds, heard)):
        assert len(things) > 80
        assert not [thing for thing, _ in things if re.sub(r"^(an?|the) ", "", thing) in known]


def test_a_slip_changes_one_long_word_only():
    rng = random.Random(0)
    slips = {misspell("an old telephone", rng) for _ in range(50)}
    assert len(slips) > 10 and all(slip.startswith("an old ") for slip in slips)
    assert misspell("a cat", rng) == "a cat"


@pytest.fixture(scope="module")
def tokenizer(composer):
    texts = [part["text"] for line in make_lines(composer, "text", 0, 300) for _, part in parts(line)]
    return corpus.train_tokenizer([*texts, corpus.SYSTEM_PROMPT], vocab_size=600)


def test_training_sees_what_the_chat_template_renders(tokenizer):
    messages = [("user", "draw 2 cats, 3d"), ("assistant", "Here is a cat."), ("user", "<s> naïve 🙂")]
    example = corpus.Encoder(tokenizer)(messages, False, random.Random(0))
    chat = [{"role": role, "content": text} for role, text in messages]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(example.tokens) == rendered


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("picture: a small cat, flat style, red background", " small cat flat red"),
        ("sound: a low trumpet, rising scale", " low trumpet rising scale"),
        ("sound: the sound of a helicopter", " helicopter"),
        ("clip: an apple, spinning", " apple spinning"),
    ],
)
def test_a_medium_is_read_as_the_sum_of_its_words(tokenizer, said, words):
    encoder = corpus.Encoder(tokenizer)
    example = encoder([("user", f"what is this? ({said})")], True, random.Random(0))
    assert said.split(":")[0] not in tokenizer.decode(example.tokens)
    assert [tokenizer.decode(bag) for bag in example.bags] == [words]
    model = language_model.new_model(tokenizer)
    bags = torch.tensor([bag + [-1] * (corpus.BAG - len(bag)) for bag in example.bags])
    embedded = language_model.embed(model, torch.tensor([example.tokens]), torch.tensor([example.soft]), bags)
    summed = model.get_input_embeddings()(torch.tensor(example.bags[0])).sum(0)
    assert torch.allclose(embedded[0, example.soft.index(0)], summed, atol=1e-6)
