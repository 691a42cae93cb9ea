"""Conversations in words as tokens: the tokenizer, and batches of conversations ready on the device."""

import json
import random
import re
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nextgpt.processing_nextgpt import VICUNA_CHAT_TEMPLATE
from nextgpt.train.nano.world.things import SHOWN

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# GPT-2's splitting into words with single digits, save that the world's "3d" is a word.
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?3[dD]\b| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SOFT_SHARE = 0.4
USER_WEIGHT = 0.15  # of the loss on the user's words; the assistant's count 1, the system prompt's 0
BAG = 16  # words' tokens that one soft position can hold


# -- tokenizer --------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Byte-level BPE (nothing is ever unknown) with Llama's special tokens and Vicuna's chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        chat_template=VICUNA_CHAT_TEMPLATE,
    )


# -- conversations as tokens ------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One conversation. All three lists are as long as the conversation; ``bags`` holds one list per soft position."""

    tokens: list[int]
    weights: list[float]
    soft: list[int]  # the bag of a soft position, -1 elsewhere
    bags: list[list[int]]


class Encoder:
    """Turns a conversation in words (role and text pairs) into tokens, as the chat template lays it out."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.system = self._ids(SYSTEM_PROMPT)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer._tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def __call__(self, messages: list[tuple[str, str]], soft_media: bool, rng: random.Random) -> Example:
        """A conversation; when its last message is the user's, the prompt for the assistant's answer."""
        example = Example([], [], [], [])
        self._add(example, [self.tokenizer.bos_token_id, *self.system], 0.0)
        for index, (role, text) in enumerate(messages):
            if role == "assistant":
                self._add(example, [*self._ids(f" {text}"), self.tokenizer.eos_token_id], 1.0)
            else:
                self._add_user(example, text, "USER: " if index else " USER: ", soft_media, rng)
        return example

    def _add_user(self, example: Example, text: str, start: str, soft_media: bool, rng: random.Random) -> None:
        match = SHOWN.search(text) if soft_media else None
        if match is None:
            self._add(example, self._ids(f"{start}{text} ASSISTANT:"), USER_WEIGHT)
            return
        # How the words and the medium are joined depends on who calls later; the model sees all ways.
        before, after = text[: match.start()], text[match.end() :]
        space = rng.choice(("", " ", "\n"))
        before = f"{before}{space}" if before else ""
        self._add(example, self._ids(f"{start}{before}"), USER_WEIGHT)
        self._add(example, [self.tokenizer.pad_token_id], 0.0, bag=self.bag(match[1]))
        self._add(example, self._ids(f"{space if after else ''}{after} ASSISTANT:"), USER_WEIGHT)

    def _add(self, example: Example, ids: list[int], weight: float, bag: list[int] | None = None) -> None:
        example.tokens.extend(ids)
        example.weights.extend([weight] * len(ids))
        example.soft.extend([-1 if bag is None else len(example.bags)] * len(ids))
        if bag is not None:
            example.bags.append(bag)

    def bag(self, caption: str) -> list[int]:
        """The tokens of the words that matter: "a small cat, flat style, red background" → small cat flat red."""
        words = re.sub(r"^the sound of ", "", caption)
        words = re.sub(r"^(a|an|the) |,| style| background", "", words)
        return self._ids(f" {words}")[:BAG]


def read_messages(line: str) -> list[tuple[str, str]]:
    """One JSON line in words only → (role, text) pairs."""
    return [(m["role"], "".join(part["text"] for part in m["content"])) for m in json.loads(line)["messages"]]


class Corpus(NamedTuple):
    """All conversations, one behind the other, ready on the device."""

    tokens: Tensor  # int16 [total]
    weights: Tensor  # float16 [total]
    soft: Tensor  # int32 [total]: row of ``bags`` or -1
    bags: Tensor  # int16 [soft positions, BAG], -1 where unused
    starts: Tensor  # int64 [conversations]
    lengths: Tensor  # int64 [conversations]

    def to(self, device: torch.device) -> "Corpus":
        return Corpus(*(tensor.to(device) for tensor in self))

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, weights and bag rows [batch, longest], padded on the right (weight 0, so nothing looks there)."""
        length = int(self.lengths[rows].max())
        offsets = torch.arange(length, device=rows.device)
        inside = offsets < self.lengths[rows, None]
        index = (self.starts[rows, None] + offsets).clamp(max=len(self.tokens) - 1)
        soft = self.soft[index].long().masked_fill(~inside, -1)
        return self.tokens[index].long(), self.weights[index].float() * inside, soft


def encode_lines(folder: Path, lines: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    """Tokenizes conversations into flat arrays (the fields of Corpus, without starts)."""
    encoder, rng = Encoder(AutoTokenizer.from_pretrained(folder)), random.Random(f"{seed}/{lines[0]}")
    examples = [encoder(read_messages(line), rng.random() < SOFT_SHARE, rng) for line in lines]
    bags = [bag + [-1] * (BAG - len(bag)) for example in examples for bag in example.bags]
    soft, count = [], 0
    for example in examples:
        soft.extend(row + count if row >= 0 else -1 for row in example.soft)
        count += len(example.bags)
    return {
        "tokens": np.array([t for e in examples for t in e.tokens], dtype=np.int16),
        "weights": np.array([w for e in examples for w in e.weights], dtype=np.float16),
        "soft": np.array(soft, dtype=np.int32),
        "bags": np.array(bags, dtype=np.int16).reshape(-1, BAG),
        "lengths": np.array([len(e.tokens) for e in examples], dtype=np.int64),
    }


def encode_corpus(folder: Path, file: Path, limit: int | None = None, workers: int = 1, seed: int = 0) -> Corpus:
    """Tokenizes a file of conversations with the tokenizer of ``folder``."""
    chunks: list[dict[str, np.ndarray]] = []
    bags = 0
    with file.open(encoding="utf-8") as lines, ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        wanted = islice(lines, limit)
        pieces = iter(lambda: list(islice(wanted, 4_000)), [])
        for chunk in pool.map(partial(encode_lines, folder, seed=seed), pieces):
            chunk["soft"][chunk["soft"] >= 0] += bags
            bags += len(chunk["bags"])
            chunks.append(chunk)
    fields = {name: torch.from_numpy(np.concatenate([chunk[name] for chunk in chunks])) for name in chunks[0]}
    return Corpus(starts=fields["lengths"].cumsum(0) - fields["lengths"], **fields)
