"""The list of what a model knows: nano's beside its world and in the README; lists that are absent or damaged."""

from pathlib import Path

import pytest

from nextgpt.__main__ import main
from nextgpt.errors import ModelLoadError
from nextgpt.hub.parts import preset_folder
from nextgpt.report.info import KNOWN_FILE, known_world
from nextgpt.train.nano.assemble import known_names


def test_nano_lists_what_its_world_holds() -> None:
    known = known_world("nano")
    assert known == known_names(preset_folder("nano") / "world")
    assert {"things", "styles", "backgrounds", "sizes", "sounds", "registers", "figures", "motions"} < known.keys()
    assert set(known["filmed things"]) < set(known["things"]) and set(known["sounds without pitch"]) < set(known["sounds"])


def test_the_readme_lists_what_nano_knows() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    section = readme.split("## What nano knows\n")[1].split("\n## ")[0].split(":\n\n", 1)[1]
    listed = [" ".join(entry.split()) for entry in section.strip().removeprefix("- ").split("\n- ")]
    known = known_world("nano")
    assert listed == [f"**{heading}** ({len(names)}): {', '.join(names)}" for heading, names in known.items()]


def test_info_lists_what_nano_knows(capsys) -> None:
    assert main(["info", "nano"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for heading, names in known_world("nano").items():
        assert f"{heading} ({len(names)}): {', '.join(names)}" in printed


def test_a_model_of_the_open_world_lists_nothing() -> None:
    assert known_world("7b") is None


def test_a_folder_may_bring_a_list_of_its_own(tmp_path) -> None:
    (tmp_path / KNOWN_FILE).write_text('{"trees": ["oak", "elm"]}', encoding="utf-8")
    assert known_world(tmp_path) == {"trees": ["oak", "elm"]}


@pytest.mark.parametrize("content", ["{", "[]", '{"trees": 3}', '{"trees": "oak"}'])
def test_a_damaged_list_is_named(content, tmp_path) -> None:
    (tmp_path / KNOWN_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ModelLoadError, match=f"{KNOWN_FILE} is damaged"):
        known_world(tmp_path)
