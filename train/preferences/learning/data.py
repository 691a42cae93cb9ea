"""From files of preference pairs to batches: each pair is two conversations, of which only the last answer counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from nextgpt.errors import UserInputError
from nextgpt.signals import SignalVocabulary
from nextgpt.train.data.dataset import (
    ChatCollator,
    ChatDataset,
    OutputMedia,
    Reader,
    TrainingFeatures,
    input_media,
    media_parts,
)
from nextgpt.train.data.lines import Line
from nextgpt.train.data.sampler import BLANK
from nextgpt.train.data.store import Example
from nextgpt.train.preferences.collect.answers import SampledAnswers
from nextgpt.train.preferences.learning.policy import chosen_tokens, run_starts
from nextgpt.train.preferences.pairs import KINDS, SIDES, PreferencePair, read_kinds, template_variables


class KindsReader(Reader):
    """Tells the model, as the pipeline does, where answers could not hold every kind (`output_modalities` of a line)."""

    def template_variables(self, line: Line) -> dict[str, str] | None:
        return template_variables(read_kinds(line.record()), self.processor.vocabulary)


@dataclass
class AnswerReader(KindsReader):
    """Learns the tokens of the last answer that the model chose itself, and its media, as far as there are files."""

    def _read(self, line: Line) -> Example:
        """Without the end of an answer that was cut off: the model did not choose it."""
        example = super()._read(line)
        if line.record()["finished"]:
            return example
        chosen = example.loss_mask.copy()
        chosen[np.flatnonzero(chosen)[-1:]] = False
        return example._replace(loss_mask=chosen)

    def learned(self, ids: np.ndarray, spoken: np.ndarray) -> np.ndarray:
        return chosen_tokens(ids, spoken, self.processor.vocabulary)

    def outputs(self, messages: list[dict]) -> list[OutputMedia]:
        made = media_parts(messages[-1:], "assistant")
        return [OutputMedia(part["type"], part.get("caption"), part.get("path") and Path(part["path"])) for part in made]


class PairConversations(ChatDataset):
    """The conversations of pairs: of each first the chosen one, then the rejected one."""

    kind = ("pairs", KINDS)

    def __init__(
        self, pairs: list[PreferencePair], files: list[str], reader: AnswerReader, folder: str | Path, workers: int = 0
    ):
        self._pairs = pairs
        super().__init__(files, reader, folder=folder, workers=workers)

    def lines(self, files: list[str | Path]) -> tuple[Iterable[Line], int]:
        sources = {str(Path(file)): number for number, file in enumerate(files)}
        lines = []
        for pair in self._pairs:
            source = sources[pair.where.rpartition(":")[0]]
            for side in SIDES:
                answer = dict(getattr(pair, side)[0])
                record = {"finished": answer.pop("finished", True), "messages": [*pair.prompt, answer]}
                record[KINDS] = pair.output_modalities
                lines.append(Line(source, f"{pair.where} ({side})", "", json.dumps(record).encode()))
        return lines, len(lines)


class Pairs(Dataset):
    """The same, pair by pair: `chosen` and `rejected`, each as `ChatDataset` has it."""

    def __init__(self, conversations: ChatDataset):
        self.conversations = conversations

    def __len__(self) -> int:
        return len(self.conversations) // 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == BLANK:
            raise ValueError("pairs are learned from in one process, which needs no blanks")
        return {side: self.conversations[2 * index + number] for number, side in enumerate(SIDES)}

    @property
    def sources(self) -> np.ndarray:
        """The number of each pair's file: `[n]`."""
        return self.conversations.sources[::2]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair's longer side: `[n]`."""
        return self.conversations.lengths.reshape(-1, 2).max(1)


