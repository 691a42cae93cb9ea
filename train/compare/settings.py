"""What a comparison of adapters is to do: a YAML file."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextgpt.adapters import read_settings
from nextgpt.errors import UserInputError, did_you_mean
from nextgpt.train.config import TrainingConfig, read_yaml

EXPECTED = {
    "methods": "a mapping of names to adapters, as {LoRA: {peft_type: LORA, size: r}}",
    "training": "settings of `nextgpt train instruct`, as {data: […], max_steps: 100}",
}
SET_HERE = ("model", "output_dir", "adapter", "lora", "seed", "max_steps", "resume")  # not to be said in `training`


@dataclass
class Method:
    """One row of the table.

    Args:
        name: as the table has it.
        adapter: its settings with all defaults, `size` left out; None for no adapter at all.
        size: the field that sets how many parameters it has; None where it has one size alone.
    """

    name: str
    adapter: dict[str, Any] | None
    size: str | None = None

    @property
    def folder(self) -> str:
        """The name of its folder."""
        plain = unicodedata.normalize("NFKC", self.name).lower()  # IA³ is ia3
        return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "method"


@dataclass
class CompareConfig:
    """Settings of `nextgpt compare adapters`.

    Args:
        model: the checkpoint that every method starts from, its adapter not trained yet: stage 2's.
        output_dir: receives every run, and the table.
        methods: name → settings of its adapter, as in a model's configuration; `size: FIELD` beside them names the whole
            number that is found so that the adapter has `budget` parameters. `null`: no adapter, the projections alone.
        training: settings of `nextgpt train instruct`, the same for every method. `learning_rate` is that of the projections
            and signal rows; `max_steps` is given beside `training`.
        development: JSON-lines files; the loss on them chooses the learning rate, and stands in the table.
        development_count: at most so many of their conversations, from the beginning.
        budget: parameters of an adapter that has a `size`.
        learning_rates: of the adapter; each method takes the one with the least loss on `development`, with the first seed.
        max_steps: of every run.
        search_steps: of the runs that choose the learning rate; by default `max_steps`.
        seeds: each method is trained with each.
        evaluate: rows of `nextgpt evaluate`; none by default.
        split: of the evaluation.
        quick: 40 questions a row.
    """

    model: str
    output_dir: str
    methods: dict[str, Any]
    training: dict[str, Any]
    development: list[str]
    budget: int
    learning_rates: list[float]
    max_steps: int
    search_steps: int | None = None
    development_count: int = 512
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    evaluate: list[str] = field(default_factory=list)
    split: str = "heldout"
    quick: bool = False

    def __post_init__(self):
        for name, expected in EXPECTED.items():
            if not isinstance(getattr(self, name), dict) or not getattr(self, name):
                raise UserInputError(f"{name} is {getattr(self, name)!r}, expected {expected}")
        self.search_steps = self.max_steps if self.search_steps is None else self.search_steps
        for name in ("budget", "max_steps", "search_steps", "development_count"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise UserInputError(f"{name} is {getattr(self, name)!r}, expected a whole number of at least 1")
        self.learning_rates = _all_of("learning_rates", self.learning_rates, float, lambda rate: rate > 0)
        self.seeds = _all_of("seeds", self.seeds, int, lambda seed: seed >= 0)
        for name in ("development", "evaluate"):
            given = getattr(self, name)
            if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
                raise UserInputError(f"{name} is {given!r}, expected a list")
        if self.split not in ("heldout", "dev"):
            raise UserInputError(f"split is {self.split!r}, expected heldout or dev")
        for name in SET_HERE:
            if name in self.training:
                raise UserInputError(f"training: {name} is not for training to say here: leave it out")
        self.methods = {name: _method(str(name), given) for name, given in self.methods.items()}
        folders = [each.folder for each in self.methods.values()]
        if twice := {each for each in folders if folders.count(each) > 1}:
            raise UserInputError(
                f"methods: {len(folders)} names make fewer folders ({twice.pop()} twice): name one otherwise"
            )
        self.training_config(next(iter(self.methods.values())), self.learning_rates[0], self.seeds[0], self.max_steps, "")

    @classmethod
    def from_file(cls, path: str | Path) -> CompareConfig:
        """Reads a YAML file.

        Raises:
            UserInputError: it cannot be read, a key is unknown or missing, or a value is not what it should be.
        """
        values = read_yaml(path, "a comparison's settings")
        fields = {each.name: each for each in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise UserInputError(f"{path}: unknown key {key!r}; {did_you_mean(key, fields)}")
        needed = {name for name, each in fields.items() if each.default is each.default_factory is dataclasses.MISSING}
        if missing := needed - set(values):
            raise UserInputError(f"{path}: {', '.join(sorted(missing))} not given; see train/configs/nano/adapters.yaml")
        try:
            return cls(**values)
        except UserInputError as error:
            raise UserInputError(f"{path}: {error}") from None

    def training_values(self, method: Method, rate: float, seed: int, steps: int, output_dir: str) -> dict[str, Any]:
        """What the training file of one run says; `method` has its size."""
        values = self.training | {"model": self.model, "output_dir": output_dir, "seed": seed, "max_steps": steps}
        trains = list(values.get("trains") or ("input_projection", "output_projections", "signal_rows", "adapter"))
        if method.adapter is None:
            return values | {"trains": [group for group in trains if group != "adapter"]}
        rates = {"learning_rates": (values.get("learning_rates") or {}) | {"adapter": rate}}
        return values | {"adapter": method.adapter} | rates

    def training_config(self, method: Method, rate: float, seed: int, steps: int, output_dir: str) -> TrainingConfig:
        """The same, checked."""
        values = self.training_values(method, rate, seed, steps, output_dir)
        return TrainingConfig.from_dict(values, source="training")


def _method(name: str, given: Any) -> Method:
    if given is None:
        return Method(name, None)
    if not isinstance(given, dict):
        raise UserInputError(
            f"methods: {name} is {given!r}, expected an adapter's settings, as {{peft_type: LORA, size: r}}"
        )
    size = given.get("size")
    own = {key: value for key, value in given.items() if key != "size"}
    try:
        settings = read_settings(own)
        if size is not None:
            read_settings(own | {size: 1})  # a field of this adapter's, and a whole number
    except UserInputError as error:
        raise UserInputError(f"methods: {name}: {error}") from None
    return Method(name, dict(settings), size)


def _all_of(name: str, given: Any, kind: type, fits: Any) -> list:
    try:
        found = [kind(each) for each in given]
    except (TypeError, ValueError):
        found = []
    if not found or not all(map(fits, found)) or len(set(found)) < len(found):
        raise UserInputError(f"{name} is {given!r}, expected a list of different numbers")
    return found
