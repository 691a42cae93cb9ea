"""The frozen parts' features of a data set, computed once and kept on disk (see `feature_cache`)."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
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
SHARD_BATCHES = 16  # at most so much work is lost when the process is killed
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
        role: `inputs` (embeddings of media that are looked at), `captions` (conditioning of the assistant's media) or
            `latents` (of those media themselves).
        modality: of the media.
        table: where they are kept.
        compute: items → the feature of each, or what is wrong with it.
    """

    role: str
    modality: str
    table: FeatureTable
    compute: Callable[[list[Item]], Computed]

    def items(self, inputs: list[InputMedia], outputs: list[OutputMedia]) -> list[Item]:
        """The media of an example → its items of this kind."""
        media = [each for each in (inputs if self.role == "inputs" else outputs) if each.modality == self.modality]
        return [each.caption for each in media] if self.role == "captions" else [each.path for each in media if each.path]

    @property
    def description(self) -> str:
        """Of the progress bar."""
        plural = MODALITIES[self.modality].plural
        return f"Encoding {plural}" if self.role == "inputs" else f"Encoding the {self.role} of {plural}"


Batch = dict[bytes, Item]  # by the hashes of their content
# Computes batches, wherever it likes, and gives each back with what is computed of it, in the order of the batches.
Run = Callable[[FeatureSource, Iterator[Batch]], Iterator[tuple[Batch, Computed]]]


def run_here(source: FeatureSource, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Computed]]:
    """One batch after the other, in this process."""
    for batch in batches:
        yield batch, compute_batch(source.compute, batch, source.description)


def compute_batch(compute: Callable[[list[Item]], Computed], batch: Batch, description: str) -> Computed:
    """What is computed of a batch.

    Args:
        description: of the work, for the error.

    Raises:
        UserInputError: there is not enough memory for so many items.
    """
    try:
        return compute(list(batch.values()))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserInputError(
            f"out of memory while {description[0].lower()}{description[1:]}, {len(batch)} at once: lower feature_batch_size"
        ) from error


def fill(
    source: FeatureSource,
    dataset: ChatDataset,
    *,
    batch_size: int,
    share: tuple[int, int] = (0, 1),
    on_bad_item: str = "fail",
    run: Run = run_here,
) -> dict[Item, str]:
    """Computes and writes the features that are missing. Holds a batch and a shard in memory, not the data set.

    Batches are cut by the number of missing items, in the order of the data set: whoever computes them, the same data
    give the same files.

    Args:
        batch_size: items that are computed at once.
        share: `(i, n)`: the i-th of n processes that divide the items among themselves.
        on_bad_item: `fail`, or `skip` to go on without an item that cannot be read.
        run: computes the batches.

    Returns:
        Item → what is wrong with it.

    Raises:
        UserInputError: an item cannot be read.
    """
    bad: dict[Item, str] = {}
    under_way: dict[bytes, dict[Item, None]] = {}  # asked for, but not computed yet: all items of that content
    writer = _ShardWriter(source.table.cache)

    def note(item: Item, error: Exception) -> None:
        reason = str(error) if str(error).startswith(str(item)) else f"{item}: {error}"
        if on_bad_item != "skip":
            raise UserInputError(f"{dataset.where(item)}: {reason}") from None
        bad[item] = reason

    def batches() -> Iterator[Batch]:
        waiting: Batch = {}
        with tqdm(desc=source.description, total=len(dataset), unit=" conversations") as bar:
            for start in range(0, len(dataset), CHUNK):
                indices = range(start, min(start + CHUNK, len(dataset)))
                keys = source.table.keys(item for index in indices for item in source.items(*dataset.media(index)))
                own: dict[bytes, dict[Item, None]] = {}
                for item, key in keys.items():
                    if isinstance(key, OSError):
                        note(item, key)
                    elif _is_mine(key, share):
                        alike = under_way[key] if key in under_way else own.setdefault(key, {})
                        alike[item] = None
                new = source.table.cache.missing([key for key in own if key not in writer.pending])
                under_way.update({key: own[key] for key in new})
                waiting |= {key: next(iter(own[key])) for key in new}
                while len(waiting) >= batch_size:
                    yield {key: waiting.pop(key) for key in list(waiting)[:batch_size]}
                bar.update(len(indices))
            if waiting:
                yield waiting

    try:
        for batch, computed in run(source, batches()):
            for key, item in batch.items():
                found, alike = computed[item], under_way.pop(key)
                if not isinstance(found, Exception) and not _is_finite(found):
                    found = UserInputError("its feature holds NaN or infinite numbers; check it, or compute in float32")
                if isinstance(found, Exception):
                    for each in alike:
                        note(each, found)
                else:
                    writer.add(key, found)
            writer.end_batch()
    finally:  # what is done stays done, also when the rest fails
        writer.flush()
    return bad


