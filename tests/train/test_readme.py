"""The README's "Train your own": its commands, word for word, on a few pictures. The model is nano itself.

Slow (a minute): conversations are made, read, and their media go through nano's encoders, once for each `features` folder
that the commands name. Only `max_steps`, and how many of nano's own conversations there are, is lowered.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from nextgpt.__main__ import main
from own_pictures import OWN_FILE, RUN, make_own_pictures, readme_commands

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One for all: the second part of the section goes on with what the first has made."""
    folder = tmp_path_factory.mktemp("a newcomer")
    make_own_pictures(folder / "my", count=4)
    return folder


@pytest.mark.parametrize(("heading", "trainings"), [("Your own pictures", 1), ("The three stages", 3)])
def test_each_command_of_the_readme_finishes(heading, trainings, folder, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    commands = readme_commands(heading)
    assert [words[0] for words in commands].count("train") == trainings
    for words in commands:
        monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
        given = [*words, "max_steps=2"] if words[0] == "train" else [word.replace("3000", "300") for word in words]
        assert main(given) == 0, f"{' '.join(given)}\n{capsys.readouterr().err}"
    settings = [word.partition("=") for words in commands if words[0] == "train" for word in words]
    trained = [Path(value) for key, _, value in settings if key == "output_dir"] or [Path(RUN)]
    assert len(trained) == trainings
    for run in trained:
        assert list(run.glob("samples/step-2/answer-*.json")), "a short run shows sample answers too"
        assert (run / "README.md").read_text().count("\n# nano, ") == 1, "a card is titled by what the model is"
        assert json.loads((run / "run.json").read_text())["finished"]["loss"] > 0
    assert Path(OWN_FILE).is_file()
