"""Conversations such as nano learned from, out of the world inside the package."""

from __future__ import annotations

import json

import pytest

from nextgpt.__main__ import main
from nextgpt.hub.parts import preset_folder
from nextgpt.signals import MODALITIES
from nextgpt.train.data.check import check_files
from nextgpt.train.nano.dialogues.composer import combinations, load_composer
from nextgpt.train.nano.dialogues.rehearsal import write_rehearsal
from nextgpt.train.nano.world.things import path_of


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "old.jsonl"
    write_rehearsal(file, 150)
    return file


def parts_of(file):
    messages = [message for line in file.read_text().splitlines() for message in json.loads(line)["messages"]]
    return [(message["role"], part) for message in messages for part in message["content"]]


def test_they_hold_every_kind_of_media_on_both_sides_and_nothing_is_wrong_with_them(file) -> None:
    for role in ("user", "assistant"):
        assert {part["type"] for speaker, part in parts_of(file) if speaker == role} == {"text", *MODALITIES}
    report = check_files([file], "nano", workers=0)
    assert report.conversations == 150 and not report.problems, report.problems


def test_nothing_that_is_held_out_is_in_them(file) -> None:
    setting = load_composer(preset_folder("nano") / "world", "heldout").setting
    heldout = [medium for modality in MODALITIES for medium in combinations(setting, modality)]
    heldout = [medium for medium in heldout if medium.split == "heldout"]  # effects are of every split
    paths, captions = {f"old/{path_of(medium)}" for medium in heldout}, {medium.caption for medium in heldout}
    for _, part in parts_of(file):
        assert part.get("path") not in paths and part.get("caption") not in captions


def test_the_same_seed_gives_the_same_ones_and_another_one_others(file, tmp_path, capsys) -> None:
    for name, seed in (("same", "0"), ("other", "1")):
        assert main(["data", "nano", "-o", str(tmp_path / name / "old.jsonl"), "--count", "150", "--seed", seed]) == 0
        assert "150 conversations" in capsys.readouterr().out
    assert (tmp_path / "same" / "old.jsonl").read_text() == file.read_text()
    assert (tmp_path / "other" / "old.jsonl").read_text() != file.read_text()


def test_a_name_without_an_ending_and_a_count_of_none_are_refused(tmp_path, capsys) -> None:
    assert main(["data", "nano", "-o", str(tmp_path / "old")]) == 2
    assert "expected a file's name with an ending" in capsys.readouterr().err
    assert main(["data", "nano", "-o", str(tmp_path / "old.jsonl"), "--count", "0"]) == 2
    assert "count is 0, expected at least 1" in capsys.readouterr().err
