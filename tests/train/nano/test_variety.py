"""Sounds in several takes, clips in several looks: how many there are, their split, and that they are shown and differ."""

import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
import torch

from nextgpt.hub.parts import preset_folder
from nextgpt.signals import MODALITIES
from nextgpt.train.nano.dialogues.composer import LINES, combinations, load_composer, make_lines, true_media
from nextgpt.train.nano.dialogues.turns import Shown
from nextgpt.train.nano.world import player, sounds
from nextgpt.train.nano.world.clips import Clip, ClipRenderer, ClipWorld, KeptClips
from nextgpt.train.nano.world.media_files import MAKERS
from nextgpt.train.nano.world.pictures import BACKGROUNDS, CONCEPTS, STYLES, Renderer, World
from nextgpt.train.nano.world.things import path_of

SPLITS = ("train", "dev", "heldout")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The whole world in names, all takes and looks; the artwork is a bar of another grey in each style."""
    folder = tmp_path_factory.mktemp("world")
    concepts = json.loads(CONCEPTS.read_text(encoding="utf-8"))
    world = {"concepts": concepts, "clips": {"styles": list(STYLES), "backgrounds": list(BACKGROUNDS)}}
    (folder / "world.json").write_text(json.dumps(world), encoding="utf-8")
    (folder / "sounds.json").write_text(json.dumps(sounds.load_sounds()), encoding="utf-8")
    pitched = [sound for sound in sounds.combinations(sounds.load_sounds()) if sound.register]
    takes = [sound._replace(take=take) for sound in pitched for take in range(1, sounds.TAKES)]
    (folder / "takes.json").write_text(json.dumps(takes), encoding="utf-8")
    art = np.zeros((len(concepts), 3, 64, 64, 4), np.uint8)
    art[:, :, 8:56, 12:28] = np.array([[grey, grey, grey, 255] for grey in (90, 128, 170)])[:, None, None]
    np.savez(folder / "art.npz", art=art)
    np.savez(folder / "outside.npz", art=art[:8, 0])
    return folder


@pytest.mark.parametrize("modality", MODALITIES)
def test_there_are_two_hundred_different_true_media_of_each_kind_to_measure_on(folder, modality):
    for split, least in (("heldout", 200), ("dev", 100)):
        media = true_media(load_composer(folder, split).setting, modality)
        measured = {medium for medium in media if medium.split == split}
        assert len(measured) >= least, (modality, split, len(measured))


def test_all_takes_and_looks_of_one_thing_are_of_one_split(folder):
    for sound in sounds.SoundWorld(folder).takes:
        assert sound.split == sound._replace(take=0).split
    clips = ClipWorld(World(folder))
    shares = Counter(clip.split for clip in clips.combinations)
    assert shares["heldout"] / len(clips.combinations) == pytest.approx(0.10, abs=0.03)
    for clip in clips.combinations:
        looks = clip.in_looks(clips.looks)
        assert looks == clip.in_looks(clips.looks) and len(set(looks)) == 6 and looks[0] == clip
        assert {look.split for look in looks} == {clip.split} and {look.caption for look in looks} == {clip.caption}
    learned = [clip for clip in clips.combinations if clip.split == "train"]
    assert {clip.concept for clip in learned} == set(clips.names) and {c.motion for c in learned} == set(clips.motions)


def test_every_medium_has_a_file_of_its_own(folder):
    paths = Counter(
        path_of(medium)
        for split, modality in itertools.product(SPLITS, ("audio", "video"))
        for medium in true_media(load_composer(folder, split).setting, modality)
        if medium.split == split
    )
    assert max(paths.values()) == 1
    assert path_of(Clip("cat", "spinning")) == "clips/cat/spinning.mp4"
    assert path_of(sounds.Sound("trumpet", "low", "chord")) == "sounds/trumpet/low_chord.wav"


@pytest.mark.parametrize("split", ["train", "dev"])
def test_takes_and_looks_are_shown_and_cross_no_split(folder, split):
    composer = load_composer(folder, split)
    allowed = {path_of(medium) for modality in MODALITIES for medium in true_media(composer.setting, modality)}
    plain = {path_of(medium) for modality in MODALITIES for medium in combinations(composer.setting, modality)}
    shown = {
        part["path"]
        for kind in LINES
        for line in make_lines(composer, kind, 0, 300)
        for message in json.loads(line)["messages"]
        for part in message["content"]
        if part.get("path")
    }
    assert shown <= allowed
    assert {path.split("/")[0] for path in shown - plain} == {"sounds", "clips"}


def test_what_is_made_is_plain(folder):
    composer = load_composer(folder, "train")
    for seed in range(300):
        for turn in composer.conversation(random.Random(seed)):
            media = [part.medium for part in (*turn.assistant, *turn.user) if not isinstance(part, (str, Shown))]
            assert not any(getattr(medium, "take", 0) for medium in (*media, turn.medium))
            assert all(medium.has_default_look for medium in (*media, turn.medium) if isinstance(medium, Clip))


def test_clips_show_their_style_and_background(folder):
    world = World(folder)
    clips = ClipWorld(world)
    renderer = ClipRenderer(world, Renderer(torch.from_numpy(world.art)))
    clip = Clip("cat", "growing", "flat", "blue")
    plain, blue = renderer(torch.tensor([clips.row(clip._replace(style="3d", background="white")), clips.row(clip)]))
    assert torch.equal(renderer(torch.tensor([clips.row(clip)[:2]]))[0], plain)
    assert torch.allclose(blue[:, 0, 0, 0] * 255, torch.tensor(BACKGROUNDS["blue"]).float())
    assert blue[:, -1, 32, 20].mul(255).round().tolist() == [128.0] * 3  # the second style's grey
    rows = clips.vary(clips.rows("train").repeat(2, 1))
    assert {tuple(look) for look in rows[:, 2:].tolist()} == set(itertools.product(range(3), range(8)))
    assert KeptClips(renderer, rows[:4])(3)[1].shape == (3, 2)


def test_files_of_clips_hold_all_looks(folder):
    world = World(folder)
    world.concepts = [concept for concept in world.concepts if concept["name"] in ("cat", "dog")]
    paths = [path for path, _ in MAKERS["video"](world, "train") if "outside" not in path]
    assert len(paths) == 6 * sum(clip.split == "train" for clip in ClipWorld(world).combinations)


def test_a_world_that_says_nothing_of_variety_has_none():
    world = preset_folder("nano") / "world"
    setting = load_composer(world, "heldout").setting
    assert setting.takes == [] and len(setting.filmed) == 60
    for modality in ("audio", "video"):
        assert true_media(setting, modality) == combinations(setting, modality)


@pytest.mark.skipif(not player.SOUNDFONT.exists(), reason="no FluidR3 soundfont here (Debian: fluid-soundfont-gm)")
def test_takes_differ_and_stay_in_their_register():
    pytest.importorskip("tinysoundfont", reason="no tinysoundfont here (pip install --no-deps tinysoundfont)")
    flute = [sound for sound in sounds.load_sounds() if sound["name"] == "flute"]
    known, played = zip(*sounds.takes(player.Player(), flute), strict=True)
    assert len({waveform.tobytes() for waveform in played}) == len(played) == 15 * (sounds.TAKES - 1)
    peaks = [np.abs(waveform).max() for waveform in played]
    assert max(peaks) <= player.PEAK + 1e-3 and min(peaks) < 0.75 * max(peaks), "some are softer"
    again = dict(zip(*zip(*sounds.takes(player.Player(), flute), strict=True), strict=True))
    assert all(np.allclose(again[sound], waveform, atol=1e-3) for sound, waveform in zip(known, played, strict=True))