class PairCollator:
    """Pairs → one batch, as `ChatCollator` makes it: first the chosen conversations, then the rejected ones.

    Beside that there is `media`: modality → `latents` `[2, media, …]` of the media that stand against each other in a pair
    (the first of a kind against the first, and so on, where they differ), and `places` `[2, media, 2]`, row and column of
    each one's signal run.
    """

    def __init__(self, pad_token_id: int, features: TrainingFeatures, vocabulary: SignalVocabulary):
        self.collate = ChatCollator(pad_token_id, TrainingFeatures(inputs=features.inputs))
        self.latents, self.vocabulary = features.latents, vocabulary

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate([pair[side] for side in SIDES for pair in pairs])
        batch["ids"] = [pair["chosen"]["id"].rpartition(" ")[0] for pair in pairs]
        media = {modality: self._media(pairs, modality) for modality in self.latents}
        return batch | {"media": {modality: found for modality, found in media.items() if found}}

    def _media(self, pairs: list[dict[str, Any]], modality: str) -> dict[str, torch.Tensor]:
        places, latents = [], []
        for row, pair in enumerate(pairs):
            sides = [self._of(pair[side], modality, row + number * len(pairs)) for number, side in enumerate(SIDES)]
            for chosen, rejected in zip(*sides, strict=False):
                paths = [chosen[0], rejected[0]]
                if None in paths:
                    continue
                found = torch.stack(self.latents[modality].rows(paths))
                if not torch.equal(*found):
                    places.append([chosen[1], rejected[1]])
                    latents.append(found)
        if not places:
            return {}
        return {"places": torch.tensor(places).transpose(0, 1), "latents": torch.stack(latents, dim=1)}

    def _of(self, example: dict[str, Any], modality: str, row: int) -> list[tuple[Path | None, tuple[int, int]]]:
        """File and place of an answer's media of one kind."""
        files = [media.path for media in example["outputs"] if media.modality == modality]
        starts = run_starts(example["labels"], modality, self.vocabulary)
        return [(file, (row, start)) for file, start in zip(files, starts, strict=True)]


def check_something_differs(conversations: ChatDataset, *, media: bool) -> None:
    """Refuses a pair whose answers are the same to what is learned: equal words around media that do not count.

    Raises:
        UserInputError: names the pair.
    """
    for index in range(0, len(conversations), 2):
        chosen, rejected = (conversations[index + side] for side in (0, 1))
        if torch.equal(chosen["input_ids"], rejected["input_ids"]) and not (media and _differ(chosen, rejected)):
            where = chosen["id"].rpartition(" ")[0]
            learned = "their media have no files" if media else "denoising=false leaves their media out"
            raise UserInputError(f"{where}: the words of both answers are equal, and {learned}: leave the pair out")


def _differ(chosen: dict[str, Any], rejected: dict[str, Any]) -> bool:
    both = zip(chosen["outputs"], rejected["outputs"], strict=True)
    return any(one.path and other.path and one.path != other.path for one, other in both)


@dataclass
class PromptReader(KindsReader):
    """Reads what is to be answered; nothing of it is learned."""

    def _read(self, line: Line) -> Example:
        messages = line.messages()
        told = self.template_variables(line)
        encoded = self.processor(messages, template_kwargs=told, load_media=False, max_length=self.max_length)
        ids = encoded["input_ids"][0].numpy()
        inputs = [input_media(part) for part in media_parts(messages, "user")]
        record = {"id": line.where, "inputs": [(media.modality, str(media.path)) for media in inputs], "outputs": []}
        return Example(ids, np.zeros(len(ids), dtype=bool), record, line.source)


class Prompts(ChatDataset):
    """Prompts, each with the opening of its answer.

    Args:
        rows: the prompts of all files, in their order.
    """

    kind = ("prompts", KINDS)

    def __init__(
        self, rows: list[SampledAnswers], files: list[str], reader: PromptReader, folder: str | Path, workers: int = 0
    ):
        self.rows = rows
        super().__init__(files, reader, folder=folder, workers=workers)

    def lines(self, files: list[str | Path]) -> tuple[Iterable[Line], int]:
        sources = {str(Path(file)): number for number, file in enumerate(files)}
        lines = []
        for row in self.rows:
            record = {"messages": row.prompt, KINDS: row.output_modalities}
            lines.append(Line(sources[row.where.rpartition(":")[0]], row.where, "", json.dumps(record).encode()))
        return lines, len(lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As `ChatDataset` has it, and `index`."""
        return super().__getitem__(index) | {"index": index}
