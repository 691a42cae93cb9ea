"""From JSON-lines files of chat messages to batches of tensors. Reads no media: their frozen features come in ready.

One line is one conversation:

    {"messages": [
        {"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "…"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "…"}, {"type": "image", "caption": "…"}]}]}

Relative paths start from the file's folder. A media part of the assistant becomes its signal tokens; its `caption` is
what the frozen text encoder makes the training target of; its `path` is needed for the denoising loss only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.utils.logging import tqdm

from nextgpt.errors import UserInputError
from nextgpt.processing_nextgpt import IGNORED_LABEL, NextGPTProcessor
from nextgpt.signals import MODALITIES


class InputMedia(NamedTuple):
    """A piece of media that the model looks at."""

    modality: str
    path: Path


class OutputMedia(NamedTuple):
    """A piece of media that the model learns to make."""

    modality: str
    caption: str
    path: Path | None


@dataclass
class TrainingFeatures:
    """What the frozen parts say of a data set: each table maps an item to its tensor on the CPU.

    Args:
        inputs: media → embedding `[embed_dim]`.
        targets: output modality → caption → conditioning `[queries, width]`.
        latents: output modality → media file → latents, for the denoising loss.
    """

    inputs: dict[InputMedia, Tensor] = field(default_factory=dict)
    targets: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    latents: dict[str, dict[Path, Tensor]] = field(default_factory=dict)


def read_conversations(file: str | Path) -> Iterator[tuple[str, list[dict]]]:
    """Yields `(file:line, messages)` with media paths resolved.

    Raises:
        UserInputError: the file or a line is not what it should be; the message names both.
    """
    path = Path(file)
    if not path.is_file():
        raise UserInputError(f"{path}: no such file; `data` names JSON-lines files of chat messages")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(_decoded(lines, path), start=1):
            if line.strip():
                where = f"{path}:{number}"
                yield where, [_resolve(message, path.parent) for message in _messages(line, where)]


def _decoded(lines: Iterable[str], path: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise UserInputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from None


def _messages(line: str, where: str) -> list:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserInputError(f"{where}: not valid JSON ({error}); each line is one conversation") from None
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserInputError(f'{where}: expected {{"messages": [...]}}, found {line.strip()[:60]}')
    return messages


def _resolve(message: Any, folder: Path) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message  # text, or something that the processor will refuse
    parts = [
        part | {"path": str(folder / part["path"])} if isinstance(part, dict) and isinstance(part.get("path"), str) else part
        for part in content
    ]
    return message | {"content": parts}


class ChatDataset(Dataset):
    """Conversations, tokenized once and kept in memory; media by name only.

    Args:
        files: JSON-lines files.
        processor: tokenizes, and refuses malformed messages.
        max_length: longest conversation, in tokens.
        needs: `input` or `output`: refuse conversations without media on that side (they would teach nothing).
        needs_output_files: refuse media of the assistant without a `path`.
        workers: processes that share the tokenizing; 0: this one alone.

    Raises:
        UserInputError: names the file and the line.
    """

    def __init__(
        self,
        files: Iterable[str | Path],
        processor: NextGPTProcessor,
        *,
        max_length: int | None = None,
        needs: str | None = None,
        needs_output_files: bool = False,
        workers: int = 0,
    ):
        self.processor, self.max_length = processor, max_length
        self.needs, self.needs_output_files = needs, needs_output_files
        lines = [line for file in files for line in read_conversations(file)]
        if not lines:
            raise UserInputError(f"no conversations in {', '.join(map(str, files)) or 'an empty list of files'}")
        with _mapper(workers) as each:
            examples = tqdm(each(self._example, lines), desc="Tokenizing", total=len(lines), unit=" conversations")
            self.examples = [{name: _tensor(value) for name, value in example.items()} for example in examples]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids` and `labels` `[length]`, `inputs` and `outputs`: media in the order of their tokens."""
        return self.examples[index]

    @property
    def inputs(self) -> set[InputMedia]:
        """All media that the model looks at."""
        return {media for example in self.examples for media in example["inputs"]}

    @property
    def outputs(self) -> set[OutputMedia]:
        """All media that the model learns to make."""
        return {media for example in self.examples for media in example["outputs"]}

    def _example(self, line: tuple[str, list[dict]]) -> dict[str, Any]:
        where, messages = line
        try:
            encoded = self.processor(
                messages,
                add_generation_prompt=False,
                return_labels=True,
                load_media=False,
                max_length=self.max_length,
            )
            example = {name: encoded[name][0].numpy() for name in ("input_ids", "labels")}
            example["inputs"] = [_input_media(part) for part in _media_parts(messages, "user")]
            example["outputs"] = [_output_media(part) for part in _media_parts(messages, "assistant")]
            self._check(example)
        except UserInputError as error:
            raise UserInputError(f"{where}: {error}") from None
        return example

    def _check(self, example: dict[str, Any]) -> None:
        if (example["labels"] == IGNORED_LABEL).all():
            raise UserInputError("the assistant says nothing, so there is nothing to learn; add its answer")
        if self.needs and not example[f"{self.needs}s"]:
            speaker = {"input": "user", "output": "assistant"}[self.needs]
            raise UserInputError(f"no media from the {speaker}: this stage learns nothing from it; leave the line out")
        if self.needs_output_files:
            for media in example["outputs"]:
                if media.path is None or not media.path.is_file():
                    raise UserInputError(f"{media.modality} {media.caption!r} needs a file at `path` for denoising")


