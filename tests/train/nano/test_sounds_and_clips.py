"""The worlds of sounds and of clips: what is in them, their split, their captions, and that clips move as they say."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch

from nextgpt.train.nano.models.captions import clip_captions, clip_numbers, sound_captions
from nextgpt.train.nano.world import player, sounds
from nextgpt.train.nano.world.clips import FRAMES, MOTIONS, ClipRenderer, ClipWorld
from nextgpt.train.nano.world.pictures import CONCEPTS, Renderer, World


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both worlds with every name in them; the artwork is a black bar that stands upright left of the middle."""
    folder = tmp_path_factory.mktemp("world")
    concepts = json.loads(CONCEPTS.read_text(encoding="utf-8"))
    (folder / "world.json").write_text(json.dumps({"concepts": concepts}), encoding="utf-8")
    (folder / "sounds.json").write_text(json.dumps(sounds.load_sounds()), encoding="utf-8")
    bar = np.zeros((64, 64, 4), np.uint8)
    bar[8:56, 12:28] = (0, 0, 0, 255)
    np.savez(folder / "art.npz", art=np.broadcast_to(bar, (len(concepts), 3, 64, 64, 4)))
    return folder


@pytest.fixture(scope="module")
def clip_world(folder):
    return ClipWorld(World(folder))


def test_a_tenth_of_sounds_and_clips_is_held_out_and_every_value_is_learned(folder, clip_world):
    pitched = [sound for sound in sounds.SoundWorld(folder).combinations if sound.register]
    for combinations in (pitched, clip_world.combinations):
        splits = Counter(each.split for each in combinations)
        assert splits["heldout"] / len(combinations) == pytest.approx(0.10, abs=0.03)
        learned = [each for each in combinations if each.split == "train"]
        for every, seen in zip(zip(*combinations, strict=True), zip(*learned, strict=True), strict=True):
            assert set(seen) == set(every)


def test_no_look_of_a_clip_that_is_held_out_is_learned_from(clip_world):
    names, motions = clip_world.world.names, clip_world.motions
    learned = {(names[concept], motions[motion]) for concept, motion, *_ in clip_world.extra_training_clips().tolist()}
    kept_apart = {(clip.concept, clip.motion) for clip in clip_world.combinations if clip.split != "train"}
    assert kept_apart and not learned & kept_apart
    assert len({name for name, _ in learned}) == len(names), "something of every thing is learned"


def test_the_world_of_sounds_is_as_large_as_promised(folder):
    world = sounds.SoundWorld(folder)
    assert len(world.sounds) >= 40
    names = Counter(word for sound in world.sounds for word in (sound["name"], *sound["synonyms"]))
    assert [name for name, count in names.items() if count > 1] == []
    linked = {c["sound"] for c in json.loads(CONCEPTS.read_text(encoding="utf-8")) if "sound" in c}
    assert linked <= set(world.names) and len(linked) >= 25


def test_figures_stay_within_the_sound_and_within_an_octave():
    for notes in player.FIGURES.values():
        assert all(0 <= start < end <= player.SECONDS and 0 <= step <= 12 for start, end, step in notes)
    lowest = sorted(player.REGISTERS.values())
    assert all(high - low > 12 for low, high in itertools.pairwise(lowest)), "registers must not overlap"


def test_captions_of_sounds_and_clips_are_all_different(folder, clip_world):
    world = sounds.SoundWorld(folder)
    ids = sound_captions(world)[0](torch.arange(len(world.captioned)))
    assert len({tuple(row) for row in ids.tolist()}) == len(world.captioned)
    captions, values = clip_captions(clip_world.world)
    rows = torch.cat([clip_world.rows(split) for split in ("train", "dev", "heldout")])
    numbers = clip_numbers(clip_world, rows)
    assert len({tuple(row) for row in captions(numbers).tolist()}) == len(clip_world.combinations)
    assert torch.equal(values["motion"][numbers], rows[:, 1])


def test_clips_move_as_they_say(clip_world):
    renderer = ClipRenderer(clip_world.world, Renderer(torch.from_numpy(clip_world.world.art)))
    clips = renderer(torch.tensor([(0, motion) for motion in range(len(MOTIONS))]))
    assert clips.shape == (len(MOTIONS), 3, FRAMES, 64, 64)
    dark = 1 - clips.mean(1)  # [motion, frame, y, x]
    dark = dark - dark.amin((2, 3), keepdim=True)
    area = dark.sum((2, 3))
    places = torch.arange(64.0)
    x, y = (dark.sum(2) * places).sum(-1) / area, (dark.sum(3) * places).sum(-1) / area
    moved = {motion: (x[n], y[n], area[n]) for n, motion in enumerate(MOTIONS)}
    assert (moved["sliding left"][0].diff() < -1).all() and (moved["sliding right"][0].diff() > 1).all()
    assert (moved["sliding up"][1].diff() < -1).all() and (moved["sliding down"][1].diff() > 1).all()
    assert (moved["growing"][2].diff() > 0).all() and (moved["shrinking"][2].diff() < 0).all()
    turned = torch.atan2(moved["spinning"][1] - 31.5, moved["spinning"][0] - 31.5)  # clockwise: y points down
    assert (turned.diff().remainder(2 * torch.pi) - torch.pi / 4).abs().max() < 0.1
    bounced = moved["bouncing"][1]
    assert bounced.argmax() in (0, 4) and bounced.argmin() in (2, 6) and bounced.max() - bounced.min() > 20


@pytest.mark.skipif(not player.SOUNDFONT.exists(), reason="no FluidR3 soundfont here (Debian: fluid-soundfont-gm)")
def test_a_rising_scale_rises():
    pytest.importorskip("tinysoundfont", reason="no tinysoundfont here (pip install --no-deps tinysoundfont)")
    synth = player.Player()
    flute = next(sound for sound in sounds.load_sounds() if sound["name"] == "flute")
    waveform = torch.from_numpy(synth(flute, "middle", "rising scale"))
    assert waveform.shape == (player.SAMPLES,) and waveform.abs().max() == pytest.approx(player.PEAK, abs=1e-3)
    notes = waveform[: 8 * 3520].view(8, 3520)[:, 800:3200]  # of 0.22 seconds each
    pitches = torch.fft.rfft(notes * torch.hann_window(2400), n=16_000).abs().argmax(1)
    assert (pitches.diff() > 5).all()
