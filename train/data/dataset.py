"""From JSON-lines files of chat messages to batches of tensors. Media come in as the cached features of the frozen encoders.

One line is one conversation:

    {"messages": [
        {"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "…"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "…"}, {"type": "image", "caption": "…"}]}]}

Relative paths start from the file's folder. A media part of the assistant becomes its signal tokens; its `caption` is
what the frozen text encoder makes the training target of; its `path` is needed for the denoising loss only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from nextgpt.decoders import Decoder, register_decoder
from nextgpt.encoders import Encoder, register_encoder
from nextgpt.errors import UserInputError
from nextgpt.media.text import check_characters
from nextgpt.modalities import MODALITIES, Modality, register_modality, registered_modalities
from nextgpt.processing_nextgpt import IGNORED_LABEL, NextGPTProcessor
from nextgpt.train.data.hashes import FileHashes
from nextgpt.train.data.lines import Line, as_problem, check_files, count_lines, read_lines, with_progress
from nextgpt.train.data.sampler import BLANK
from nextgpt.train.data.store import Example, ExampleStore, Skipped

logger = logging.getLogger(__name__)

STORE_VERSION = "2"  # raised when the same files come to mean other examples
ON_BAD_ITEM = ("fail", "skip")
NO_MEDIA = {"inputs": [], "outputs": []}
CHUNK = 512  # conversations whose media are looked up at once


class InputMedia(NamedTuple):
    """A piece of media that the model looks at."""

    modality: str
    path: Path


class OutputMedia(NamedTuple):
    """A piece of media that the model learns to make."""

    modality: str
    caption: str | None
    path: Path | None


class FeatureRows(Protocol):
    """Where the frozen features of items (paths, captions) are had from."""

    def rows(self, items: list) -> list[Tensor | dict[str, Tensor]]:
        """One tensor, or tensors by name, for each item, on the CPU."""


@dataclass
class TrainingFeatures:
    """The frozen parts' features of a data set.

    Args:
        inputs: input modality → embeddings `[embed_dim]` of media files, by path.
        targets: output modality → conditioning of captions, tensors by name.
        latents: output modality → latents of media files, by path, for the denoising loss.
    """

    inputs: dict[str, FeatureRows] = field(default_factory=dict)
    targets: dict[str, FeatureRows] = field(default_factory=dict)
    latents: dict[str, FeatureRows] = field(default_factory=dict)


@dataclass
class Reader:
    """Tokenizes lines, and says what is wrong with them. Travels to other processes.

    Args:
        processor: tokenizes, and refuses malformed messages.
        max_length: longest conversation, in tokens.
        needs: `input` or `output`: refuse conversations without media on that side (they would teach nothing).
        needs_output_files: refuse media of the assistant without a `path`.
        on_bad_item: `fail`, or `skip`: give a `Skipped` in its place.
    """

    processor: NextGPTProcessor
    max_length: int | None = None
    needs: str | None = None
    needs_output_files: bool = False
    on_bad_item: str = "fail"

    def __call__(self, line: Line) -> Example | Skipped:
        """The line's tokens and media.

        Raises:
            UserInputError: names the file and the line.
        """
        try:
            return self._read(line)
        except Exception as error:  # whatever a line holds, its place is told
            problem = as_problem(error)
            if self.on_bad_item == "skip":
                return Skipped(line.where, str(problem))
            raise UserInputError(f"{line.where}: {problem}") from (None if problem is error else error)

    def _read(self, line: Line) -> Example:
        messages = line.messages()
        encoded = self.processor(
            messages,
            add_generation_prompt=False,
            template_kwargs=self.template_variables(line),
            return_labels=True,
            load_media=False,
            max_length=self.max_length,
        )
        ids = encoded["input_ids"][0].numpy()
        loss_mask = self.learned(ids, (encoded["labels"][0] != IGNORED_LABEL).numpy())
        inputs = [input_media(part) for part in media_parts(messages, "user")]
        outputs = self.outputs(messages)
        self._check(loss_mask, inputs, outputs)
        record = {
            "id": line.where,
            "inputs": [(media.modality, str(media.path)) for media in inputs],
            "outputs": [(media.modality, media.caption, media.path and str(media.path)) for media in outputs],
        }
        return Example(ids, loss_mask, record, line.source)

    def template_variables(self, line: Line) -> dict[str, str] | None:
        """What the chat template gets beside the messages."""
        return None

    def learned(self, ids: np.ndarray, spoken: np.ndarray) -> np.ndarray:
        """Which tokens are learned: bool `[length]`, as `spoken`, which is true on what the assistant wrote."""
        return spoken

    def outputs(self, messages: list[dict]) -> list[OutputMedia]:
        """The media that are learned, in order."""
        return [_output_media(part) for part in media_parts(messages, "assistant")]

    def _check(self, loss_mask: np.ndarray, inputs: list[InputMedia], outputs: list[OutputMedia]) -> None:
        if not loss_mask.any():
            raise UserInputError("the assistant says nothing, so there is nothing to learn; add its answer")
        if self.needs and not {"input": inputs, "output": outputs}[self.needs]:
            speaker = {"input": "user", "output": "assistant"}[self.needs]
            raise UserInputError(f"no media from the {speaker}: this stage learns nothing from it; leave the line out")
        if self.needs_output_files:
            for media in outputs:
                if media.path is None or not os.path.isfile(media.path):
                    raise UserInputError(f"{media.modality} {media.caption!r} needs a file at `path` for denoising")


class ChatDataset(Dataset):
    """Conversations, tokenized once and kept on disk; media by name only.

    Args:
        files: JSON-lines files.
        reader: tokenizes them.
        folder: keeps the tokens (and the hashes of files) from run to run; by default a temporary one.
        workers: processes that share the tokenizing; 0: this one alone.
        retry: read the files again where some of their lines were skipped last time; they may have been mended.

    Raises:
        UserInputError: names the file and the line.
    """

    kind: tuple[str, ...] = ()

    def __init__(
        self,
        files: Iterable[str | Path],
        reader: Reader,
        *,
        folder: str | Path | None = None,
        workers: int = 0,
        retry: bool = True,
    ):
        files = list(files)
        check_files(files)
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory()  # goes when the data set goes
            folder = self._temporary.name
        self.hashes = FileHashes(folder)
        contents = self.hashes.of(map(Path, files))
        self.fingerprint = _digest([contents[Path(file)].hex() for file in files])
        self.store = self._open(files, reader, Path(folder), workers, retry)
        self.skipped = list(self.store.skipped)
        self._kept: np.ndarray | None = None  # indices into the store; None: all
        if not len(self):
            raise UserInputError(f"no conversations in {', '.join(map(str, files)) or 'an empty list of files'}")

    def _open(self, files: list, reader: Reader, folder: Path, workers: int, retry: bool) -> ExampleStore:
        identity = [STORE_VERSION, self.fingerprint, [[str(file), str(Path(file).absolute())] for file in files]]
        settings = [reader.max_length, reader.needs, reader.needs_output_files, reader.on_bad_item]
        name = _digest([*identity, *settings, _processor_identity(reader.processor), *self.kind])[:16]
        store = ExampleStore(folder / "conversations" / name)
        if store.folder.is_dir() and not (retry and store.skipped):
            logger.info("tokenized conversations: %s", store.folder)
            return store
        lines, count = self.lines(files)
        with mapper(workers) as each:
            examples = with_progress(each(reader, lines), "Tokenizing", total=count)
            return ExampleStore.write(store.folder, examples)

    def lines(self, files: list[str | Path]) -> tuple[Iterable[Line], int]:
        """What is tokenized, and how many there are; `kind` tells apart what other data sets make of the same files."""
        return read_lines(files), count_lines(files)

    def __len__(self) -> int:
        return len(self.store) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids` and `labels` `[length]`, `inputs` and `outputs`: media in the order of their tokens, `id`.

        `BLANK` gives a conversation of one token that teaches nothing and has no id.
        """
        if index == BLANK:
            return {"id": None, "input_ids": torch.zeros(1).long(), "labels": torch.tensor([IGNORED_LABEL])} | NO_MEDIA
        example = self.store[self._stored(index)]
        inputs, outputs = _media(example.record)
        return {
            "id": example.record["id"],
            "input_ids": torch.from_numpy(example.ids.astype(np.int64)),
            "labels": torch.from_numpy(np.where(example.loss_mask, example.ids, IGNORED_LABEL).astype(np.int64)),
            "inputs": inputs,
            "outputs": outputs,
        }

    def media(self, index: int) -> tuple[list[InputMedia], list[OutputMedia]]:
        """What the model looks at, and what it learns to make."""
        return _media(self.store.record(self._stored(index)))

    def where(self, item: str | Path) -> str:
        """File and line of the first conversation that holds a media file or a caption."""
        records = (self.store.record(self._stored(index)) for index in range(len(self)))
        return next((record["id"] for record in records if item in _items(record)), "nowhere")

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each conversation: `[n]`."""
        return self._of_kept(self.store.lengths)

    @property
    def sources(self) -> np.ndarray:
        """The number of each conversation's file: `[n]`."""
        return self._of_kept(self.store.sources)

    def media_fingerprint(self, *, denoising: bool) -> str:
        """A hash of which conversations are kept and of the content of the media that are learned from.

        Args:
            denoising: the media that the assistant makes count too, not their captions alone.
        """
        digest = hashlib.sha256()
        for start in range(0, len(self), CHUNK):
            chunk = [self._stored(index) for index in range(start, min(start + CHUNK, len(self)))]
            media = {index: _media(self.store.record(index)) for index in chunk}
            used = {
                index: [*inputs, *(made for made in outputs if denoising and made.path)]
                for index, (inputs, outputs) in media.items()
            }
            contents = self.hashes.of(each.path for row in used.values() for each in row)
            for index, row in used.items():
                digest.update(index.to_bytes(8) + b"".join(contents[each.path] for each in row))
        return digest.hexdigest()

    def drop(self, bad: Mapping[Any, str]) -> None:
        """Leaves out the conversations that hold one of the `bad` items (path or caption → reason, which names it).

        Raises:
            UserInputError: nothing is left.
        """
        if not bad:
            return
        kept = []
        for index in map(self._stored, range(len(self))):
            record = self.store.record(index)
            reasons = [bad[item] for item in _items(record) if item in bad]
            if reasons:
                self.skipped.append(Skipped(record["id"], reasons[0]))
            else:
                kept.append(index)
        if not kept:
            raise UserInputError(f"every conversation has a bad item; the last is {self.skipped[-1].reason}")
        self._kept = np.array(kept)

    def _stored(self, index: int) -> int:
        return index if self._kept is None else int(self._kept[index])

    def _of_kept(self, values: np.ndarray) -> np.ndarray:
        return values if self._kept is None else values[self._kept]


