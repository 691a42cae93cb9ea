"""Training with a longer context than the LLM was made for."""

from __future__ import annotations

import pytest

from nextgpt import NextGPTConfig, NextGPTPipeline
from nextgpt.errors import UserInputError
from nextgpt.train.config import TrainingConfig
from nextgpt.train.data.check import check_files
from nextgpt.train.stages import run_stage
from nextgpt.train.start import load_for_training
from tiny_training import config_for, naming, write_lines

YARN = {"rope_type": "yarn", "factor": 2}


def test_a_run_learns_from_conversations_beyond_the_old_limit_and_keeps_the_new_one(world, tmp_path):
    long = naming("red")["messages"] * 20
    data = write_lines(world / "long.jsonl", [{"messages": long}] * 4)
    with pytest.raises(UserInputError, match=r"tokens, the model takes 512"):
        run_stage("instruct", config_for(world, "instruct", tmp_path / "no", data=[data]))
    assert {each.kind for each in check_files([data], str(world / "model"), workers=0).problems} >= {"too long"}

    changes = {"data": [data], "max_steps": 1, "save_steps": 1, "rope_scaling": {"type": "yarn", "factor": 2}}
    folder = run_stage("instruct", config_for(world, "instruct", tmp_path / "long", **changes))
    config = NextGPTConfig.from_pretrained(folder)
    assert config.rope_parameters == YARN | {"original_max_position_embeddings": 512} and config.max_positions == 1024
    assert "too long" not in {each.kind for each in check_files([data], str(folder), workers=0).problems}
    pipe = NextGPTPipeline.from_pretrained(folder)
    words = [{"role": "user", "content": "What do you see? I see a cat and a dog." * 25}]
    assert pipe(words, max_new_tokens=1).timings.prompt_tokens > 512

    again = config_for(world, "instruct", tmp_path / "more", model=str(folder))
    assert load_for_training(again)[0].config.max_positions == 1024
    again = config_for(world, "instruct", tmp_path / "more", model=str(folder), rope_parameters=YARN | {"factor": 4})
    with pytest.raises(UserInputError, match="positions are scaled already"):
        load_for_training(again)


def test_a_run_that_was_begun_with_other_positions_is_not_gone_on_with(world, tmp_path):
    settings = {"max_steps": 1, "save_steps": 1, "rope_parameters": YARN}
    run_stage("instruct", config_for(world, "instruct", tmp_path, **settings))
    with pytest.raises(UserInputError, match="belongs to another run: changed are rope_parameters"):
        run_stage(
            "instruct", config_for(world, "instruct", tmp_path, **settings | {"rope_parameters": YARN | {"factor": 4}})
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rope_parameters": {"rope_type": "ntk", "factor": 2}}, "rope_type is 'ntk', expected one of"),
        ({"rope_parameters": YARN, "rope_scaling": YARN}, "both rope_parameters and rope_scaling"),
        ({"sliding_window": "wide"}, "sliding_window is 'wide', expected a whole number"),
    ],
    ids=str,
)
def test_bad_settings_are_one_clear_line(world, tmp_path, given, message):
    with pytest.raises(UserInputError, match=message):
        config_for(world, "instruct", tmp_path, **given)


def test_a_window_is_refused_on_an_llm_without_one(world, tmp_path):
    with pytest.raises(UserInputError, match="sliding_window: a llama has none"):
        load_for_training(config_for(world, "instruct", tmp_path, sliding_window=64))


def test_one_spelling_replaces_the_other_of_a_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: nano\ndata: [a.jsonl]\noutput_dir: out\nrope_scaling: {type: linear, factor: 2}\n")
    assert TrainingConfig.from_file(file).rope_parameters == {"rope_type": "linear", "factor": 2}
    given = TrainingConfig.from_file(file, ["rope_parameters={rope_type: yarn, factor: 4}"])
    assert given.rope_parameters == {"rope_type": "yarn", "factor": 4}
