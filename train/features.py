"""What the frozen parts say of a data set, computed once and kept on disk. Trains nothing.

A cache folder holds one folder per frozen part and kind of feature, named by a hash of the part's files: another part
never finds this one's features. In it are safetensors shards of `keys` (SHA-256 of an item's content) and `features`.
Shards are written beside and renamed, so that an interrupted run loses no more than the batch it was in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils.logging import tqdm

from nextgpt.decoders import Decoder, load_decoder
from nextgpt.errors import UserInputError
from nextgpt.media import load_media
from nextgpt.modeling_nextgpt import NextGPTModel
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.data import ChatDataset, InputMedia, TrainingFeatures

logger = logging.getLogger(__name__)

Item = TypeVar("Item", bound=Hashable)

CACHE_VERSION = "1"  # raised when the same files come to mean other features
SHARD_BYTES = 64_000_000
SHARD_SECONDS = 60  # at most so much work is lost when the process is killed
ENCODER_FILES = ("*.json", "*.safetensors", "*.bin", "*.pth")
TEXT_ENCODER_FILES = ("text_encoder/*", "tokenizer/*")
AUTOENCODER_FILES = ("*.json", "vae/*", "unet/config.json", "vocoder/config.json")


def cached_features(
    folder: Path,
    keys: dict[Item, bytes],
    compute: Callable[[list[Item]], Tensor],
    *,
    batch_size: int,
    description: str,
) -> dict[Item, Tensor]:
    """The feature of every item, read from `folder` where it is there, else computed and written there.

    Args:
        keys: item → SHA-256 of its content. Items of one key are computed once.
        compute: items → features `[items, …]`; not called when nothing is missing.
        description: of the progress bar.

    Returns:
        Item → feature.
    """
    stored = _read_shards(folder, set(keys.values()))
    missing = [(item, key) for key, item in {key: item for item, key in keys.items()}.items() if key not in stored]
    if missing:
        logger.info("%s: %d of %d to compute, kept in %s", description, len(missing), len(set(keys.values())), folder)
        stored |= _compute(folder, missing, compute, batch_size, description)
    return {item: stored[key] for item, key in keys.items()}


def _compute(folder: Path, missing: list, compute: Callable, batch_size: int, description: str) -> dict[bytes, Tensor]:
    computed: dict[bytes, Tensor] = {}
    pending: dict[bytes, Tensor] = {}
    written = time.monotonic()
    try:
        for start in tqdm(range(0, len(missing), batch_size), desc=description, unit=" batches"):
            items, keys = zip(*missing[start : start + batch_size], strict=True)
            pending |= zip(keys, compute(list(items)).float().cpu(), strict=True)
            size = sum(feature.nbytes for feature in pending.values())
            if size >= SHARD_BYTES or time.monotonic() - written > SHARD_SECONDS:
                computed |= _write_shard(folder, pending)
                pending, written = {}, time.monotonic()
    finally:  # what is done stays done, also when the rest fails
        if pending:
            computed |= _write_shard(folder, pending)
    return computed


def _write_shard(folder: Path, features: dict[bytes, Tensor]) -> dict[bytes, Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    digests = torch.frombuffer(bytearray(b"".join(features)), dtype=torch.uint8).view(len(features), -1)
    stacked = torch.stack(list(features.values()))
    name = uuid.uuid4().hex
    save_file({"keys": digests, "features": stacked}, folder / f"{name}.tmp")
    os.replace(folder / f"{name}.tmp", folder / f"{name}.safetensors")
    return dict(zip(features, stacked, strict=True))


def _read_shards(folder: Path, wanted: set[bytes]) -> dict[bytes, Tensor]:
    stored: dict[bytes, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            shard = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserInputError(f"{file}: a broken shard of the feature cache ({error}); delete it") from None
        keys = (row.tobytes() for row in shard["keys"].numpy())
        stored |= {key: row.clone() for key, row in zip(keys, shard["features"], strict=True) if key in wanted}
    return stored


def gather_features(
    dataset: ChatDataset,
    model: NextGPTModel,
    processor: NextGPTProcessor,
    cache: str | Path,
    *,
    device: torch.device,
    batch_size: int = 64,
    denoising: bool = False,
) -> TrainingFeatures:
    """All frozen features that training on `dataset` needs.

    Args:
        cache: folder of the cache.
        device: where the frozen encoders run; decoders are loaded only for what is missing, and let go.
        denoising: also the latents of the assistant's media, and the decoders themselves in `model.decoders`.
    """
    features = TrainingFeatures(inputs=_input_features(dataset.inputs, model, processor, Path(cache), device, batch_size))
    outputs = dataset.outputs
    for modality in sorted({media.modality for media in outputs}):
        part, location = model.config.part(modality), model.config.location(modality)
        decoder = load_decoder(part.kind, location, revision=part.revision, device=device)
        files = [location, part.revision]
        captions = {media.caption for media in outputs if media.modality == modality}
        features.targets[modality] = cached_features(
            Path(cache) / _folder_name("captions", part.kind, fingerprint(*files, TEXT_ENCODER_FILES)),
            {caption: _sha256(caption.encode()) for caption in sorted(captions)},
            decoder.encode,
            batch_size=batch_size,
            description=f"Encoding the captions of {modality}s",
        )
        if denoising:
            paths = {media.path for media in outputs if media.modality == modality}
            features.latents[modality] = _latents(decoder, paths, Path(cache), files, batch_size)
            model.decoders[modality] = decoder
    return features


def _input_features(
    media: set[InputMedia],
    model: NextGPTModel,
    processor: NextGPTProcessor,
    cache: Path,
    device: torch.device,
    batch_size: int,
) -> dict[InputMedia, Tensor]:
    if not media:
        return {}
    part = model.config.part("encoder")
    # How media are prepared is part of what an embedding is, wherever that is written.
    prepared = json.dumps(processor.encoder_config.to_dict(), sort_keys=True, default=str)
    weights = fingerprint(model.config.location("encoder"), part.revision, ENCODER_FILES)
    identity = _sha256((weights + prepared).encode()).hex()
    dtype = next(model.encoder.parameters()).dtype
    features = {}
    for modality in sorted({each.modality for each in media}):

        def encode(items: list[InputMedia], modality: str = modality) -> Tensor:
            values = _in_threads(lambda item: processor.prepare_media(modality, str(item.path)), items)
            return model.encoder.to(device).encode(modality, torch.stack(values).to(device, dtype))

        paths = sorted(each for each in media if each.modality == modality)
        features |= cached_features(
            cache / _folder_name(modality, str(dtype).removeprefix("torch."), identity),
            dict(zip(paths, _in_threads(lambda item: _file_sha256(item.path), paths), strict=True)),
            encode,
            batch_size=batch_size,
            description=f"Encoding {modality}s",
        )
    return features


def _latents(
    decoder: Decoder, paths: set[Path], cache: Path, files: Sequence[str | None], batch_size: int
) -> dict[Path, Tensor]:
    def encode(items: list[Path]) -> Tensor:
        # One at a time: a clip's frames are large.
        return torch.cat([decoder.encode_media([load_media(decoder.modality, str(item))]).cpu() for item in items])

    return cached_features(
        cache / _folder_name("latents", decoder.kind, fingerprint(*files, AUTOENCODER_FILES)),
        {path: _file_sha256(path) for path in sorted(paths)},
        encode,
        batch_size=batch_size,
        description=f"Encoding {decoder.modality} latents",
    )


def fingerprint(location: str, revision: str | None, patterns: Iterable[str]) -> str:
    """What a frozen part is: a hash of its files (those that match `patterns`), or of its repository and revision."""
    path, digest = Path(location), hashlib.sha256(CACHE_VERSION.encode())
    if not path.exists():
        digest.update(f"{location}@{revision}".encode())
        return digest.hexdigest()
    files = {file for pattern in patterns for file in path.glob(pattern)} if path.is_dir() else {path}
    for file in sorted(file for file in files if file.is_file()):
        digest.update(file.name.encode() + _file_sha256(file))
    return digest.hexdigest()


def _folder_name(*words: str) -> str:
    return "-".join((*words[:-1], words[-1][:16]))


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _file_sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _in_threads(function: Callable, items: Sequence) -> list:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))
