"""Items of a data set that nothing can be made of: each is told with its line, and the others stay.

Half an emoji, names that are not UTF-8, turns out of order, and writing that breaks off.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from nextgpt.__main__ import main
from nextgpt.errors import UserInputError
from nextgpt.train.data.check import DataReport, check_files
from nextgpt.train.data.dataset import ChatDataset, Reader
from nextgpt.train.data.files import whole_file
from nextgpt.train.data.hashes import FileHashes
from nextgpt.train.data.store import Example, ExampleStore, Skipped
from nextgpt.train.stages import run_stage
from tiny_training import config_for, drawing, naming, write_lines

HALF = "half an emoji \ud83d"  # in a file: \ud83d, an escape that JSON allows


def said(*turns: tuple[str, str]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def check(world: Path, lines: list[dict]) -> DataReport:
    return check_files([write_lines(world / "to_check.jsonl", lines)], str(world / "model"), workers=0)


def halves(world: Path) -> str:
    """A file whose lines 1 and 5 are fine."""
    text, answer, caption, name = naming("red"), naming("red"), drawing("red"), naming(HALF)
    text["messages"][0]["content"][1]["text"] = HALF
    answer["messages"][1]["content"] = HALF
    caption["messages"][1]["content"][1]["caption"] = HALF
    return write_lines(world / "halves.jsonl", [drawing("red"), text, answer, caption, drawing("blue"), name])


def test_half_a_character_is_skipped_or_stops_training_by_its_line(world, tmp_path) -> None:
    data = halves(world)
    with pytest.raises(UserInputError, match=r"halves\.jsonl:2: message 0: the text holds half a character .*U\+D83D"):
        run_stage("instruct", config_for(world, "instruct", tmp_path / "1", data=data, features=str(tmp_path)))
    options = {"data": data, "on_bad_item": "skip", "max_steps": 1, "features": str(tmp_path)}
    folder = run_stage("instruct", config_for(world, "instruct", tmp_path / "2", **options))
    skipped = [json.loads(line) for line in (folder / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [item["where"].rpartition(":")[2] for item in skipped] == ["2", "3", "4", "6"]
    assert "the caption of the assistant's image holds half a character" in skipped[2]["reason"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_half_a_character_is_reported_by_a_check(world, capsys) -> None:
    command = ["data", "check", halves(world), "--model", str(world / "model"), "--workers", "0"]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert [line.split(":")[1] for line in printed.splitlines() if line.startswith(("broken", "missing"))] == [
        "2",
        "3",
        "4",
        "6",
    ]
    assert main([*command, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["kind"] == "broken"


def test_names_that_are_not_utf8_are_files_like_others(world, tmp_path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (folder / "pictures").mkdir()
    name = os.fsdecode(b"r\xe9d")
    (folder / "pictures" / f"{name}.png").write_bytes((world / "pictures" / "red.png").read_bytes())
    lines = [naming(name), naming("gone")]
    lines[0]["messages"][1]["content"] = "A red one."
    file = write_lines(folder / f"{name}.jsonl", lines)
    report = check_files([file], str(world / "model"), workers=0)
    assert [problem.kind for problem in report.problems] == ["missing"]
    options = {"data": file, "on_bad_item": "skip", "max_steps": 1, "features": str(tmp_path / "features")}
    output = run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "out", **options))
    [skipped] = (output / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(skipped)["where"] == f"{file}:2"


def test_a_name_that_no_file_can_have_is_missing(world) -> None:
    report = check(world, [naming("a\0b"), naming("a" * 5000), naming("red")])
    assert [problem.kind for problem in report.problems] == ["missing", "missing"]
    assert isinstance(FileHashes(world / "hashes").of([Path("a\0b")])[Path("a\0b")], OSError)


def test_whatever_a_line_holds_the_next_one_is_read(world, processor) -> None:
    odd = drawing("red")
    odd["messages"][1]["content"][1]["path"] = None  # allowed: a caption is enough
    file = Path(write_lines(world / "odd.jsonl", [odd, naming("red")]))
    file.write_bytes(b"[" * 100_000 + b"\n" + file.read_bytes())
    report = check_files([file], str(world / "model"), workers=0)
    assert [(problem.kind, problem.where) for problem in report.problems] == [("broken", f"{file}:1")]
    dataset = ChatDataset([file], Reader(processor, on_bad_item="skip"))
    assert len(dataset) == 2 and dataset.skipped[0].where == f"{file}:1"


def test_a_broken_file_stops_training_by_its_line(world, tmp_path) -> None:
    (world / "pictures" / "broken.png").write_bytes(b"no picture")
    data = write_lines(world / "one_broken.jsonl", [naming("red"), naming("broken")])
    with pytest.raises(UserInputError, match=r"one_broken\.jsonl:2: .*broken\.png"):
        run_stage("align_encoders", config_for(world, "align_encoders", tmp_path, data=data))


TURNS = {
    "two user turns in a row": said(("user", "hi"), ("user", "hi?"), ("assistant", "hello")),
    "two assistant turns in a row": said(("user", "hi"), ("assistant", "hello"), ("assistant", "hello")),
    "the assistant speaks first": said(("assistant", "hello"), ("user", "hi"), ("assistant", "hello")),
    "an empty user turn": said(("user", " "), ("assistant", "hello")),
    "an empty assistant turn": said(("user", "hi"), ("assistant", ""), ("user", "hi"), ("assistant", "hello")),
    "the last turn is the user's": said(("user", "hi"), ("assistant", "hello"), ("user", "and?")),
}


def test_a_check_reports_turns_that_do_not_fit(world, capsys) -> None:
    good = said(("system", "Be kind."), ("user", "hi"), ("assistant", "hello"))
    report = check(world, [good, *TURNS.values()])
    assert [(problem.kind, int(problem.where.rpartition(":")[2])) for problem in report.problems] == [
        ("bad turns", line) for line in range(2, 8)
    ]
    assert all(reason in problem.reason for reason, problem in zip(TURNS, report.problems, strict=True))
    assert "6 bad turns" in report.summary()[0]


def test_what_breaks_off_leaves_nothing_behind(tmp_path) -> None:
    def examples():
        yield Skipped("a:1", HALF)
        yield Example(np.zeros(3, np.int32), np.ones(3, bool), {"id": HALF}, 0)
        if breaks:
            raise RuntimeError("the disk is full")

    breaks = True
    with pytest.raises(RuntimeError):
        ExampleStore.write(tmp_path / "store", examples())
    with pytest.raises(RuntimeError), whole_file(tmp_path / "file") as beside:
        beside.write_text("half")
        raise RuntimeError("the disk is full")
    assert not list(tmp_path.iterdir())
    breaks = False
    store = ExampleStore.write(tmp_path / "store", examples())
    assert store.record(0) == {"id": HALF} and store.skipped == [Skipped("a:1", HALF)]


def test_a_reason_with_a_separator_of_unicode_is_read_back_whole(tmp_path) -> None:
    skipped = [Skipped("a:1", "no such file: the\u2028barn.png"), Skipped("a:2", "two\u0085lines")]
    assert ExampleStore.write(tmp_path / "store", iter(skipped)).skipped == skipped


def test_all_files_of_one_content_are_left_out_if_it_is_broken(world, tmp_path) -> None:
    for name in ("empty", "empty too", "empty again"):
        (world / "pictures" / f"{name}.png").touch()
    lines = [naming(name) for name in ("empty", "red", "empty too", "blue", "empty again")]
    data = write_lines(world / "empty.jsonl", lines)
    options = {"data": data, "on_bad_item": "skip", "max_steps": 3, "features": str(tmp_path / "features")}
    folder = run_stage("align_encoders", config_for(world, "align_encoders", tmp_path / "out", **options))
    skipped = [json.loads(line)["where"] for line in (folder / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(skipped) == [f"{data}:{number}" for number in (1, 3, 5)]
