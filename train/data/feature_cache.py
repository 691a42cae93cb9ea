"""The features of frozen parts on disk, by the content of their items.

A cache folder holds one folder per frozen part and kind of feature, named by a hash of the part's files: another part
never finds this one's features. In it are safetensors shards of `keys` (SHA-256 of an item's content) and `features`
(or `features/<name>`, where a feature is several named tensors), an index of them that is made anew when it is lost,
and `part.json`, which says what computed them. Shards are named by their keys, written beside and renamed: an interrupted
run loses no more than one, and several processes may write at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import default_collate

from nextgpt.errors import UserInputError
from nextgpt.train.data.files import whole_file
from nextgpt.train.data.hashes import LOCK_SECONDS

Feature = Tensor | dict[str, Tensor]  # a decoder's conditioning has several tensors

CACHE_VERSION = "3"  # raised when the same files come to mean other features
PART_FILE = "part.json"
INDEX_FILE = "index.sqlite"
OPEN_SHARDS = 128
KEYS, FEATURES = "keys", "features"  # names in a shard; a tensor of several goes by `features/<name>`


class FeatureCache:
    """The features of one kind from one frozen part, on disk, by the hash of the item's content.

    Args:
        root: folder of all caches.
        kind: e.g. `image-float32`, `captions-stable-diffusion`.
        part: what computes the features; every value counts but `source`, since a folder may move.
        accept_stale: make a new cache, though there is one of this kind from another part.

    Raises:
        UserInputError: the folder holds features of this kind that another part computed, and none of this one.
    """

    def __init__(self, root: str | Path, kind: str, part: dict[str, Any], *, accept_stale: bool = False):
        counting = {name: value for name, value in part.items() if name != "source"}
        identity = hashlib.sha256(json.dumps([CACHE_VERSION, counting], sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(root) / f"{kind}-{identity}"
        if not self.folder.is_dir() and not accept_stale:
            _refuse_stale(self.folder, kind, part)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / PART_FILE).is_file():
            with whole_file(self.folder / PART_FILE) as beside:
                beside.write_text(json.dumps(part, indent=2) + "\n", encoding="utf-8")
        with closing(self._connect()) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, shard TEXT, row INTEGER)")
            database.execute("CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY)")
        self.refresh()

    def refresh(self) -> None:
        """Takes into the index what other processes wrote, and out of it what was deleted."""
        present = {file.name for file in self.folder.glob("*.safetensors")}
        with closing(self._connect()) as database:
            known = {name for (name,) in database.execute("SELECT name FROM shards")}
        for name in known - present:
            with closing(self._connect()) as database, database:
                database.execute("DELETE FROM rows WHERE shard=?", (name,))
                database.execute("DELETE FROM shards WHERE name=?", (name,))
        for name in sorted(present - known):
            self._index(name, _keys(self.folder / name))

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of the keys that have no feature yet, each once."""
        with closing(self._connect()) as database:
            known = {key for key in keys if database.execute("SELECT 1 FROM rows WHERE key=?", (key,)).fetchone()}
        return [key for key in dict.fromkeys(keys) if key not in known]

    def add(self, features: dict[bytes, Feature]) -> None:
        """Writes one shard of features of equal names and shapes."""
        keys = torch.frombuffer(bytearray(b"".join(features)), dtype=torch.uint8).view(len(features), -1)
        name = f"{hashlib.sha256(keys.numpy().tobytes()).hexdigest()[:32]}.safetensors"
        stacked = default_collate(list(features.values()))
        tensors = {FEATURES: stacked} if isinstance(stacked, Tensor) else {f"{FEATURES}/{n}": t for n, t in stacked.items()}
        with whole_file(self.folder / name) as beside:
            save_file({KEYS: keys} | tensors, beside)
        self._index(name, list(features))

    def rows(self, keys: Sequence[bytes]) -> list[Feature]:
        """The feature of each key; KeyError for one that has none."""
        database = _reader(self.folder / INDEX_FILE, os.getpid())
        found = []
        for key in keys:
            row = database.execute("SELECT shard, row FROM rows WHERE key=?", (key,)).fetchone()
            if row is None:
                raise KeyError(key.hex())
            tensors = {name: each[row[1]].clone() for name, each in _shard(self.folder / row[0], os.getpid()).items()}
            named = {name.removeprefix(f"{FEATURES}/"): tensor for name, tensor in tensors.items()}
            found.append(tensors[FEATURES] if FEATURES in tensors else named)
        return found

    def _index(self, name: str, keys: Iterable[bytes]) -> None:
        with closing(self._connect()) as database, database:
            database.executemany(
                "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", ((key, name, row) for row, key in enumerate(keys))
            )
            database.execute("INSERT OR REPLACE INTO shards VALUES (?)", (name,))

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.folder / INDEX_FILE, timeout=LOCK_SECONDS)


def _refuse_stale(folder: Path, kind: str, part: dict[str, Any]) -> None:
    for other in folder.parent.glob(f"{kind}-*"):
        if other.name.removeprefix(f"{kind}-").isalnum() and any(other.glob("*.safetensors")):
            found = json.loads((other / PART_FILE).read_text(encoding="utf-8"))
            changed = [name for name in part if part[name] != found.get(name)]
            differences = ", ".join(f"{name} {found.get(name)} there, {part[name]} here" for name in changed)
            why = f"another frozen part computed it ({differences})" if changed else "another version of nextgpt wrote it"
            raise UserInputError(
                f"{other} is stale: {why}. Delete it, name another folder (features=…), or make the new features with "
                "`nextgpt data cache`"
            )


@lru_cache(maxsize=32)
def _reader(file: Path, process: int) -> sqlite3.Connection:
    """A connection for reading that stays open; each process has its own, also after a fork."""
    return sqlite3.connect(f"file:{file.absolute()}?mode=ro", uri=True, timeout=LOCK_SECONDS, check_same_thread=False)


@lru_cache(maxsize=OPEN_SHARDS)
def _shard(file: Path, process: int) -> dict[str, Any]:
    """The features of a shard by name, `[items, …]` each; a row is read when it is asked for."""
    opened = _opened(file)
    return {key: opened.get_slice(key) for key in opened.keys() if key != KEYS}


def _keys(file: Path) -> list[bytes]:
    return [row.tobytes() for row in _opened(file).get_tensor(KEYS).numpy()]


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise UserInputError(f"{file}: a broken shard of the feature cache ({error}); delete it") from None
