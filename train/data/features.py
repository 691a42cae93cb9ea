"""The frozen parts' features of a data set, computed once and kept on disk (see `feature_cache`)."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders import Decoder
from nextgpt.errors import NextGPTError, UserInputError
from nextgpt.hardware import is_out_of_memory
from nextgpt.hub.loading import load_frozen_decoder
from nextgpt.media import load_media
from nextgpt.modalities import MODALITIES
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.data.dataset import CHUNK, ChatDataset, InputMedia, OutputMedia, TrainingFeatures
from nextgpt.train.data.feature_cache import Feature, FeatureCache
from nextgpt.train.data.hashes import FileHashes
from nextgpt.train.data.lines import as_problem

logger = logging.getLogger(__name__)

Item = str | Path  # a caption or a media file
Computed = dict[Item, Feature | NextGPTError]

SHARD_BYTES = 64_000_000
SHARD_SECONDS = 60  # at most so much work is lost when the process is killed
ENCODER_FILES = ("*.json", "*.safetensors", "*.bin", "*.pth")


class FeatureTable(NamedTuple):
    """Where training reads the features of one kind. Travels to other processes.

    Args:
        cache: where they are kept.
        keys: items → the hash of each one's content, or the error that reading it gave.
    """

    cache: FeatureCache
    keys: Callable[[Iterable[Item]], dict[Item, bytes | OSError]]

    def rows(self, items: list[Item]) -> list[Feature]:
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
        reason = str(error) if str(error).startswith(str(item)) else f"{item}: {error}"
        if on_bad_item != "skip":
            raise UserInputError(f"{dataset.where(item)}: {reason}") from None
        bad[item] = reason

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

    def add(self, key: bytes, feature: Feature) -> None:
        tensors = [feature] if isinstance(feature, Tensor) else feature.values()
        self.pending[key] = _on_cpu(feature)
        self.bytes += sum(tensor.numel() * 4 for tensor in tensors)
        if self.bytes >= SHARD_BYTES or time.monotonic() - self.written > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            self.cache.add(self.pending)
        self.pending, self.bytes, self.written = {}, 0, time.monotonic()


def _on_cpu(feature: Feature) -> Feature:
    if isinstance(feature, dict):
        return {name: _on_cpu(tensor) for name, tensor in feature.items()}
    return feature.float().cpu()


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
        decoder = load_frozen_decoder(config, modality, device)
        if decoders is not None:
            _check_trainable(decoder)
        identity = _identity(hashes, location, part.revision, decoder.files_of(decoder.text_encoder_files))
        table = FeatureTable(cache(f"captions-{decoder.kind}", identity), _caption_keys)
        features.targets[modality] = filled(_caption_source(decoder, table))
        if decoders is not None:
            identity = _identity(hashes, location, part.revision, decoder.files_of(decoder.autoencoder_files))
            table = FeatureTable(cache(f"latents-{decoder.kind}", identity), hashes.of)
            features.latents[modality] = filled(_latent_source(decoder, table))
            decoders[modality] = decoder
    dataset.drop(bad)
    return features


def _check_trainable(decoder: Decoder) -> None:
    try:
        decoder.check_trainable()
    except ValueError as error:
        raise UserInputError(f"denoising=true: {error}") from None


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
        except Exception as error:
            return as_problem(error)

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

    return FeatureSource(table, items, compute, f"Encoding {MODALITIES[modality].plural}")


def _caption_source(decoder: Decoder, table: FeatureTable) -> FeatureSource:
    def compute(captions: list[Item]) -> Computed:
        try:
            conditioning = decoder.encode(captions)
        except ValueError as error:  # the captions are texts: it is the decoder that does not hold together
            raise UserInputError(str(error)) from error
        return {caption: {name: each[i] for name, each in conditioning.items()} for i, caption in enumerate(captions)}

    def items(inputs: list[InputMedia], outputs: list[OutputMedia]) -> list[Item]:
        return [media.caption for media in outputs if media.modality == decoder.modality]

    return FeatureSource(table, items, compute, f"Encoding the captions of {MODALITIES[decoder.modality].plural}")


def _latent_source(decoder: Decoder, table: FeatureTable) -> FeatureSource:
    def encode(path: Item) -> Tensor | NextGPTError:
        try:
            return decoder.encode_media([load_media(decoder.modality, str(path))])[0].cpu()
        except Exception as error:
            return as_problem(error)

    def compute(paths: list[Item]) -> Computed:
        return {path: encode(path) for path in paths}  # one at a time: a clip's frames are large

    def items(inputs: list[InputMedia], outputs: list[OutputMedia]) -> list[Item]:
        return [media.path for media in outputs if media.modality == decoder.modality]

    return FeatureSource(table, items, compute, f"Encoding {decoder.modality} latents")


def _encoder_identity(hashes: FileHashes, config: NextGPTConfig, processor: NextGPTProcessor) -> dict[str, Any]:
    """The identity of an encoder's embeddings: its weights and its preprocessing."""
    prepared = json.dumps(processor.encoder_config.to_dict(), sort_keys=True, default=str)
    part = _identity(hashes, config.location("encoder"), config.part("encoder").revision, ENCODER_FILES)
    return part | {"preparation": _sha256(prepared.encode()).hex()}


def _identity(hashes: FileHashes, location: str, revision: str | None, patterns: Iterable[str]) -> dict[str, Any]:
    """The identity of a frozen part: its source and the content of its files."""
    return {"source": location, "revision": revision, "content": hashes.fingerprint(location, revision, patterns)}


def _caption_keys(captions: Iterable[Item]) -> dict[Item, bytes | OSError]:
    return {caption: _sha256(caption.encode()) for caption in captions}


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
