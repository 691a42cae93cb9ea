"""The nano dialogues: what they may hold, what each answer says, and that the same seed says the same again."""

import itertools
import json
import random
from pathlib import Path

import pytest
import torch

from nextgpt.train.nano import dialogues, language_model
from nextgpt.train.nano.dialogues import CAPTION, LINES, Picture, load_composer, make_lines
from nextgpt.train.nano.phrasings import INTENT_SLOTS, PHRASINGS, load_phrasings, misspell, normalise, parse_phrasing

NANO = Path(dialogues.__file__).parent
OUTSIDE = ["images/outside/train/0.png"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    concepts = json.loads((NANO / "concepts.json").read_text(encoding="utf-8"))
    (folder / "world.json").write_text(json.dumps({"concepts": concepts}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def composer(world):
    return load_composer(world, "train", OUTSIDE)


def parts(line: str):
    for message in json.loads(line)["messages"]:
        for part in message["content"]:
            yield message["role"], part


@pytest.mark.parametrize("kind", LINES)
def test_the_same_seed_gives_the_same_lines_in_any_chunks(composer, kind):
    whole = list(make_lines(composer, kind, 0, 60, seed=3))
    chunks = [*make_lines(composer, kind, 0, 25, seed=3), *make_lines(composer, kind, 25, 60, seed=3)]
    assert whole == chunks
    assert whole != list(make_lines(composer, kind, 0, 60, seed=4))


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("kind", LINES)
def test_no_combination_of_another_split_is_in_any_line(world, kind, split):
    composer = load_composer(world, split, OUTSIDE)
    allowed = {picture.caption for picture in dialogues.combinations(composer)}
    paths = {picture.path for picture in dialogues.combinations(composer)} | set(OUTSIDE)
    for role, part in itertools.chain.from_iterable(map(parts, make_lines(composer, kind, 0, 1500))):
        text = part.get("text", part.get("caption", ""))
        captions = CAPTION.findall(text) if role == "assistant" else language_model.PICTURE.findall(text)
        assert set(captions) <= allowed | {dialogues.OUTSIDE_CAPTION}
        assert part.get("path") is None or part["path"] in paths


def test_every_concept_can_be_drawn_and_defined(composer):
    pictures = dialogues.combinations(composer)
    assert {picture.concept for picture in pictures} == set(composer.names) == set(composer.glosses)
    seen = {picture.concept for picture in (composer.sample(random.Random(i)) for i in range(20_000))}
    assert seen == set(composer.names)


def test_each_drawing_is_announced_by_its_caption(composer):
    for kind in ("instruct", "align_decoders"):
        drawn = 0
        for line in make_lines(composer, kind, 0, 1000):
            said = ""
            for role, part in parts(line):
                if role == "assistant" and part["type"] == "image":
                    assert f"ere is {part['caption']}." in said
                    drawn += 1
                said = part.get("text", "")
        assert drawn > 500


def test_text_holds_words_only(composer):
    assert all(part["type"] == "text" for line in make_lines(composer, "text", 0, 500) for _, part in parts(line))


def test_what_the_user_does_not_say_stays_or_takes_the_default(composer):
    checked = 0
    for seed in range(60):
        turns = composer.conversation(random.Random(seed))
        for before, after in itertools.pairwise(turns):
            shown = any(isinstance(part, dialogues.Shown) for part in after.user)
            if before.picture and after.intent.startswith("change_") and not shown:
                changed = {k for k in Picture._fields if getattr(after.picture, k) != getattr(before.picture, k)}
                assert len(changed) <= 2 and after.intent.removeprefix("change_") in changed
                checked += 1
    assert checked > 10


def test_phrasings_are_well_formed_and_cover_every_intent():
    phrasings = load_phrasings(PHRASINGS)
    assert set(phrasings) == set(INTENT_SLOTS)
    with pytest.raises(ValueError, match="slots not allowed"):
        parse_phrasing('{"intent": "describe", "text": "what is this {colour}?"}')


def test_test_phrasings_are_not_among_the_training_phrasings():
    lines = (NANO / "data" / "test_phrasings.jsonl").read_text(encoding="utf-8").splitlines()
    tested = {normalise(json.loads(line)["text"]) for line in lines if line.strip()}
    trained = {normalise(phrasing.text) for phrasings in load_phrasings().values() for phrasing in phrasings}
    assert sorted(tested & trained) == []


def test_outside_things_are_outside_the_world(composer):
    inside = {word.lower() for concept in composer.concepts.values() for word in (concept.name, *concept.synonyms)}
    assert not [thing for thing, _ in composer.outside if thing.removeprefix("a ").removeprefix("an ") in inside]


def test_a_slip_changes_one_long_word_only():
    rng = random.Random(0)
    slips = {misspell("an old telephone", rng) for _ in range(50)}
    assert len(slips) > 10 and all(slip.startswith("an old ") for slip in slips)
    assert misspell("a cat", rng) == "a cat"


@pytest.fixture(scope="module")
def tokenizer(composer):
    texts = [part["text"] for line in make_lines(composer, "text", 0, 300) for _, part in parts(line)]
    return language_model.train_tokenizer([*texts, language_model.SYSTEM_PROMPT], vocab_size=600)


def test_training_sees_what_the_chat_template_renders(tokenizer):
    messages = [("user", "draw 2 cats, 3d"), ("assistant", "Here is a cat."), ("user", "<s> naïve 🙂")]
    example = language_model.Encoder(tokenizer)(messages, False, random.Random(0))
    chat = [{"role": role, "content": text} for role, text in messages]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(example.tokens) == rendered


def test_a_picture_is_read_as_the_sum_of_its_words(tokenizer):
    encoder = language_model.Encoder(tokenizer)
    message = ("user", "what is this? (picture: a small cat, flat style, red background)")
    example = encoder([message], True, random.Random(0))
    assert "picture" not in tokenizer.decode(example.tokens)
    assert [tokenizer.decode(bag) for bag in example.bags] == [" small cat flat red"]
    model = language_model.new_model(tokenizer)
    bags = torch.tensor([bag + [-1] * (language_model.BAG - len(bag)) for bag in example.bags])
    embedded = language_model.embed(model, torch.tensor([example.tokens]), torch.tensor([example.soft]), bags)
    summed = model.get_input_embeddings()(torch.tensor(example.bags[0])).sum(0)
    assert torch.allclose(embedded[0, example.soft.index(0)], summed, atol=1e-6)