def _media(record: dict) -> tuple[list[InputMedia], list[OutputMedia]]:
    inputs = [InputMedia(modality, Path(path)) for modality, path in record["inputs"]]
    return inputs, [OutputMedia(modality, caption, path and Path(path)) for modality, caption, path in record["outputs"]]


def _items(record: dict) -> list[str | Path | None]:
    """The files and captions of a conversation."""
    inputs, outputs = _media(record)
    return [*(media.path for media in inputs), *(item for media in outputs for item in media[1:])]


@contextmanager
def mapper(workers: int, chunk: int = 500) -> Iterator[Callable]:
    """`map`, or the same over processes that take `chunk` items at once."""
    if not workers:
        yield map
        return
    with spawned(workers) as pool:
        yield partial(pool.imap, chunksize=chunk)


def spawned(processes: int, encoders: Iterable[type[Encoder]] = (), decoders: Iterable[type[Decoder]] = ()) -> Pool:
    """New processes, spawned because an accelerator does not survive a fork.

    They know the modalities that were registered here, and these encoders and decoders.
    """
    return get_context("spawn").Pool(processes, _register, (registered_modalities(), list(encoders), list(decoders)))


def _register(modalities: list[Modality], encoders: list[type[Encoder]], decoders: list[type[Decoder]]) -> None:
    for modality in modalities:
        register_modality(modality)
    for encoder in encoders:
        register_encoder(encoder)
    for decoder in decoders:
        register_decoder(decoder)


