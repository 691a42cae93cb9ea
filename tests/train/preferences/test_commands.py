"""The commands of preferences as the README and `--help` show them."""

from __future__ import annotations

import pytest

from nextgpt.__main__ import main
from nextgpt.cli import build_parser
from own_pictures import readme_commands


def test_each_command_of_the_readme_is_understood() -> None:
    commands = readme_commands("Answers preferred to others")
    assert [words[:2] for words in commands] == [["preferences", "sample"], ["preferences", "rank"], ["train", "reward"]]
    for words in commands:
        assert build_parser().parse_args(words).command


@pytest.mark.parametrize("command", ["preferences sample", "preferences rank", "train reward", "evaluate judge"])
def test_the_help_shows_an_example_of_the_command(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as finished:
        main([*command.split(), "--help"])
    assert not finished.value.code
    assert f"\n  nextgpt {command} " in capsys.readouterr().out
