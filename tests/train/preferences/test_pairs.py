"""Preference pairs: what a file of them holds, and one clear line for each that nothing can be learned from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from nextgpt.__main__ import main
from nextgpt.errors import UserInputError
from nextgpt.train.preferences.pairs import PreferencePair, read_pairs, split_by_prompt, write_pairs


def says(role: str, *parts: str | dict) -> dict:
    return {"role": role, "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]}


def pair(prompt: str = "What is it?", chosen: str = "A cat.", rejected: str = "A dog.") -> dict:
    return {
        "prompt": [says("user", prompt)],
        "chosen": [says("assistant", chosen)],
        "rejected": [says("assistant", rejected)],
    }


def write(file: Path, *records: dict) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def picture(file: Path, color: str) -> dict:
    Image.new("RGB", (4, 4), color).save(file)
    return {"type": "image", "path": file.name, "caption": "a square", "seed": 3}


def test_what_is_written_is_read_again_from_another_folder(tmp_path: Path) -> None:
    chosen, rejected = picture(tmp_path / "a.png", "red"), picture(tmp_path / "b.png", "blue")
    record = {
        "prompt": [says("system", "Be short."), says("user", "Draw a red square.")],
        "chosen": [says("assistant", "Here.", chosen)],
        "rejected": [says("assistant", "Here.", rejected)],
        "ranked_by": "rule:media_fit",
        "scores": [0.9, 0.1],
        "output_modalities": ["text", "image"],
    }
    (read,) = read_pairs([write(tmp_path / "pairs.jsonl", record)])
    assert read.chosen[0]["content"][1] == chosen | {"path": str(tmp_path / "a.png")}
    (tmp_path / "other").mkdir()
    write_pairs(tmp_path / "other" / "pairs.jsonl", [read])
    assert '"path": "../a.png"' in (tmp_path / "other" / "pairs.jsonl").read_text()
    (again,) = read_pairs([tmp_path / "other" / "pairs.jsonl"])
    assert (again.prompt, again.chosen, again.rejected) == (read.prompt, read.chosen, read.rejected)
    assert (again.ranked_by, again.scores) == ("rule:media_fit", (0.9, 0.1))
    assert again.output_modalities == ["text", "image"]


def test_plain_texts_as_trl_writes_them_become_parts(tmp_path: Path) -> None:
    record = {name: [says(message["role"], "")] for name, (message,) in pair().items()}
    for name, text in zip(record, ("Hello?", "Hi.", "Go away."), strict=True):
        record[name][0]["content"] = text
    (read,) = read_pairs([write(tmp_path / "pairs.jsonl", record)])
    assert read.chosen == [says("assistant", "Hi.")] and read.ranked_by == "" and read.scores is None


GONE = {"type": "image", "path": "gone.png", "caption": "a cat"}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"chosen": [says("assistant", "A dog.")]}, "chosen and rejected are equal"),
        ({"chosen": [says("assistant", GONE)]}, "chosen: .*gone.png: no such file"),
        ({"prompt": [says("user", GONE, "What?")]}, "prompt: .*gone.png: no such file"),
        ({"chosen": [says("assistant", {"type": "image"})]}, "chosen: the image has no path or a caption"),
        ({"prompt": []}, "without a turn of the user"),
        ({"prompt": [says("user", "What?"), says("assistant", "A")]}, "without a turn of the user"),
        ({"prompt": [says("user", "What?"), says("user", "And?")]}, "prompt: two user turns in a row"),
        ({"rejected": [says("user", "A dog.")]}, "rejected: 1 messages; expected one, the assistant's"),
        ({"rejected": []}, "rejected: 0 messages"),
        ({"rejected": "A dog."}, "rejected: expected chat messages"),
        ({"rejected": [says("assistant", " ")]}, "rejected: an empty answer"),
        ({"scores": [1, "2"]}, "scores is .* expected two numbers"),
        ({"scores": [float("nan"), 0]}, "scores is .* expected two numbers"),
        ({"scores": [1, 2]}, "swap chosen and rejected"),
        ({"ranked_by": 3}, "ranked_by is 3"),
        ({"output_modalities": ["smell"]}, "output_modalities is .* expected a list of kinds, text among them"),
        (
            {"chosen": [says("assistant", {"type": "image", "caption": "a cat"})], "output_modalities": ["text"]},
            r"chosen: holds an image, which output_modalities \['text'\] leaves out",
        ),
    ],
)
def test_a_pair_that_teaches_nothing_is_refused_by_file_and_line(tmp_path: Path, changed: dict, expected: str) -> None:
    file = write(tmp_path / "pairs.jsonl", pair(), pair() | changed)
    with pytest.raises(UserInputError, match=f"^{file}:2: .*{expected}") as error:
        read_pairs([file])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{", "[1]", '{"messages": []}', "\udcff"])
def test_another_line_is_told_what_a_pair_is(tmp_path: Path, content: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(content.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(UserInputError, match=f"^{file}:1: .*a prompt, chosen and rejected"):
        read_pairs([file])


def test_an_empty_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no pairs in .*empty.jsonl"):
        read_pairs([write(tmp_path / "empty.jsonl")])
    with pytest.raises(UserInputError, match="gone.jsonl: no such file"):
        read_pairs([tmp_path / "gone.jsonl"])
    with pytest.raises(UserInputError, match="a folder; expected a JSON-lines file"):
        read_pairs([tmp_path])
    with pytest.raises(UserInputError, match="^x+.jsonl: no such file"):
        read_pairs([f"{'x' * 5000}.jsonl"])


UNREADABLE = "/proc/self/mem"  # for root, too


@pytest.mark.skipif(not Path(UNREADABLE).exists(), reason="no such file on this system")
@pytest.mark.parametrize(
    "command",
    [
        ["train", "reward", "nano", "--data", UNREADABLE, "--out", "out"],
        ["preferences", "rank", UNREADABLE, "--by", "rule:hedging", "-o", "pairs.jsonl"],
        ["preferences", "sample", "nano", "--questions", UNREADABLE, "--out", "out"],
        ["evaluate", "judge", "a.jsonl", "b.jsonl", "--questions", UNREADABLE, "--judge", "reward:out", "--out", "judged"],
        ["train", "prefer", "--config", "nano", f"data=[{UNREADABLE}]", "output_dir=out", "features=out", "use_cpu=true"],
        ["train", "rl", "--objective", "ilql", "--config", "nano", f"data=[{UNREADABLE}]", "output_dir=out", "features=out"],
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(command: list[str], tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == f"nextgpt: error: {UNREADABLE}: cannot be read (Input/output error); expected a JSON-lines file"


def test_equal_words_with_other_pictures_are_a_pair_and_copies_of_a_picture_are_none(tmp_path: Path) -> None:
    red, blue, copy = (picture(tmp_path / f"{i}.png", c) for i, c in enumerate(("red", "blue", "red")))
    record = pair() | {"chosen": [says("assistant", red)], "rejected": [says("assistant", blue)]}
    assert read_pairs([write(tmp_path / "good.jsonl", record)])
    with pytest.raises(UserInputError, match="equal"):
        read_pairs([write(tmp_path / "bad.jsonl", record | {"rejected": [says("assistant", copy)]})])


def test_a_held_out_prompt_among_the_training_pairs_is_refused(tmp_path: Path) -> None:
    heldout = read_pairs([write(tmp_path / "heldout.jsonl", pair("Who?"), pair("What is it?"))])
    file = write(tmp_path / "pairs.jsonl", pair("Where?"), pair("what  is it?", "A bird.", "A fish."))
    with pytest.raises(UserInputError, match=rf"^{file}:2: the prompt is held out \(.*heldout.jsonl:2\)"):
        read_pairs([file], heldout=heldout)
    assert len(read_pairs([write(file, pair("Where?"))], heldout=heldout)) == 1


def test_all_pairs_of_a_prompt_stay_on_one_side_of_the_split() -> None:
    pairs = [PreferencePair(**pair(f"Question {i // 3}?", f"{i}", "no")) for i in range(30)]
    learned, heldout = split_by_prompt(pairs, 0.3)
    assert len(learned) == 21 and len(heldout) == 9
    assert not {str(each.prompt) for each in learned} & {str(each.prompt) for each in heldout}
    with pytest.raises(UserInputError, match="cannot be held out"):
        split_by_prompt(pairs[:3], 0.3)
