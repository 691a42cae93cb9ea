"""What the frozen parts say of a data set, computed once and kept on disk. Trains nothing.

A cache folder holds one folder per frozen part and kind of feature, named by a hash of the part's files: another part
never finds this one's features. In it are safetensors shards of `keys` (SHA-256 of an item's content) and `features`,
an index of them that is made anew when it is lost, and `part.json`, which says what computed them. Shards are written
beside and renamed: an interrupted run loses no more than the work of a minute, and several processes may write at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders import Decoder, load_decoder
from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.hardware import is_out_of_memory
from nextgpt.media import load_media
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.data import CHUNK, ChatDataset, InputMedia, OutputMedia, TrainingFeatures
from nextgpt.train.hashes import LOCK_SECONDS, FileHashes

logger = logging.getLogger(__name__)

Item = str | Path  # a caption or a media file
Computed = dict[Item, Tensor | NextGPTError]

CACHE_VERSION = "3"  # raised when the same files come to mean other features
PART_FILE = "part.json"
INDEX_FILE = "index.sqlite"
SHARD_BYTES = 64_000_000
SHARD_SECONDS = 60  # at most so much work is lost when the process is killed
OPEN_SHARDS = 128
ENCODER_FILES = ("*.json", "*.safetensors", "*.bin", "*.pth")
TEXT_ENCODER_FILES = ("text_encoder/*", "tokenizer/*")
AUTOENCODER_FILES = ("*.json", "vae/*", "unet/config.json", "vocoder/config.json")


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
            (self.folder / PART_FILE).write_text(json.dumps(part, indent=2) + "\n", encoding="utf-8")
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

    def add(self, features: dict[bytes, Tensor]) -> None:
        """Writes one shard of features of equal shape."""
        keys = torch.frombuffer(bytearray(b"".join(features)), dtype=torch.uint8).view(len(features), -1)
        name = f"{uuid.uuid4().hex}.safetensors"
        save_file({"keys": keys, "features": torch.stack(list(features.values()))}, self.folder / f"{name}.tmp")
        os.replace(self.folder / f"{name}.tmp", self.folder / name)
        self._index(name, list(features))

    def rows(self, keys: Sequence[bytes]) -> list[Tensor]:
        """The feature of each key; KeyError for one that has none."""
        database = _reader(self.folder / INDEX_FILE, os.getpid())
        found = []
        for key in keys:
            row = database.execute("SELECT shard, row FROM rows WHERE key=?", (key,)).fetchone()
            if row is None:
                raise KeyError(key.hex())
            found.append(_shard(self.folder / row[0], os.getpid())[row[1]].clone())
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
            raise UserInputError(
                f"{other} is stale: another frozen part computed it ({differences}). Delete it, name another folder "
                "(features=…), or make the new features with `nextgpt data cache`"
            )


@lru_cache(maxsize=32)
def _reader(file: Path, process: int) -> sqlite3.Connection:
    """A connection for reading that stays open; each process has its own, also after a fork."""
    return sqlite3.connect(f"file:{file.absolute()}?mode=ro", uri=True, timeout=LOCK_SECONDS, check_same_thread=False)


@lru_cache(maxsize=OPEN_SHARDS)
def _shard(file: Path, process: int) -> Any:
    """The features of a shard, `[items, …]`; a row is read when it is asked for."""
    return _opened(file).get_slice("features")


def _keys(file: Path) -> list[bytes]:
    return [row.tobytes() for row in _opened(file).get_tensor("keys").numpy()]


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise UserInputError(f"{file}: a broken shard of the feature cache ({error}); delete it") from None


class FeatureTable(NamedTuple):
    """Where training reads the features of one kind. Travels to other processes.

    Args:
        cache: where they are kept.
        keys: items → the hash of each one's content, or the error that reading it gave.
    """

    cache: FeatureCache
    keys: Callable[[Iterable[Item]], dict[Item, bytes | OSError]]

    def rows(self, items: list[Item]) -> list[Tensor]:
        """The feature of each item.

        Raises:
            UserInputError: one has none.
        """
        keys = self.keys(items)
        try:
            rows = self.cache.rows([keys[item] for item in items])
        except (KeyError, sqlite3.Error):
            raise UserInputError(
                f"{items[0]} and the {len(items) - 1} items beside it have no features in {self.cache.folder}: a file was "
                "changed while training ran; start again"
            ) from None
        if bad := [item for item, row in zip(items, rows, strict=True) if not _is_finite(row)]:
            raise UserInputError(f"{bad[0]}: its feature in {self.cache.folder} is NaN or infinite; delete that folder")
        return rows


class FeatureSource(NamedTuple):
    """One kind of feature that a data set needs, and how it is computed.

    Args:
        table: where they are kept.
        items: the media of an example, inputs and outputs → its items of this kind.
        compute: items → the feature of each, or what is wrong with it.
        description: of the progress bar.
    """

    table: FeatureTable
    items: Callable[[list[InputMedia], list[OutputMedia]], list[Item]]
    compute: Callable[[list[Item]], Computed]
    description: str


def fill(
    source: FeatureSource,
    dataset: ChatDataset,
    *,
    batch_size: int,
    share: tuple[int, int] = (0, 1),
    on_bad_item: str = "fail",
) -> dict[Item, str]:
    """Computes and writes the features that are missing. Holds a batch and a shard in memory, not the data set.

    Args:
        batch_size: items that are computed at once.
        share: `(i, n)`: the i-th of n processes that divide the items among themselves.
        on_bad_item: `fail`, or `skip` to go on without an item that cannot be read.

    Returns:
        Item → what is wrong with it.

    Raises:
        UserInputError: an item cannot be read.
    """
    bad: dict[Item, str] = {}
    waiting: dict[bytes, Item] = {}
    writer = _ShardWriter(source.table.cache)

    def note(item: Item, error: Exception) -> None:
        if on_bad_item != "skip":
            raise UserInputError(f"{item}: {error}") from None
        bad[item] = str(error)

    def compute(count: int) -> None:
        keys = list(waiting)[:count]
        items = [waiting.pop(key) for key in keys]
        try:
            computed = source.compute(items) if items else {}
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserInputError(
                f"out of memory while {source.description[0].lower()}{source.description[1:]}: lower feature_batch_size "
                f"(now {batch_size})"
            ) from error
        for key, item in zip(keys, items, strict=True):
            if isinstance(computed[item], Exception):
                note(item, computed[item])
            elif not _is_finite(computed[item]):
                note(item, UserInputError("its feature holds NaN or infinite numbers; check it, or compute in float32"))
            else:
                writer.add(key, computed[item])

    try:
        with tqdm(desc=source.description, total=len(dataset), unit=" conversations") as bar:
            for start in range(0, len(dataset), CHUNK):
                indices = range(start, min(start + CHUNK, len(dataset)))
                keys = source.table.keys(item for index in indices for item in source.items(*dataset.media(index)))
                for item, key in keys.items():
                    if isinstance(key, OSError):
                        note(item, key)
                own = {key: item for item, key in keys.items() if isinstance(key, bytes) and _is_mine(key, share)}
                new = source.table.cache.missing([key for key in own if key not in writer.pending])
                waiting |= {key: own[key] for key in new}
                while len(waiting) >= batch_size:
                    compute(batch_size)
                bar.update(len(indices))
            compute(len(waiting))
    finally:  # what is done stays done, also when the rest fails
        writer.flush()
    return bad


def _is_mine(key: bytes, share: tuple[int, int]) -> bool:
    return int.from_bytes(key[:4]) % share[1] == share[0]


def _is_finite(feature: Tensor | dict[str, Tensor]) -> bool:
    return all(tensor.isfinite().all() for tensor in (feature.values() if isinstance(feature, dict) else [feature]))


class _ShardWriter:
    """Gathers features into shards of a good size, written at least once a minute."""

    def __init__(self, cache: FeatureCache):
        self.cache, self.pending, self.bytes, self.written = cache, {}, 0, time.monotonic()

    def add(self, key: bytes, feature: Tensor) -> None:
        feature = feature.float().cpu()
        self.pending[key] = feature
        self.bytes += feature.nbytes
        if self.bytes >= SHARD_BYTES or time.monotonic() - self.written > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            self.cache.add(self.pending)
        self.pending, self.bytes, self.written = {}, 0, time.monotonic()


# ---------------------------------------------------------------------- what a data set needs


def gather_features(
    dataset: ChatDataset,
    config: NextGPTConfig,
    encoder: nn.Module,
    processor: NextGPTProcessor,
    folder: str | Path,
    *,
    device: torch.device,
    batch_size: int = 64,
    decoders: dict[str, Decoder] | None = None,
    share: tuple[int, int] = (0, 1),
    on_bad_item: str = "fail",
    accept_stale: bool = False,
) -> TrainingFeatures:
    """All frozen features that training on `dataset` needs; what is missing is computed now.

    Args:
        config, encoder: of the model; its frozen encoder.
        folder: of the caches.
        device: where the frozen parts run; decoders are loaded only for what is missing, and let go.
        decoders: for the denoising loss: is given the decoders, and the latents of the assistant's media are had too.
        share, on_bad_item: as for `fill`; conversations with a bad item are dropped from `dataset`.
        accept_stale: as for `FeatureCache`.
    """
    hashes, options = dataset.hashes, {"batch_size": batch_size, "share": share, "on_bad_item": on_bad_item}
    features = TrainingFeatures()
    bad: dict[Item, str] = {}

    def cache(kind: str, part: dict[str, Any]) -> FeatureCache:
        return FeatureCache(folder, kind, part, accept_stale=accept_stale)

    def filled(source: FeatureSource) -> FeatureTable:
        bad.update(fill(source, dataset, **options))
        return source.table

    inputs, outputs = _modalities(dataset)
    for modality in inputs:
        dtype = next(encoder.parameters()).dtype
        identity = _encoder_identity(hashes, config, processor)
        table = FeatureTable(cache(f"{modality}-{str(dtype).removeprefix('torch.')}", identity), hashes.of)
        features.inputs[modality] = filled(_input_source(modality, encoder, processor, table, device, dtype))
    for modality in outputs:
        part, location = config.part(modality), config.location(modality)
        decoder = load_decoder(part.kind, location, revision=part.revision, device=device)
        identity = _identity(hashes, location, part.revision, TEXT_ENCODER_FILES)
        table = FeatureTable(cache(f"captions-{decoder.kind}", identity), _caption_keys)
        features.targets[modality] = filled(_caption_source(decoder, table))
        if decoders is not None:
            identity = _identity(hashes, location, part.revision, AUTOENCODER_FILES)
            table = FeatureTable(cache(f"latents-{decoder.kind}", identity), hashes.of)
            features.latents[modality] = filled(_latent_source(decoder, table))
            decoders[modality] = decoder
    dataset.drop(bad)
    return features


def _modalities(dataset: ChatDataset) -> tuple[list[str], list[str]]:
    """Which kinds of media the model looks at, and which it learns to make."""
    inputs, outputs = set(), set()
    for index in range(len(dataset)):
        given, made = dataset.media(index)
        inputs |= {media.modality for media in given}
        outputs |= {media.modality for media in made}
    return sorted(inputs), sorted(outputs)


def _input_source(
    modality: str,
    encoder: nn.Module,
    processor: NextGPTProcessor,
    table: FeatureTable,
    device: torch.device,
    dtype: torch.dtype,
) -> FeatureSource:
    def prepare(item: Item) -> Tensor | NextGPTError:
        try:
            return processor.prepare_media(modality, str(item))
        except NextGPTError as error:
            return error

    def compute(items: list[Item]) -> Computed:
        with ThreadPoolExecutor() as pool:
            computed: Computed = dict(zip(items, pool.map(prepare, items), strict=True))
        good = [item for item in items if isinstance(computed[item], Tensor)]
        if good:
            values = torch.stack([computed[item] for item in good]).to(device, dtype)
            computed |= zip(good, encoder.to(device).encode(modality, values), strict=True)
        return computed

    def items(inputs: list[InputMedia], outputs: list[OutputMedia]) -> list[Item]:
        return [media.path for media in inputs if media.modality == modality]

    return FeatureSource(table, items, compute, f"Encoding {modality}s")


def _caption_source(decoder: Decoder, table: FeatureTable) -> FeatureSource:
    def compute(captions: list[Item]) -> Computed:
        return dict(zip(captions, decoder.encode(captions), strict=True))

    def items(inputs: list[InputMedia], outputs: list[OutputMedia]) -> list[Item]:
        return [media.caption for media in outputs if media.modality == decoder.modality]

    return FeatureSource(table, items, compute, f"Encoding the captions of {decoder.modality}s")


def _latent_source(decoder: Decoder, table: FeatureTable) -> FeatureSource:
    def encode(path: Item) -> Tensor | NextGPTError:
        try:
            return decoder.encode_media([load_media(decoder.modality, str(path))])[0].cpu()
        except NextGPTError as error:
            return error

    def compute(paths: list[Item]) -> Computed:
        return {path: encode(path) for path in paths}  # one at a time: a clip's frames are large

    def items(inputs: list[InputMedia], outputs: list[OutputMedia]) -> list[Item]:
        return [media.path for media in outputs if media.modality == decoder.modality]

    return FeatureSource(table, items, compute, f"Encoding {decoder.modality} latents")


def _encoder_identity(hashes: FileHashes, config: NextGPTConfig, processor: NextGPTProcessor) -> dict[str, Any]:
    """How media are prepared is part of what an embedding is, wherever that is written."""
    prepared = json.dumps(processor.encoder_config.to_dict(), sort_keys=True, default=str)
    part = _identity(hashes, config.location("encoder"), config.part("encoder").revision, ENCODER_FILES)
    return part | {"preparation": _sha256(prepared.encode()).hex()}


def _identity(hashes: FileHashes, location: str, revision: str | None, patterns: Iterable[str]) -> dict[str, Any]:
    """What a frozen part is."""
    return {"source": location, "revision": revision, "content": hashes.fingerprint(location, revision, patterns)}


def _caption_keys(captions: Iterable[Item]) -> dict[Item, bytes | OSError]:
    return {caption: _sha256(caption.encode()) for caption in captions}


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