@contextmanager
def _mapper(workers: int) -> Iterator[Callable]:
    """`map`, or the same over processes. They are spawned, because an accelerator does not survive a fork."""
    if not workers:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=500)


def _tensor(value: Any) -> Any:
    """Arrays travel between processes at less cost than tensors, which take a file descriptor each."""
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _media_parts(messages: list[dict], role: str) -> list[dict]:
    return [
        part
        for message in messages
        if message["role"] == role and isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] in MODALITIES
    ]


def _input_media(part: dict) -> InputMedia:
    path = part.get("path")
    if not isinstance(path, str):
        raise UserInputError(f"the {part['type']} part has no path; training reads files")
    if not Path(path).is_file():
        raise UserInputError(f"{path}: no such file; paths start from the data file's folder")
    return InputMedia(part["type"], Path(path))


def _output_media(part: dict) -> OutputMedia:
    caption, path = part.get("caption"), part.get("path")
    if not isinstance(caption, str) or not caption.strip():
        raise UserInputError(f"the assistant's {part['type']} has no caption; say what it shows")
    return OutputMedia(part["type"], caption, Path(path) if path else None)


class ChatCollator:
    """Examples → one batch for [`NextGPTModel`], padded on the right, with the frozen features it needs."""

    def __init__(self, pad_token_id: int, features: TrainingFeatures):
        self.pad_token_id, self.features = pad_token_id, features

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Media features and targets come in the row-major order of their placeholders and signal runs."""
        features = self.features
        ids = [example["input_ids"] for example in examples]
        lengths = torch.tensor([len(row) for row in ids])
        batch = {
            "input_ids": _pad(ids, self.pad_token_id),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),  # [batch, length]
            "labels": _pad([example["labels"] for example in examples], IGNORED_LABEL),
        }
        inputs = [features.inputs[media] for example in examples for media in example["inputs"]]
        if inputs:
            batch["media_features"] = torch.stack(inputs)
        outputs = [media for example in examples for media in example["outputs"]]
        for name, tables in (("conditioning_targets", features.targets), ("media_latents", features.latents)):
            column = "caption" if name == "conditioning_targets" else "path"
            rows = {
                modality: [table[getattr(media, column)] for media in outputs if media.modality == modality]
                for modality, table in tables.items()
            }
            stacked = {modality: torch.stack(values) for modality, values in rows.items() if values}
            if stacked:
                batch[name] = stacked
        return batch


def _pad(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
