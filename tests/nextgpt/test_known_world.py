"""What a model says that it knows: nano's list beside its world, and lists that are absent or damaged."""

import pytest

from nextgpt.errors import ModelLoadError
from nextgpt.info import KNOWN_FILE, known_world
from nextgpt.parts import preset_folder
from nextgpt.train.nano.assemble import known_names


def test_nano_lists_what_its_world_holds() -> None:
    known = known_world("nano")
    assert known == known_names(preset_folder("nano") / "world")
    assert {"things", "styles", "backgrounds", "sizes", "sounds", "registers", "figures", "motions"} < known.keys()
    assert set(known["filmed things"]) < set(known["things"]) and set(known["sounds without pitch"]) < set(known["sounds"])


def test_a_model_of_the_open_world_lists_nothing() -> None:
    assert known_world("7b") is None


def test_a_folder_may_bring_a_list_of_its_own(tmp_path) -> None:
    (tmp_path / KNOWN_FILE).write_text('{"trees": ["oak", "elm"]}', encoding="utf-8")
    assert known_world(tmp_path) == {"trees": ["oak", "elm"]}


@pytest.mark.parametrize("content", ["{", "[]", '{"trees": 3}'])
def test_a_damaged_list_is_named(content, tmp_path) -> None:
    (tmp_path / KNOWN_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ModelLoadError, match=f"{KNOWN_FILE} is damaged"):
        known_world(tmp_path)