def _digest(values: list) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _processor_identity(processor: NextGPTProcessor) -> str:
    """What decides how messages become tokens."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return _digest([vocabulary, processor.chat_template, processor.vocabulary.strings])


def media_parts(messages: list[dict], role: str) -> list[dict]:
    """The media of one role's messages, in order."""
    return [
        part
        for message in messages
        if message["role"] == role and isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] in MODALITIES
    ]


def input_media(part: dict) -> InputMedia:
    """A part that is looked at; UserInputError where it has no file."""
    path = part.get("path")
    if not isinstance(path, str):
        raise UserInputError(f"the {part['type']} part has no path; training reads files")
    if not os.path.isfile(path):  # unlike `Path.is_file`, False for names that no file can have
        raise UserInputError(f"{path}: no such file; paths start from the data file's folder")
    return InputMedia(part["type"], Path(path))


def _output_media(part: dict) -> OutputMedia:
    caption, path = part.get("caption"), part.get("path")
    if not isinstance(caption, str) or not caption.strip():
        raise UserInputError(f"the assistant's {part['type']} has no caption; say what it shows")
    check_characters(caption, f"the caption of the assistant's {part['type']}")
    if path is not None and not isinstance(path, str):
        raise UserInputError(f"the assistant's {part['type']} has the path {path!r}, expected text")
    return OutputMedia(part["type"], caption, Path(path) if path else None)


