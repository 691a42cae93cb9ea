"""Several answers to each prompt: seeds, media beside, columns, and going on after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from nextgpt.__main__ import main
from nextgpt.train.preferences.collect.answers import read_answers
from tiny_models import save_tiny_any_to_any

GIVEN = ("-n", "2", "--max-new-tokens", "16", "--steps", "2", "--dtype", "float32", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_any_to_any(tmp_path_factory.mktemp("tiny"), ("image",)))


def ask(folder: Path, *questions: dict) -> Path:
    file = folder / "questions.jsonl"
    lines = [{"messages": [{"role": "user", "content": "Draw a cat."}, {"role": "assistant", "content": "No."}]}, *questions]
    file.write_text("".join(json.dumps(line | {"accepted": ["cat"]}) + "\n" for line in lines))
    return file


def sample(model: str, folder: Path, *more: str) -> int:
    questions = str(folder / "questions.jsonl")
    return main(["preferences", "sample", model, "--questions", questions, "--out", str(folder / "out"), *GIVEN, *more])


def test_answers_have_seeds_and_columns_and_are_not_made_twice(model, tmp_path, capsys) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    shown = [{"type": "image", "path": "red.png"}, {"type": "text", "text": "What is it?"}]
    ask(tmp_path, {"messages": [{"role": "user", "content": shown}], "references": [{"type": "image", "path": "red.png"}]})
    assert sample(model, tmp_path) == 0 and capsys.readouterr().out.strip() == str(tmp_path / "out" / "answers.jsonl")
    rows = read_answers(tmp_path / "out" / "answers.jsonl")
    assert [len(row.answers) for row in rows] == [2, 2] and len({seed for row in rows for seed in row.seeds}) == 4
    assert rows[0].prompt == [{"role": "user", "content": [{"type": "text", "text": "Draw a cat."}]}]
    assert rows[1].columns == {"accepted": ["cat"], "references": [{"type": "image", "path": str(tmp_path / "red.png")}]}
    made = [part for row in rows for answer in row.answers for part in answer["content"] if part["type"] == "image"]
    assert made and all(Path(part["path"]).is_file() and type(part["seed"]) is int for part in made)

    first, before = *sorted((tmp_path / "out").rglob("*-0.json"))[:1], (tmp_path / "out" / "answers.jsonl").read_text()
    said, others = first.read_text(), {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*-1.json")}
    first.write_text(said[:20])  # cut off, as by a full disk or a kill
    assert sample(model, tmp_path) == 0
    assert json.loads(first.read_text())["message"] == json.loads(said)["message"], "the same seed, the same answer"
    assert {file: file.stat().st_mtime_ns for file in others} == others, "what is there is not made again"
    assert (tmp_path / "out" / "answers.jsonl").read_text() == before


def test_other_settings_answer_anew_and_lose_nothing(model, tmp_path) -> None:
    ask(tmp_path)
    assert sample(model, tmp_path, "--only", "text") == 0
    (row,) = read_answers(tmp_path / "out" / "answers.jsonl")
    assert all(part["type"] == "text" for answer in row.answers for part in answer["content"])
    assert sample(model, tmp_path, "--only", "text", "--seed", "1") == 0
    assert len(list((tmp_path / "out").glob("answers-*"))) == 2
    assert read_answers(tmp_path / "out" / "answers.jsonl")[0].seeds != row.seeds


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("-n", "1"), "1 answers to a prompt, expected 2 or more"),
        (("--temperature", "-1"), "temperature is -1.0: expected a number above 0"),
        (("--only", "text,smell"), "smell"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(model, tmp_path, capsys, given, expected) -> None:
    ask(tmp_path)
    assert sample(model, tmp_path, *given) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("nextgpt: error:") and expected in error


def test_a_question_whose_medium_is_gone_is_named_by_its_line_and_the_rest_is_kept(model, tmp_path, capsys) -> None:
    ask(tmp_path, {"messages": [{"role": "user", "content": [{"type": "image", "path": "gone.png"}]}]})
    assert sample(model, tmp_path) == 2
    assert "questions.jsonl:2: " in capsys.readouterr().err
    ask(tmp_path)
    assert sample(model, tmp_path) == 0
