"""Learning from rewards on a tiny model that sometimes draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextgpt import NextGPTPipeline
from nextgpt.errors import UserInputError
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.preferences.learning.grpo import PLAN
from nextgpt.train.preferences.learning.settings import GRPOConfig
from nextgpt.train.stages import run_stage
from tiny_models import save_tiny_any_to_any
from tiny_training import checkpoint_tensors, log_of, settings, write_lines

pytestmark = pytest.mark.usefixtures("one_thread")
REWARDS = """
def pictures(prompts, completions, wanted, **columns):
    assert all(message["role"] == "user" for prompt in prompts for message in prompt), prompts
    drawn = [any(part["type"] == "image" and part["image"].size for part in answer[0]["content"]) for answer in completions]
    return [float(has is wish) for has, wish in zip(drawn, wanted, strict=True)]

def allowed(prompts, completions, output_modalities, **columns):
    drawn = [any(part["type"] == "image" for part in answer[0]["content"]) for answer in completions]
    assert any(drawn) and not any(has for has, kinds in zip(drawn, output_modalities) if kinds == ["text"]), drawn
    return [None] * len(completions)

def some(prompts, completions, **columns):
    return [None] * len(completions)

def raises(prompts, completions, **columns):
    raise KeyError("colour")

def odd(prompts, completions, **columns):
    return [float("nan")] * len(completions)

def short(prompts, completions, **columns):
    return [1.0]
"""


def draw_now_and_then(checkpoint: Path) -> None:
    """Makes a picture the first thing of about every fourth answer."""
    model, state, others = beginning(checkpoint)
    with torch.no_grad():
        model.signal_rows.output[0] = state * (others - 1.1) / state.square().sum()
    model.save_pretrained(checkpoint)


def beginning(checkpoint: Path) -> tuple[NextGPTForConditionalGeneration, torch.Tensor, torch.Tensor]:
    """A model, its state where the answer to "draw" begins, and what all words weigh there together."""
    model, processor = (
        NextGPTForConditionalGeneration.from_pretrained(checkpoint),
        NextGPTProcessor.from_pretrained(checkpoint),
    )
    states: list[torch.Tensor] = []
    inputs = processor([{"role": "user", "content": "draw"}])
    with torch.no_grad():
        logits = model(**inputs, signal_recorder=lambda *found: states.extend(found)).logits[0, -1]
    return model, states[0][0, -1], logits[: model.vocabulary.offset].logsumexp(0)


def drawing_share(checkpoint: Path) -> float:
    """How often an answer to "draw" begins with a picture."""
    model, state, others = beginning(checkpoint)
    return torch.sigmoid(state @ model.signal_rows.output[0] - others).item()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rewards")
    draw_now_and_then(save_tiny_any_to_any(folder, ["image"]))
    (folder / "my_rewards.py").write_text(REWARDS)
    rows = [{"messages": [{"role": "user", "content": text}], "wanted": True} for text in ("draw", "a cat, please")]
    write_lines(folder / "prompts.jsonl", rows)
    return folder


@pytest.fixture(autouse=True)
def found(world, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(world))


def config(world: Path, output: Path, **changes) -> GRPOConfig:
    values = settings(world, "rl", output, data=[str(world / "prompts.jsonl")], logging_steps=1, save_steps=2)
    values |= {
        "reward": "my_rewards:pictures",
        "num_generations": 6,
        "max_new_tokens": 1,
        "max_steps": 6,
        "learning_rate": 2e-2,
    }
    values |= {"media": {"image": {"num_inference_steps": 1}}, "per_device_train_batch_size": 2}
    return GRPOConfig.from_dict(values | changes)


@pytest.mark.parametrize("changes", [{}, {"beta": 0.05, "loss_type": "grpo"}])
def test_what_is_rewarded_comes_more_often(changes, world, tmp_path):
    folder = run_stage("rl", config(world, tmp_path / "run", **changes), PLAN)
    log = log_of(folder)
    assert all(entry["reward"] == entry["reward/my_rewards:pictures"] for entry in log)
    assert drawing_share(folder) > drawing_share(world / "model") + 0.15
    assert "taught by rewards on prompts" in (folder / "README.md").read_text()
    pipe = NextGPTPipeline.from_pretrained(folder)
    assert pipe([{"role": "user", "content": "draw"}], seed=0, max_new_tokens=1).token_ids
    pipe.close()


@pytest.mark.parametrize("size", [1, 2], ids=["in mid-epoch", "between epochs"])
def test_a_stopped_run_goes_on_to_where_a_straight_one_ends(size, world, tmp_path):
    options = {"per_device_train_batch_size": size, "save_steps": 1}
    straight = run_stage("rl", config(world, tmp_path / "straight", max_steps=3, **options), PLAN)
    run_stage("rl", config(world, tmp_path / "halves", max_steps=1, **options), PLAN)
    halves = run_stage("rl", config(world, tmp_path / "halves", max_steps=3, **options), PLAN)
    one, other = checkpoint_tensors(straight), checkpoint_tensors(halves)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_answers_without_a_reward_move_nothing(world, tmp_path):
    folder = run_stage("rl", config(world, tmp_path / "none", reward="my_rewards:some", max_steps=1), PLAN)
    assert "reward" not in log_of(folder)[-1] and log_of(folder)[-1]["groups_alike"] == 1
    before, after = checkpoint_tensors(world / "model"), checkpoint_tensors(folder)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_question_is_answered_with_the_kinds_that_it_names(world, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "draw"}]} for _ in range(2)]
    rows[0]["output_modalities"] = ["text"]
    changes = {"reward": "my_rewards:allowed", "max_steps": 1, "num_generations": 12}
    run_stage("rl", config(world, tmp_path / "run", data=[write_lines(tmp_path / "some.jsonl", rows)], **changes), PLAN)


def test_what_is_wrong_is_one_clear_line(world, tmp_path):
    cases = [
        ({"reward": "my_rewards:raises"}, "the reward my_rewards:raises raised KeyError"),
        ({"reward": "my_rewards:odd"}, "the reward my_rewards:odd gave nan for completion 1 of 12"),
        ({"reward": "my_rewards:short"}, "the reward my_rewards:short gave 1 values for 12 completions"),
        ({"reward": "nothing"}, "there is no reward 'nothing'"),
        ({"reward": []}, r"reward is \[\], expected the name of a reward"),
        ({"reward_weights": [1, 2]}, r"reward_weights is \[1, 2\], expected a number for each of the 1 rewards"),
        ({"num_generations": 1}, "num_generations is 1, expected a whole number of at least 2"),
        ({"media": {"audio": {}}}, "media names audio, which this model's answers do not hold"),
        ({"media": {"image": {"steps": 1}}}, "steps"),
        ({"loss_type": "ppo"}, "loss_type is 'ppo', expected dapo or grpo"),
        ({"trains": ["output_projections"]}, "trains is .*list of some of input_projection, signal_rows, adapter"),
        ({"sample_count": 1}, "sample_count is 1, expected 4, for this run writes no sample answers"),
    ]
    for number, (changes, message) in enumerate(cases):
        with pytest.raises(UserInputError, match=message):
            run_stage("rl", config(world, tmp_path / f"{number}", **changes), PLAN)
