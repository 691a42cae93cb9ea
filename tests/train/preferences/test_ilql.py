"""ILQL on a toy: three questions, and in no conversation was more than one of them answered well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextgpt import NextGPTPipeline
from nextgpt.errors import UserInputError
from nextgpt.train.preferences.learning.ilql import PLAN, expectile_loss
from nextgpt.train.preferences.learning.settings import ILQLConfig
from nextgpt.train.stages import run_stage
from tiny_models import save_tiny_model
from tiny_training import checkpoint_tensors, log_of, settings, write_lines

pytestmark = pytest.mark.usefixtures("one_thread")
QUESTIONS = ("one", "two", "three")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trajectories")
    save_tiny_model(folder)
    write_lines(folder / "trajectories.jsonl", [conversation(good) for good in (0, 1, 2, None)])
    return folder


def conversation(good: int | None) -> dict:
    """One in which question `good` is answered well, with B, and the others with A."""
    answers = ["B" if number == good else "A" for number in range(3)]
    messages = [
        {"role": role, "content": text}
        for question, answer in zip(QUESTIONS, answers, strict=True)
        for role, text in (("user", question), ("assistant", answer))
    ]
    return {"messages": messages, "rewards": [float(answer == "B") for answer in answers]}


def config(world: Path, output: Path, **changes) -> ILQLConfig:
    values = settings(world, "ilql", output, data=[str(world / "trajectories.jsonl")], save_steps=1000, logging_steps=5)
    return ILQLConfig.from_dict(values | {"beta": 4.0, "max_steps": 60, "target_update_rate": 0.3} | changes)


def returned(pipe: NextGPTPipeline) -> int:
    """How many of the questions are answered well in a conversation."""
    messages: list[dict] = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": pipe(messages, max_new_tokens=3).text})
    return sum(message["content"].strip() == "B" for message in messages)


def test_it_puts_together_what_no_conversation_had_and_cloning_does_not(world, tmp_path):
    folder = run_stage("ilql", config(world, tmp_path / "run"), PLAN)
    log = log_of(folder)
    assert log[-1]["loss/policy"] < log[0]["loss/policy"] and log[-1]["loss/q"] < log[0]["loss/q"]
    pipe = NextGPTPipeline.from_pretrained(folder)
    assert pipe.model.config.value_weight == 4.0
    found = returned(pipe)
    pipe.model.config.value_weight = 0.0  # the policy alone is a clone
    cloned = returned(pipe)
    pipe.close()
    assert (found, cloned) == (3, 0), "no conversation has more than one, and the likeliest answer is always the bad one"


def test_before_it_has_learned_anything_it_answers_as_the_model_that_it_began_from(world, tmp_path):
    folder = run_stage("ilql", config(world, tmp_path / "run", max_steps=1, learning_rate=0.0), PLAN)
    before, after = checkpoint_tensors(world / "model"), checkpoint_tensors(folder)
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"value_heads"}
    pipes = [NextGPTPipeline.from_pretrained(place) for place in (world / "model", folder)]
    tokens = [pipe([{"role": "user", "content": "one"}], max_new_tokens=5).token_ids for pipe in pipes]
    assert tokens[0] == tokens[1]
    for pipe in pipes:
        pipe.close()


def test_a_stopped_run_goes_on_to_where_a_straight_one_ends(world, tmp_path):
    steps = {"save_steps": 2, "per_device_train_batch_size": 2}
    straight = run_stage("ilql", config(world, tmp_path / "straight", max_steps=4, **steps), PLAN)
    run_stage("ilql", config(world, tmp_path / "halves", max_steps=2, **steps), PLAN)
    halves = run_stage("ilql", config(world, tmp_path / "halves", max_steps=4, **steps), PLAN)
    one, other = checkpoint_tensors(straight), checkpoint_tensors(halves)
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_an_expectile_leans_to_the_better():
    errors = torch.tensor([2.0, -2.0])
    assert expectile_loss(errors, 0.9).tolist() == pytest.approx([3.6, 0.4])


def test_rewards_that_do_not_belong_to_the_answers_are_refused_by_line(world, tmp_path):
    for number, rewards in enumerate(([1.0], [1.0, 0.0, "a lot"], None, [0.0, 1.0, float("nan")])):
        record = conversation(0) | {"rewards": rewards}
        data = write_lines(world / f"bad{number}.jsonl", [conversation(0), record])
        with pytest.raises(
            UserInputError, match=rf"bad{number}.jsonl:2: rewards is .*expected a number for each of 3 answers"
        ):
            run_stage("ilql", config(world, tmp_path / "no", data=[data]), PLAN)
    with pytest.raises(UserInputError, match=r"trains is \['heads'\], expected a list of some of .*value_heads.*"):
        run_stage("ilql", config(world, tmp_path / "no", trains=["heads"]), PLAN)
    with pytest.raises(UserInputError, match="learning_rates names output_projections: ilql trains input_projection, "):
        run_stage("ilql", config(world, tmp_path / "no", learning_rates={"output_projections": 1e-2}), PLAN)
    with pytest.raises(UserInputError, match="sample_count is 8, expected 4, for this run writes no sample answers"):
        config(world, tmp_path / "no", sample_count=8)
    with pytest.raises(UserInputError, match="expectile is 0.0, expected a number above 0, at most 1"):
        config(world, tmp_path / "no", expectile=0)
