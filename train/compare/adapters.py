"""Adapters compared: each trained alike from one checkpoint, its learning rate chosen, three seeds, one table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nextgpt.adapters import describe, title
from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import UserInputError
from nextgpt.hub.parts import fetch_model
from nextgpt.train.compare.report import table
from nextgpt.train.compare.runs import Diverged, Run, origin
from nextgpt.train.compare.settings import CompareConfig, Method
from nextgpt.train.compare.sizes import fit_sizes
from nextgpt.train.data.files import whole_file

JSON_FILE, TABLE_FILE = "adapters.json", "adapters.md"


@dataclass
class Compared:
    """A row of the table.

    Args:
        name, described: the method, and its size in words.
        sized: whether its size was found by the budget.
        parameters: the adapter's; `share`: of the LLM's.
        rate: the learning rate that was chosen; None without an adapter.
        runs: what was measured of each seed's run (`train.compare.measure.measure`), with `seed` and `scores`.
    """

    name: str
    described: str
    sized: bool
    parameters: int
    share: float
    rate: float | None
    runs: list[dict[str, Any]]


def compare_adapters(file: str | Path) -> str:
    """Trains and measures what is not there yet, and gives the table; it is written to `output_dir` too.

    Args:
        file: settings, see `CompareConfig`; or `nano` for the file that comes with the package.

    Raises:
        NextGPTError: a setting is not what it should be, or a run failed; what is finished stays.
    """
    packaged = Path(__file__).parents[1] / "configs" / str(file) / "adapters.yaml"
    config = CompareConfig.from_file(packaged if packaged.is_file() else file)
    location, model_config = _starting_model(config.model)
    if config.evaluate:
        _check_rows(config.evaluate)
    come_from = origin(config, location)
    methods = fit_sizes(config.methods.values(), model_config.text_config, config.budget)
    whole = _size_of_llm(model_config)
    plans = {name: _rates(config, method) for name, (method, _) in methods.items()}
    total = sum((len(rates) if len(rates) > 1 else 0) + len(config.seeds) for rates in plans.values())
    compared = []
    with tqdm(total=total, unit="run", desc="Comparing", disable=None) as bar:
        for name, (method, parameters) in methods.items():
            bar.set_postfix_str(name)
            rate = _choose(config, method, plans[name], come_from, bar.update)
            runs = []
            for seed in config.seeds:
                run = Run(config, method, rate, seed, config.max_steps)
                runs.append(run.measured(come_from) | {"seed": seed, "scores": run.scores()})
                bar.update()
            described = describe(method.adapter) if method.adapter else "no adapter"
            chosen = rate if method.adapter else None
            compared.append(Compared(name, described, method.size is not None, parameters, parameters / whole, chosen, runs))
    text = table(compared, config)
    for name, content in ((TABLE_FILE, text), (JSON_FILE, json.dumps([vars(each) for each in compared], indent=1))):
        with whole_file(Path(config.output_dir) / name) as beside:
            beside.write_text(content + "\n", encoding="utf-8")
    return text


def _starting_model(model: str) -> tuple[Path, NextGPTConfig]:
    location = fetch_model(model)
    config = NextGPTConfig.from_pretrained(location)
    if config.adapter and (config.trained_groups is None or "adapter" in config.trained_groups):
        raise UserInputError(
            f"model is {model}, which has a trained {title(config.adapter)} adapter: give one whose adapter is not trained "
            "yet, as stage 2 leaves it"
        )
    return location, config


def _check_rows(rows: list[str]) -> None:
    from nextgpt.train.nano.evaluation.evaluate import ROWS

    if unknown := [row for row in rows if row not in ROWS]:
        raise UserInputError(f"evaluate: there is no row {unknown[0]!r}; the rows are {', '.join(ROWS)}")


def _size_of_llm(config: NextGPTConfig) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config.text_config).num_parameters()


def _rates(config: CompareConfig, method: Method) -> list[float]:
    return config.learning_rates if method.adapter else config.learning_rates[:1]


def _choose(
    config: CompareConfig, method: Method, rates: list[float], come_from: dict[str, str], done: Callable[[], Any]
) -> float:
    """The learning rate with the least loss on the development data, of those with which it stays a number.

    Raises:
        Diverged: there is none.
    """
    if len(rates) == 1:
        return rates[0]
    losses = {}
    for rate in rates:
        try:
            losses[rate] = Run(config, method, rate, config.seeds[0], config.search_steps).measured(come_from)["loss"]
            if not math.isfinite(losses[rate]):
                raise Diverged(f"{method.name}: at learning rate {rate:g} the loss on the development data is no number")
        except Diverged as error:
            losses[rate], failure = math.inf, error
        done()
    if math.isinf(min(losses.values())):
        raise failure
    return min(losses, key=losses.get)