def _is_mine(key: bytes, share: tuple[int, int]) -> bool:
    return int.from_bytes(key[:4]) % share[1] == share[0]


def _is_finite(feature: Tensor | dict[str, Tensor]) -> bool:
    return all(tensor.isfinite().all() for tensor in (feature.values() if isinstance(feature, dict) else [feature]))


class _ShardWriter:
    """Gathers features into shards: of so many batches, or of a good size."""

    def __init__(self, cache: FeatureCache):
        self.cache, self.pending, self.bytes, self.batches = cache, {}, 0, 0

    def add(self, key: bytes, feature: Feature) -> None:
        tensors = [feature] if isinstance(feature, Tensor) else feature.values()
        self.pending[key] = on_cpu(feature)
        self.bytes += sum(tensor.numel() * 4 for tensor in tensors)

    def end_batch(self) -> None:
        self.batches += 1
        if self.bytes >= SHARD_BYTES or self.batches >= SHARD_BATCHES:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            self.cache.add(self.pending)
        self.pending, self.bytes, self.batches = {}, 0, 0


def on_cpu(feature: Feature) -> Feature:
    """As it is kept: in float32 and main memory."""
    if isinstance(feature, dict):
        return {name: on_cpu(tensor) for name, tensor in feature.items()}
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
    captions: bool = True,
    share: tuple[int, int] = (0, 1),
    on_bad_item: str = "fail",
    accept_stale: bool = False,
    run: Run = run_here,
) -> TrainingFeatures:
    """All frozen features that training on `dataset` needs; what is missing is computed now.

    Args:
        config, encoder: of the model; its frozen encoder.
        folder: of the caches.
        device: where the frozen parts run; decoders are loaded only for what is missing, and let go.
        decoders: for the denoising loss: is given the decoders, and the latents of the assistant's media are had too.
        captions: whether what the text encoders say of the captions is needed.
        share, on_bad_item, run: as for `fill`; conversations with a bad item are dropped from `dataset`.
        accept_stale: as for `FeatureCache`.
    """
    hashes, options = dataset.hashes, {"batch_size": batch_size, "share": share, "on_bad_item": on_bad_item, "run": run}
    features = TrainingFeatures()
    bad: dict[Item, str] = {}

    def cache(kind: str, part: dict[str, Any]) -> FeatureCache:
        return FeatureCache(folder, kind, part, accept_stale=accept_stale)

    def filled(*source: Any) -> FeatureTable:
        bad.update(fill(made := FeatureSource(*source), dataset, **options))
        return made.table

    inputs, outputs = _modalities(dataset)
    for modality in inputs:
        dtype = next(encoder.parameters()).dtype
        identity = _encoder_identity(hashes, config, processor)
        table = FeatureTable(cache(f"{modality}-{str(dtype).removeprefix('torch.')}", identity), hashes.of)
        features.inputs[modality] = filled("inputs", modality, table, embedding(modality, encoder, processor, device))
    for modality in outputs:
        part, location = config.part(modality), config.location(modality)
        decoder = load_frozen_decoder(config, modality, device)
        if decoders is not None:
            _check_trainable(decoder)
        if captions:
            identity = _identity(hashes, location, part.revision, decoder.files_of(decoder.text_encoder_files))
            table = FeatureTable(cache(f"captions-{decoder.kind}", identity), _caption_keys)
            features.targets[modality] = filled("captions", modality, table, conditioning(decoder))
        if decoders is not None:
            identity = _identity(hashes, location, part.revision, decoder.files_of(decoder.autoencoder_files))
            table = FeatureTable(cache(f"latents-{decoder.kind}", identity), hashes.of)
            features.latents[modality] = filled("latents", modality, table, _latents(decoder))
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


def embedding(
    modality: str, encoder: nn.Module, processor: NextGPTProcessor, device: torch.device
) -> Callable[[list[Item]], Computed]:
    """Media files → the encoder's embedding of each."""
    dtype = next(encoder.parameters()).dtype

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

    return compute


def conditioning(decoder: Decoder) -> Callable[[list[Item]], Computed]:
    """Captions → the conditioning that the decoder's text encoders give for each."""

    def compute(captions: list[Item]) -> Computed:
        try:
            encoded = decoder.encode(captions)
        except ValueError as error:  # the captions are texts: it is the decoder that does not hold together
            raise UserInputError(str(error)) from error
        return {caption: {name: each[i] for name, each in encoded.items()} for i, caption in enumerate(captions)}

    return compute


def _latents(decoder: Decoder) -> Callable[[list[Item]], Computed]:
    """Media files → the decoder's latents of each."""

    def encode(path: Item) -> Tensor | NextGPTError:
        try:
            return decoder.encode_media([load_media(decoder.modality, str(path))])[0].cpu()
        except Exception as error:
            return as_problem(error)

    return lambda paths: {path: encode(path) for path in paths}  # one at a time: a clip's frames are large


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
