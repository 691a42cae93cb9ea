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


RANK, JUDGE, REWARD = "preferences rank gone", "evaluate judge gone gone.jsonl --questions gone", "train reward --out out"


@pytest.mark.parametrize(
    ("command", "needs"),
    [
        (f"{RANK} -o pairs --by rule:hedging --device cpu", "--by rule:media_fit or --by reward:FOLDER"),
        (f"{RANK} -o pairs --by person --device cpu", "--by rule:media_fit or --by reward:FOLDER"),
        (f"{RANK} -o pairs --by reward:folder --model runs/own", "--by rule:media_fit"),
        (f"{RANK} -o pairs --by rule:media_fit --seed 1", "--by judge or --by person"),
        (f"{RANK} -o pairs --by judge --port 7860", "--by person"),
        (f"{RANK} -o pairs --by person --shown image", "--by judge"),
        (f"{RANK} -o pairs --by reward:folder --max-requests 5", "--by judge"),
        (f"{JUDGE} --judge reward:folder --shown image", "--judge URL"),
        (f"{JUDGE} --judge reward:folder --judge-model tiny", "--judge URL"),
        (f"{JUDGE} --judge reward:folder --temperature 0.5", "--judge URL"),
        (f"{JUDGE.replace('gone ', 'gone.jsonl ', 1)} --judge reward:folder --max-new-tokens 9", "a model as A or B"),
        (f"{REWARD} --data gone --heldout gone --heldout-share 0.5", "--data alone"),
    ],
)
def test_an_option_that_does_nothing_beside_another_is_refused_in_one_line(command: str, needs: str, capsys) -> None:
    *words, option, _ = command.split()
    assert main(command.split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"nextgpt: error: {option} does nothing with ") and f": it needs {needs}; leave it out" in error


def test_options_at_their_defaults_are_never_refused(capsys) -> None:
    idle = ["--device", "auto", "--seed", "0", "--model", "nano", "--temperature", "0", "--shown"]
    assert main([*RANK.split(), "-o", "pairs", "--by", "rule:hedging", *idle]) == 2
    assert "gone: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["preferences sample", "preferences rank", "train reward", "evaluate judge"])
def test_the_help_shows_an_example_of_the_command(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as finished:
        main([*command.split(), "--help"])
    assert not finished.value.code
    assert f"\n  nextgpt {command} " in capsys.readouterr().out
