"""The ladder: each part of nano alone, bars that follow from the rung below, and the paths that the rungs carry."""

import shutil

import numpy as np
import pytest
import torch

from nextgpt.errors import UserInputError
from nextgpt.hub.parts import preset_folder
from nextgpt.train.nano.evaluation import ladder
from nextgpt.train.nano.evaluation.ladder import RUNGS, Ladder, climb, linear_reading, paths
from nextgpt.train.nano.evaluation.reconstruct import reconstruct
from nextgpt.train.nano.evaluation.scores import Score, table

NANO = preset_folder("nano")


@pytest.fixture(scope="module")
def shipped():
    return Ladder(NANO, count=12)


def test_what_a_rung_may_lose_follows_from_the_rung_below(shipped):
    true = {score.part: score for score in shipped.measure("classifier-image")}
    assert {"concept", "style", "background", "size", "concept, small"} <= true.keys()
    assert all(score.count == 12 for part, score in true.items() if "small" not in part)
    again = {score.part: score for score in shipped.measure("there-and-back-image")}
    assert again["concept"].bar == pytest.approx(true["concept"].share - 0.01)
    assert again["concept, small"].bar == pytest.approx(true["concept, small"].share - 0.02)
    assert again["PSNR"].unit == "dB" and 20 < again["PSNR"].quantity < 45
    assert again["PSNR"].met is (again["PSNR"].quantity >= 30)
    assert "30 dB" in table([again["PSNR"]])


def test_pictures_sounds_and_clips_come_back_as_they_went(shipped):
    for modality in ("image", "audio", "video"):
        true = [shipped.bench.render(medium) for medium in shipped.true_media[modality][:2]]
        again = reconstruct(true, shipped.autoencoder(modality), shipped.vocoder() if modality == "audio" else None)
        assert [type(medium) for medium in again] == [type(medium) for medium in true]
        if modality == "audio":
            assert [len(sound.array) for sound in again] == [len(sound.array) for sound in true]
            assert again[0].sampling_rate == true[0].sampling_rate
            continue
        first, second = (np.asarray(getattr(medium, "frames", medium), float) for medium in true)
        came = np.asarray(getattr(again[0], "frames", again[0]), float)
        assert 2 * np.abs(came - first).mean() < np.abs(came - second).mean()


def test_a_rung_without_its_part_says_which_is_missing(tmp_path):
    shutil.copytree(NANO / "world", tmp_path / "world")
    missing = dict(climb(Ladder(tmp_path, count=3), ["classifier-image", "language-model"]))
    assert (
        "holds no picture_classifier" in missing["classifier-image"][0].note
        and str(tmp_path) in missing["classifier-image"][0].note
    )
    assert "holds no language_model" in missing["language-model"][0].note
    assert not paths(Ladder(tmp_path))


def test_an_unknown_rung_is_named_with_those_there_are():
    with pytest.raises(UserInputError, match="--rung attic: there is no such rung; the rungs are .*vocoder"):
        list(climb(Ladder(NANO), ["attic"]))


def test_a_path_is_the_product_of_its_rungs():
    measured = Ladder(NANO)
    measured.scores = {
        "language-model": [Score("words", "content", 9, 10)],
        "decoder-image": [Score("decoder", "concept", 8, 10), Score("decoder", "background", 10, 10)],
    }
    lines = paths(measured).splitlines()[2:]
    assert len(lines) == 2
    assert "text → image: concept | language-model 90.0 × decoder-image 80.0 | 72.0% | 95% | cannot carry it" in lines[0]
    assert "90.0% | 97%" in lines[1]


def test_a_linear_reading_finds_what_lies_apart():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3
    embeddings = torch.eye(3)[targets] + 0.1 * torch.randn(60, 3, generator=generator)
    reading = linear_reading(embeddings[:30], targets[:30], 3)
    assert (reading(embeddings[30:]).argmax(1) == targets[30:]).all()


def test_every_rung_of_the_plan_is_there():
    kinds = {rung.rsplit("-", 1)[0] for rung in RUNGS if rung.rsplit("-", 1)[-1] in ladder.PARTS}
    assert kinds == {"classifier", "there-and-back", "decoder", "encoder", "projections"}
    assert RUNGS.keys() >= {"vocoder", "language-model"}
