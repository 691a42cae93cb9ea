"""The runs of a comparison, each `nextgpt train instruct` in a process of its own; what is finished is not made again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nextgpt.checkpoint import TRAINED_FILE
from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.hub.fingerprints import file_hash
from nextgpt.train.compare.measure import evaluate, measure
from nextgpt.train.compare.settings import CompareConfig, Method
from nextgpt.train.data.files import whole_file
from nextgpt.train.run_metadata import read_metadata

SETTINGS, ORIGIN, LOG, MEASURED, SCORES = "training.yaml", "origin.json", "log.txt", "measured.json", "scores.json"


DIVERGED = re.compile(r"(?:loss|gradients' norm) of step \d+ is -?(?:nan|inf)")  # as `StageTrainer` says it


class Diverged(NextGPTError):
    """A run's loss is no number any more: its learning rate is too high."""


@dataclass
class Run:
    """One training of one method, and what was measured of it.

    Args:
        method: with its size.
        rate: learning rate of the adapter.
    """

    config: CompareConfig
    method: Method
    rate: float
    seed: int
    steps: int

    @property
    def folder(self) -> Path:
        """Holds the trained model, its settings, its log and what was measured."""
        return Path(self.config.output_dir) / self.method.folder / f"rate-{self.rate:g}-seed-{self.seed}-steps-{self.steps}"

    def measured(self, origin: dict[str, str]) -> dict[str, Any]:
        """Trains what is not trained yet, and gives what `measure` finds.

        Args:
            origin: hashes of what all runs start from, see `origin`.

        Raises:
            UserInputError: the folder holds a run with other settings or from other data.
            NextGPTError: training failed.
        """
        values = self.config.training_values(self.method, self.rate, self.seed, self.steps, str(self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim(SETTINGS, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        self._claim(ORIGIN, json.dumps(origin, indent=1) + "\n")
        found = _read(self.folder / MEASURED)
        if found is None:
            if "finished" not in read_metadata(self.folder):
                self._train()
            training = self.config.training_config(self.method, self.rate, self.seed, self.steps, str(self.folder))
            with (self.folder / LOG).open("a", encoding="utf-8") as log, redirect_stderr(log):  # its bars are many
                found = measure(self.folder, training, self.config.development, self.config.development_count)
            _write(self.folder / MEASURED, found)
        return found

    def scores(self) -> list[dict[str, Any]]:
        """The rows of `nextgpt evaluate` that the settings name."""
        if not self.config.evaluate:
            return []
        asked = {name: getattr(self.config, name) for name in ("evaluate", "split", "quick")}
        found = _read(self.folder / SCORES)
        if found is None or found["asked"] != asked:
            scores = evaluate(self.folder, *asked.values(), log=self.folder / LOG)
            found = {"asked": asked, "scores": scores}
            _write(self.folder / SCORES, found)
        return found["scores"]

    def _claim(self, name: str, text: str) -> None:
        """Writes a file that says what the run is, or finds the same there."""
        file = self.folder / name
        if not file.is_file():
            with whole_file(file) as beside:
                beside.write_text(text, encoding="utf-8")
        elif file.read_text(encoding="utf-8") != text:
            changed = "with other settings" if name == SETTINGS else "from a model or data that have changed since"
            raise UserInputError(f"{file}: this run was begun {changed}: delete {self.folder}, or name another output_dir")

    def _train(self) -> None:
        command = [sys.executable, "-m", "nextgpt", "train", "instruct", "--config", str(self.folder / SETTINGS)]
        with (self.folder / LOG).open("ab") as log:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
        if code:
            lines = (self.folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1].removeprefix("nextgpt: error: ") if lines else f"it ended with code {code} and said nothing"
            failure = Diverged if DIVERGED.search(last) else NextGPTError
            raise failure(f"{self.method.name}: training failed: {last} (see {self.folder / LOG})")


def origin(config: CompareConfig, model: Path) -> dict[str, str]:
    """Hashes of the starting model and of all data: what a finished run must have come from to be taken as it is.

    Raises:
        UserInputError: a file is missing.
    """
    data = config.training["data"]
    files = [model / TRAINED_FILE, *map(Path, [data] if isinstance(data, str) else data), *map(Path, config.development)]
    if missing := [file for file in files if not file.is_file()]:
        raise UserInputError(f"{missing[0]}: there is no such file; the comparison needs it (its settings name it)")
    return {str(file): file_hash(file) for file in files}


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _write(file: Path, found: Any) -> None:
    with whole_file(file) as beside:
        beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