class ChatCollator:
    """Examples → one batch for the model, padded on the right, with the frozen features it needs."""

    def __init__(self, pad_token_id: int, features: TrainingFeatures):
        self.pad_token_id, self.features = pad_token_id, features

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Media features and targets come in the row-major order of their placeholders and signal runs.

        Beside the model's inputs there is `ids`: the conversations' files and lines.
        """
        ids = [example["input_ids"] for example in examples]
        lengths = torch.tensor([len(row) for row in ids])
        batch = {
            "ids": [example["id"] for example in examples if example["id"]],
            "input_ids": _pad(ids, self.pad_token_id),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),  # [batch, length]
            "labels": _pad([example["labels"] for example in examples], IGNORED_LABEL),
        }
        inputs = [media for example in examples for media in example["inputs"]]
        if inputs:
            batch["media_features"] = torch.stack(self.input_features(inputs))
        outputs = [media for example in examples for media in example["outputs"]]
        for name, tables in (("conditioning_targets", self.features.targets), ("media_latents", self.features.latents)):
            column = "caption" if name == "conditioning_targets" else "path"
            stacked = {}
            for modality, table in tables.items():
                items = [getattr(media, column) for media in outputs if media.modality == modality]
                if items:
                    stacked[modality] = default_collate(table.rows(items))
            if stacked:
                batch[name] = stacked
        return batch

    def input_features(self, media: list[InputMedia]) -> list[Tensor]:
        """The embedding `[embed_dim]` of each piece of media, in order."""
        rows = {
            modality: iter(self.features.inputs[modality].rows([each.path for each in media if each.modality == modality]))
            for modality in {each.modality for each in media}
        }
        return [next(rows[each.modality]) for each in media]


def _pad(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
