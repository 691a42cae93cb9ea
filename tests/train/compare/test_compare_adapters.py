"""Adapters compared by `nextgpt compare adapters`: sizes, runs, resuming, the table, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from nextgpt import NextGPTConfig, NextGPTForConditionalGeneration
from nextgpt.checkpoint import TRAINED_GROUPS
from nextgpt.cli import main
from nextgpt.errors import UserInputError
from nextgpt.train.compare.adapters import Compared
from nextgpt.train.compare.measure import kept_for_backward
from nextgpt.train.compare.report import table
from nextgpt.train.compare.settings import CompareConfig
from nextgpt.train.compare.sizes import count_parameters, fit_sizes
from nextgpt.train.nano.models.language_model import new_model
from nextgpt.train.stages import run_stage
from tiny_models import tiny_tokenizer
from tiny_training import REPOSITORY, build_world, config_for, settings

METHODS = {
    "LoRA": {"peft_type": "LORA", "target_modules": ["q_proj", "v_proj"], "size": "r"},
    "IA³": {"peft_type": "IA3"},
    "none": None,
}


@pytest.fixture(scope="module")
def stage2(tmp_path_factory) -> Path:
    """A world with a model after stage 2, whose adapter was never trained."""
    world = build_world(tmp_path_factory.mktemp("world"))
    run_stage("align_decoders", config_for(world, "align_decoders", world / "stage2", max_steps=2, save_steps=2))
    return world


def given(world: Path, **changes) -> dict:
    training = settings(world, "instruct", Path("unused"), logging_steps=1, save_steps=1000)
    for name in ("model", "output_dir", "max_steps"):
        del training[name]
    values = {
        "model": str(world / "stage2"),
        "output_dir": str(world / "compared"),
        "methods": METHODS,
        "training": training,
        "development": [str(world / "instruct.jsonl")],
        "budget": 600,
        "learning_rates": [1e-2, 1e-4],
        "max_steps": 3,
        "search_steps": 1,
        "seeds": [0],
    }
    return values | changes


def write(folder: Path, values: dict) -> str:
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


@pytest.mark.slow
def test_each_method_is_trained_once_with_the_rate_that_suits_it_and_stands_in_the_table(stage2, tmp_path, capsys):
    out = tmp_path / "out"
    values = given(stage2, output_dir=str(out), methods={"LoRA": METHODS["LoRA"]})
    values |= {"learning_rates": [1e-6, 3e-2], "max_steps": 3, "search_steps": 3}
    file = write(tmp_path, values)
    assert main(["compare", "adapters", "--config", file]) == 0
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if line.startswith("| ")]
    [lora] = (dict(zip(rows[0], row, strict=True)) for row in rows[1:])
    assert lora["size"] == "r=3 on q_proj, v_proj" and lora["parameters"] == "672"
    measured = {each.parent.name: json.loads(each.read_text()) for each in (out / "lora").glob("*/measured.json")}
    losses = {float(name.split("-seed")[0].removeprefix("rate-")): each["loss"] for name, each in measured.items()}
    assert len(losses) == 2 and float(lora["rate"]) == min(losses, key=losses.get)
    assert lora["loss"] == f"{min(losses.values()):.4f}", "the run that chose the rate has all steps: it is taken"

    [run] = json.loads((out / "adapters.json").read_text())[0]["runs"]
    model = NextGPTForConditionalGeneration.from_pretrained(next(out.glob("lora/*/config.json")).parent)
    groups = {group: sum(each.numel() for each in model.group_parameters(group).values()) for group in TRAINED_GROUPS}
    assert run["trained"] == sum(groups.values()) and run["adapter"] == groups["adapter"] == 672
    assert run["gradients"] == 4 * run["trained"] and run["optimizer"] == 2 * run["gradients"]
    assert run["activations"] > 0 and run["seconds"] > 0

    trained = {each: each.stat().st_mtime_ns for each in out.rglob("model.safetensors")}
    (out / "adapters.md").unlink()
    next(out.glob("lora/*/measured.json")).unlink()
    assert main(["compare", "adapters", "--config", file]) == 0
    assert capsys.readouterr().out == shown == (out / "adapters.md").read_text()
    assert {each: each.stat().st_mtime_ns for each in out.rglob("model.safetensors")} == trained

    assert main(["compare", "adapters", "--config", write(tmp_path, values | {"budget": 900})]) == 2
    assert "training.yaml: this run was begun with other settings: delete " in capsys.readouterr().err


def test_every_method_trains_the_projections_alike_and_its_adapter_with_its_own_rate(stage2):
    config = CompareConfig(**given(stage2))
    plans = {name: config.training_config(each, 0.5, 3, 9, "out") for name, each in config.methods.items()}
    assert {each.arguments["learning_rate"] for each in plans.values()} == {1e-2}
    assert {(each.arguments["seed"], each.arguments["max_steps"]) for each in plans.values()} == {(3, 9)}
    assert plans["LoRA"].trains is plans["IA³"].trains is None, "all that the stage trains"
    assert plans["LoRA"].learning_rates == plans["IA³"].learning_rates == {"adapter": 0.5}
    assert plans["none"].trains == ["input_projection", "output_projections", "signal_rows"]
    assert not plans["none"].adapter and not plans["none"].learning_rates


def test_sizes_are_found_by_counting_and_come_within_a_tenth_of_each_other(stage2):
    methods = CompareConfig(
        **given(stage2)
        | {
            "methods": METHODS
            | {
                "prefix": {"peft_type": "PREFIX_TUNING", "size": "num_virtual_tokens"},
                "LLaMA-Adapter": {"peft_type": "ADAPTION_PROMPT", "adapter_layers": 2, "size": "adapter_len"},
            }
        }
    ).methods
    text_config = NextGPTConfig.from_pretrained(stage2 / "model").text_config
    found = fit_sizes(methods.values(), text_config, 2700)
    sizes = {name: method.adapter[method.size] for name, (method, _) in found.items() if method.size}
    counts = {name: count for name, (_, count) in found.items()}
    assert counts["IA³"] == count_parameters(text_config, methods["IA³"].adapter) and counts["none"] == 0
    for name, value in sizes.items():
        method = methods[name]
        assert counts[name] == count_parameters(text_config, method.adapter | {method.size: value})
        for other in (value - 1, value + 1):
            beside = count_parameters(text_config, method.adapter | {method.size: other})
            assert abs(counts[name] - 2700) <= abs(beside - 2700)
    assert max(counts[name] for name in sizes) <= 1.1 * min(counts[name] for name in sizes)
    with pytest.raises(UserInputError, match="budget is 100, and the sizes nearest to it are more than 10% apart: LoRA 224"):
        fit_sizes(methods.values(), text_config, 100)


def test_what_a_pass_keeps_is_counted_once_and_without_the_weights():
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000, 10))

        def forward(self, given):
            hidden = torch.relu(given @ self.weight.T)  # keeps what was given, and its own result
            return type("Output", (), {"loss": (hidden * hidden).sum()})  # keeps the same result twice

    assert kept_for_backward(Squares(), {"given": torch.randn(7, 10)}) == 4 * (7 * 10 + 7 * 1000)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"methods": {}}, "methods is {}, expected a mapping of names to adapters"),
        ({"methods": {"x": {"peft_type": "BOFT"}}}, "methods: x: adapter: peft_type 'BOFT' does not work here"),
        ({"methods": {"x": {"peft_type": "IA3", "size": "r"}}}, "methods: x: adapter: unknown key 'r' of IA3"),
        ({"methods": {"a b": None, "A-b": None}}, "2 names make fewer folders"),
        ({"learning_rates": [1e-3, 1e-3]}, "learning_rates is .*, expected a list of different numbers"),
        ({"budget": 0.5}, "budget is 0.5, expected a whole number of at least 1"),
        ({"training": {"data": ["x"], "max_steps": 3}}, "training: max_steps is not for training to say"),
        ({"training": {"data": ["x"], "learning": 3}}, "training: unknown key 'learning'"),
        ({"bugdet": 3}, "compare.yaml: unknown key 'bugdet'; did you mean 'budget'"),
        ({"development": ["nowhere.jsonl"]}, "nowhere.jsonl: there is no such file"),
        ({"evaluate": ["no-such"]}, "evaluate: there is no row 'no-such'; the rows are classifier"),
        ({"model": "nano"}, "model is nano, which has a trained LoRA adapter: give one whose adapter is not trained"),
        ({"split": "test"}, "split is 'test', expected heldout or dev"),
    ],
)
def test_settings_that_do_not_work_are_told_in_one_line(stage2, tmp_path, capsys, changes, told):
    assert main(["compare", "adapters", "--config", write(tmp_path, given(stage2) | changes)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(told, error), error


def test_the_packaged_comparison_fits_nano_as_it_ships_and_as_it_is_made():
    config = CompareConfig.from_file(REPOSITORY / "train" / "configs" / "nano" / "adapters.yaml")
    shipped = NextGPTConfig.from_pretrained(REPOSITORY / "nextgpt" / "presets" / "nano").text_config
    made = new_model(tiny_tokenizer()).config
    for text_config in (shipped, made):
        found = fit_sizes(config.methods.values(), text_config, config.budget)
        sized = [count for method, count in found.values() if method.size]
        assert len(sized) == 6 and max(sized) <= 1.1 * min(sized)


def test_the_table_pools_the_seeds_of_a_row_of_evaluate_and_tells_how_far_they_are_apart(stage2):
    def run(loss: float, right: int) -> dict:
        scores = [{"row": "image → text", "part": "concept", "right": right, "count": 40}]
        sizes = {"gradients": 4e6, "optimizer": None, "activations": 2.5e7, "seconds": 0.5}
        return sizes | {"loss": loss, "text_loss": loss / 2, "scores": scores}

    lora = Compared("LoRA", "r=3", True, 672, 0.01, 0.001, [run(1.0, 20), run(1.2, 30)])
    fixed = Compared("IA³", "small", False, 60, 0.001, 0.001, [run(1.5, 10)])
    head, _, *rows = table([fixed, lora], CompareConfig(**given(stage2))).split("\n\n")[0].splitlines()
    assert head.endswith("| loss | text loss | image → text: concept |")
    assert rows == [
        "| LoRA | r=3 | 672 | 1.00% | 0.001 | 0.5 | 4 MB | – | 25 MB | 1.1000 ± 0.1414 | 0.5500 ± 0.0707 "
        "| 62.5 (50.0 – 75.0) % |",
        "| IA³ (fixed size) | small | 60 | 0.10% | 0.001 | 0.5 | 4 MB | – | 25 MB | 1.5000 | 0.7500 | 25.0 % |",
    ]
