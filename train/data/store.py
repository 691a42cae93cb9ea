"""Tokenized conversations on disk: written once, then read by memory map, so that memory does not grow with them.

A store is a folder: `ids.bin` (int32) and `loss_mask.bin` (bool) hold the tokens of all conversations one after the other,
`records.bin` the UTF-8 JSON of what else belongs to each, `index.bin` where each ends (int64 `[n, 3]`: tokens, bytes of
its record, number of its file), `skipped.jsonl` the items that were left out.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nextgpt.train.data.files import json_line

SKIPPED_FILE = "skipped.jsonl"


class Example(NamedTuple):
    """One tokenized conversation.

    Args:
        ids: int32 `[length]`.
        loss_mask: bool `[length]`, True on what the assistant wrote.
        record: what else belongs to it, as JSON has it.
        source: number of its file.
    """

    ids: np.ndarray
    loss_mask: np.ndarray
    record: dict[str, Any]
    source: int


class Skipped(NamedTuple):
    """An item that was left out: where it stands, and why."""

    where: str
    reason: str


class ExampleStore:
    """The conversations in a folder that `write` made. Travels to other processes by its path alone."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __reduce__(self):
        return type(self), (self.folder,)

    @classmethod
    def write(cls, folder: str | Path, examples: Iterable[Example | Skipped]) -> ExampleStore:
        """Writes the examples as they come; the folder appears when the last one is there."""
        folder = Path(folder)
        staging = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
        staging.mkdir(parents=True)
        try:
            _write(staging, examples)
            shutil.rmtree(folder, ignore_errors=True)
            try:
                os.replace(staging, folder)
            except OSError:
                if not folder.is_dir():  # else another process has just put the same there
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return cls(folder)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Example:
        tokens = self._span(index, 0)
        return Example(self._ids[tokens], self._loss_mask[tokens], self.record(index), int(self._index[index, 2]))

    def record(self, index: int) -> dict[str, Any]:
        """What belongs to a conversation beside its tokens."""
        return json.loads(self._records[self._span(index, 1)].tobytes())

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each conversation: int64 `[n]`."""
        return np.diff(self._index[:, 0], prepend=0)

    @property
    def sources(self) -> np.ndarray:
        """The number of each conversation's file: int64 `[n]`."""
        return self._index[:, 2]

    @property
    def skipped(self) -> list[Skipped]:
        """What was left out when the store was written."""
        lines = (self.folder / SKIPPED_FILE).read_bytes().splitlines()  # text also splits where a record may not
        return [Skipped(**json.loads(line)) for line in lines]

    def _span(self, index: int, column: int) -> slice:
        return slice(int(self._index[index - 1, column]) if index else 0, int(self._index[index, column]))

    @cached_property
    def _index(self) -> np.ndarray:
        return _mapped(self.folder / "index.bin", np.int64).reshape(-1, 3)

    @cached_property
    def _ids(self) -> np.ndarray:
        return _mapped(self.folder / "ids.bin", np.int32)

    @cached_property
    def _loss_mask(self) -> np.ndarray:
        return _mapped(self.folder / "loss_mask.bin", np.bool_)

    @cached_property
    def _records(self) -> np.ndarray:
        return _mapped(self.folder / "records.bin", np.uint8)


def _write(folder: Path, examples: Iterable[Example | Skipped]) -> None:
    tokens = record_bytes = 0
    names = ("ids.bin", "loss_mask.bin", "records.bin", "index.bin", SKIPPED_FILE)
    files = [(folder / name).open("wb") for name in names]
    ids, loss_mask, records, index, skipped = files
    try:
        for example in examples:
            if isinstance(example, Skipped):
                skipped.write(json_line(example._asdict()))
                continue
            record = json_line(example.record)
            tokens += len(example.ids)
            record_bytes += len(record)
            ids.write(example.ids.astype(np.int32).tobytes())
            loss_mask.write(example.loss_mask.astype(np.bool_).tobytes())
            records.write(record)
            index.write(np.array([tokens, record_bytes, example.source], np.int64).tobytes())
    finally:
        for file in files:
            file.close()


def _mapped(file: Path, dtype: type) -> np.ndarray:
    """A file as a read-only array; empty files cannot be mapped."""
    return np.memmap(file, dtype, mode="r") if file.stat().st_size else np.empty(0, dtype)
