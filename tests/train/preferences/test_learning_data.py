"""What learning makes of files: the kinds that answers could hold, as in sampling; processes that share the tokenizing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nextgpt.__main__ import main
from nextgpt.errors import UserInputError
from nextgpt.signals import answer_only
from nextgpt.train import stages, start
from nextgpt.train.data import dataset
from nextgpt.train.data.dataset import ChatDataset
from nextgpt.train.preferences.collect.answers import read_answers
from nextgpt.train.preferences.learning import grpo, ilql, prefer
from nextgpt.train.preferences.learning.settings import GRPOConfig, ILQLConfig, PreferenceConfig
from nextgpt.train.preferences.pairs import read_pairs
from tiny_models import save_tiny_any_to_any
from tiny_training import settings, write_lines

QUESTION = [{"role": "user", "content": [{"type": "text", "text": "Draw a cat."}]}]
YES, NO = ([{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in ("yes", "no"))
RUNS: dict[str, tuple] = {
    "prefer": (prefer.PLAN, PreferenceConfig, {}, {"prompt": QUESTION, "chosen": YES, "rejected": NO}),
    "rl": (grpo.PLAN, GRPOConfig, {"reward": "hedging"}, {"messages": QUESTION}),
    "ilql": (ilql.PLAN, ILQLConfig, {}, {"messages": [*QUESTION, *YES], "rewards": [1.0]}),
}
REWARD = """
def length(prompts, completions, output_modalities, **columns):
    assert output_modalities == [["text"]] * len(completions)
    return [float(len(str(completion))) for completion in completions]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_tiny_any_to_any(folder, ["image"])
    return folder


def opened(world: Path, folder: Path, run: str, *changes: dict, **given: int) -> tuple[ChatDataset, Callable]:
    """The data of a run whose lines are as usual but for `changes`, and the model's processor."""
    plan, config, own, record = RUNS[run]
    data = write_lines(folder / f"{run}.jsonl", [record | each for each in changes])
    values = settings(world, run, folder / "run", data=[data], features=str(folder / "features"))
    made = config.from_dict(values | own | given)
    location, model_config = start.read_model_config(made)
    processor = start.load_processor(location, model_config)
    return plan.open_dataset(run, made, model_config, processor), processor


def test_pairs_of_answers_that_were_sampled_with_some_kinds_off_say_so(world, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "by_length.py").write_text(REWARD)
    own = {"messages": [{"role": "user", "content": "Draw a dog."}], "output_modalities": ["text"]}
    write_lines(tmp_path / "questions.jsonl", [own, {"messages": QUESTION}])
    given = ["--questions", "questions.jsonl", "--only", "text", "-n", "3", "--max-new-tokens", "8", "--device", "cpu"]
    assert main(["preferences", "sample", str(world / "model"), *given, "--out", "out"]) == 0
    assert [row.output_modalities for row in read_answers(tmp_path / "out" / "answers.jsonl")] == [["text"]] * 2
    assert main(["preferences", "rank", "out", "--by", "rule:by_length:length", "-o", "pairs.jsonl"]) == 0
    pairs = read_pairs([tmp_path / "pairs.jsonl"])
    assert pairs and all(pair.output_modalities == ["text"] for pair in pairs)


def test_a_question_may_name_its_own_kinds(world, tmp_path) -> None:
    wished = {"messages": QUESTION, "output_modalities": ["text", "image"]}
    write_lines(tmp_path / "questions.jsonl", [wished, {"messages": QUESTION}])
    given = ["--questions", str(tmp_path / "questions.jsonl"), "--only", "text", "-n", "6", "--max-new-tokens", "16"]
    assert main(["preferences", "sample", str(world / "model"), *given, "--device", "cpu", "--out", str(tmp_path)]) == 0
    kinds = [
        {part["type"] for answer in row.answers for part in answer["content"]}
        for row in read_answers(tmp_path / "answers.jsonl")
    ]
    assert "image" in kinds[0] and kinds[1] == {"text"}


@pytest.mark.parametrize("run", RUNS)
def test_learning_tells_the_model_of_the_kinds_as_sampling_did(world, tmp_path, run) -> None:
    lines = [{"output_modalities": kinds} for kinds in (["text"], ["text", "image"])]
    store, processor = opened(world, tmp_path, run, *lines)
    said = QUESTION if run == "rl" else [*QUESTION, *YES]
    reading = {"add_generation_prompt": run == "rl", "load_media": False}
    told = processor(said, template_kwargs={"answer_only": answer_only(["text"])}, **reading)["input_ids"][0].tolist()
    plain = processor(said, **reading)["input_ids"][0].tolist()
    second = len(store) // 2  # of a pair first the chosen answer
    assert store[0]["input_ids"].tolist() == told != plain
    assert store[second]["input_ids"].tolist() == plain, "these are all kinds that the model knows"


@pytest.mark.parametrize("run", RUNS)
def test_kinds_that_cannot_be_are_refused_by_line(world, tmp_path, run) -> None:
    for kinds, expected in (
        (["image"], "expected a list of kinds, text among them"),
        ("text", "expected a list of kinds, text among them"),
        (["text", "video"], "output_modalities names video, which this model's answers do not hold"),
    ):
        with pytest.raises(UserInputError, match=f"{run}.jsonl:2.*{expected}") as error:
            opened(world, tmp_path, run, {}, {"output_modalities": kinds})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("run", RUNS)
def test_much_data_is_tokenized_by_so_many_processes(world, tmp_path, monkeypatch, run) -> None:
    asked = []

    @contextmanager
    def here(processes: int) -> Iterator:
        asked.append(processes)
        yield type("Pool", (), {"imap": staticmethod(lambda each, lines, chunksize: map(each, lines))})

    monkeypatch.setattr(dataset, "spawned", here)
    opened(world, tmp_path, run, {}, tokenizing_workers=2)
    assert not asked, "little data needs none"
    monkeypatch.setattr(stages, "WORTH_WORKERS", 10)
    store, _ = opened(world, tmp_path, run, {}, {"more": 1}, tokenizing_workers=2)
    assert asked == [2] and len(store) == (4 if run == "prefer" else 2)
