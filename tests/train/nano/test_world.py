"""The world of pictures, its split and its captions: on the concept list and on artwork made up here."""

import json
import re
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from nextgpt.train.nano.dialogues.composer import DATA
from nextgpt.train.nano.models.captions import CONTEXT, picture_captions, picture_numbers, train_clip_tokenizer
from nextgpt.train.nano.world.pictures import BACKGROUNDS, CONCEPTS, SIZES, STYLES, Renderer, World
from nextgpt.train.nano.world.sounds import load_sounds
from nextgpt.train.nano.world.split import split_of
from nextgpt.train.nano.world.things import article, bare

CONCEPT_LIST = json.loads(CONCEPTS.read_text(encoding="utf-8"))
ALL = list(product([concept["name"] for concept in CONCEPT_LIST], STYLES, BACKGROUNDS, SIZES))
FIXED_SPLIT = ["train", "heldout", "train", "train", "heldout", "train", "train", "train"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """All the names; the artwork is a red disc for every thing."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "world.json").write_text(json.dumps({"concepts": CONCEPT_LIST}), encoding="utf-8")
    y, x = np.mgrid[:64, :64] - 31.5
    disc = np.zeros((64, 64, 4), np.uint8)
    disc[x**2 + y**2 < 30**2] = (255, 0, 0, 255)
    np.savez(folder / "art.npz", art=np.broadcast_to(disc, (len(CONCEPT_LIST), len(STYLES), 64, 64, 4)))
    return World(folder)


def test_a_tenth_is_held_out_and_every_value_is_still_learned():
    splits = {combination: split_of(*combination) for combination in ALL}
    shares = {split: count / len(ALL) for split, count in Counter(splits.values()).items()}
    assert shares["heldout"] == pytest.approx(0.10, abs=0.01)
    assert shares["dev"] == pytest.approx(0.05, abs=0.01)
    learned = [combination for combination, split in splits.items() if split == "train"]
    for every, seen in zip(zip(*ALL, strict=True), zip(*learned, strict=True), strict=True):
        assert set(seen) == set(every)
    assert {c[:2] for c in learned} == {c[:2] for c in ALL}, "some artwork is never learned"


def test_the_split_never_changes():
    fixed = [split_of("banana", "3d", background, "large") for background in BACKGROUNDS]
    assert fixed == FIXED_SPLIT


def test_a_word_means_one_thing():
    meanings = Counter(word for c in CONCEPT_LIST for word in {c["name"], c["plural"], *c["synonyms"]})
    assert [word for word, count in meanings.items() if count > 1] == []


def test_what_people_ask_for_first_is_in_the_world():
    asked = "car house dog cat flower sun moon star heart ball pizza train tree fish bird book phone chair cake apple boat"
    asked += " plane rabbit horse dragon robot ghost unicorn dinosaur rocket truck bike hat shoe cup clock computer banana"
    known = {word for concept in CONCEPT_LIST for word in (concept["name"], *concept["synonyms"])}
    assert [word for word in asked.split() if word not in known] == []
    assert len(CONCEPT_LIST) >= 200
    assert sum("sound" in concept for concept in CONCEPT_LIST) >= 25
    assert sum(concept.get("filmed", False) for concept in CONCEPT_LIST) >= 60


def test_every_thing_has_its_grammar_its_gloss_and_a_picture_of_its_own():
    glosses = json.loads((DATA / "glosses.json").read_text(encoding="utf-8"))["glosses"]
    assert list(glosses) == [concept["name"] for concept in CONCEPT_LIST]
    for concept in CONCEPT_LIST:
        words = (concept["name"], concept["plural"], *concept["synonyms"])
        assert all(re.fullmatch(r"[a-z][a-z' -]*[a-z]", word) for word in words), words
        assert concept["article"] == (article(concept["name"]) if concept["number"] == "singular" else "")
        assert concept["number"] in ("singular", "plural", "mass")
        assert (concept["number"] == "singular") or concept["plural"] == concept["name"]
        assert glosses[concept["name"]] and len(glosses[concept["name"]].split()) <= 14
        assert "sound" not in concept or concept["filmed"]
    assert len({concept["codepoint"] for concept in CONCEPT_LIST}) == len(CONCEPT_LIST)


def test_what_is_outside_the_world_is_not_in_it_and_what_is_near_it_is():
    outside = json.loads((DATA / "outside.json").read_text(encoding="utf-8"))
    words = {word for c in CONCEPT_LIST for word in (c["name"], c["plural"], *c["synonyms"])}
    assert [thing for thing in outside["things"] if bare(thing) in words] == []
    assert set(outside["things"].values()) <= {concept["name"] for concept in CONCEPT_LIST}
    assert set(outside["sounds"].values()) <= {sound["name"] for sound in load_sounds()}


def test_pictures_show_the_artwork_in_its_size_on_its_background(world):
    for background, size in product(BACKGROUNDS, SIZES):
        picture = world.render("banana", "3d", background, size)
        assert picture.shape == (64, 64, 3)
        assert tuple(picture[0, 0]) == BACKGROUNDS[background]
        assert tuple(picture[32, 32]) == (255, 0, 0)
        width = (picture[32] == (255, 0, 0)).all(-1).sum() / 64
        assert width == pytest.approx({"large": 0.85, "small": 0.5}[size], abs=0.06)


def test_batches_and_single_pictures_are_the_same(world):
    rows = world.combinations("dev")[:8]
    batch = Renderer(torch.from_numpy(world.art))(rows)
    for row, pixels in zip(rows.tolist(), batch, strict=True):
        c, s, b, z = row
        single = world.render(world.names[c], world.styles[s], world.backgrounds[b], world.sizes[z])
        assert np.abs(pixels.mul(255).permute(1, 2, 0).numpy() - single).max() <= 1


def test_a_tokenizer_that_is_made_again_gives_words_the_same_ids():
    words = [f"{a}{b}{c}" for a in "bcfhmprs" for b in "aeiou" for c in "dgnrt"]
    first, *others = (train_clip_tokenizer(words).convert_tokens_to_ids([f"{word}</w>" for word in words]) for _ in range(4))
    assert len(set(first)) == len(words) and all(ids == first for ids in others)


@pytest.mark.slow
def test_every_word_of_a_caption_is_one_token_and_synonyms_fit_the_context(world):
    captions, values = picture_captions(world)  # raises when one is longer than the context
    for concept in CONCEPT_LIST:
        pieces = captions.tokenizer.tokenize(world.caption_of(concept["name"], "3d", "blue", "large"))
        assert all(piece.endswith("</w>") for piece in pieces), pieces
    rows = world.combinations("train")[:64]
    numbers = picture_numbers(world, rows)
    ids = captions(numbers)
    assert ids.shape == (64, CONTEXT)
    assert (ids == captions.tokenizer.eos_token_id).any(1).all()
    assert len({tuple(row) for row in ids.tolist()}) == 64
    assert torch.equal(torch.stack([part[numbers] for part in values.values()], dim=1), rows)
    assert world.caption(rows[5]) in captions.tokenizer.decode(ids[5]).replace(" ,", ",")
