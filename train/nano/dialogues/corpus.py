"""Conversations in words as tokens: the tokenizer, and batches of conversations ready on the device.

A medium that the user shows is its caption, spelled out or as one *soft* position that holds the sum of its words. A medium
that the assistant makes is spelled out in half of the conversations; in the others it is a run of as many positions
as it will have signal tokens: a token for its kind, which the model has to predict, then masks, which it is given.
Each position of a run has to hold words of the caption (`run_targets`). So the later stages can begin the row of `[IMG0]`
as that of `<picture>`, and those of `[IMG1]` … as those of `<mask1>` ….
"""

import json
import random
import re
from collections.abc import Iterable, Iterator
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
from nextgpt.train.nano.dialogues.composer import OUTSIDE_CAPTION, SYSTEM_PROMPT
from nextgpt.train.nano.world.clips import MOTIONS
from nextgpt.train.nano.world.things import PICTURE_VALUES, SOUND_VALUES, WORDS

# GPT-2's splitting into words with single digits, save that the world's "3d" is a word.
SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?3[dD]\b| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
KINDS = {modality: f"<{word}>" for modality, word in WORDS.items()}
RUN_LENGTHS = {"image": 4, "audio": 8, "video": 24}  # as many positions as signal tokens
MASKS = tuple(f"<mask{place}>" for place in range(1, max(RUN_LENGTHS.values())))
# Whose words the positions of a run hold, one after the other; a position holds two words, see `run_targets`.
RUN_PARTS = {
    "image": {"concept": 4, "style": 2, "background": 1, "size": 1},
    "audio": {"instrument": 8, "register": 4, "figure": 4},
    "video": {"concept": 24, "motion": 24},
}
READINGS = 2  # words that one position of a run holds
IN_WORDS = "Write media as words."  # at the end of the system prompt of conversations whose media are spelled out
SPELLED_SHARE, SOFT_SHARE, SYSTEM_SHARE = 0.35, 0.6, 0.25
USER_SHARE, USER_WEIGHT = 0.3, 0.15  # of the conversations learn the user's words too, so much; the assistant's count 1
BAG = 16  # words' tokens that one soft position can hold
SHOWN = re.compile(rf"\((?P<word>{'|'.join(WORDS.values())}): (?P<caption>[^)]*)\)")  # a medium, spelled out


def _choice(values: Iterable[str]) -> str:
    return "|".join(map(re.escape, values))


_CAPTIONS = {
    "image": rf"(?:(?P<size>{_choice(PICTURE_VALUES['size'])}) )?(?P<concept>[^,]+?)"
    rf"(?:, (?P<style>{_choice(PICTURE_VALUES['style'])}) style)?"
    rf"(?:, (?P<background>{_choice(PICTURE_VALUES['background'])}) background)?",
    "audio": rf"(?:(?P<register>{_choice(SOUND_VALUES['register'])}) )?(?P<instrument>[^,]+?)"
    rf"(?:, (?P<figure>{_choice(SOUND_VALUES['figure'])}))?",
    "video": rf"(?P<concept>[^,]+?)(?:, (?P<motion>{_choice(MOTIONS)}))?",
}


def caption_parts(modality: str, caption: str) -> dict[str, str]:
    """What a caption tells, in the order of `RUN_PARTS`: "a small cat, flat style, red background" → concept: cat, …"""
    match = re.fullmatch(_CAPTIONS[modality], _bare(caption))
    told = match.groupdict() if match else {}
    return {part: told[part] for part in RUN_PARTS[modality] if told.get(part)}


def spelled(modality: str, caption: str) -> str:
    """A medium in words: "(picture: small cat, flat style, red background)"."""
    return f"({WORDS[modality]}: {_bare(caption)})"


def _bare(caption: str) -> str:
    return re.sub(r"^(?:the sound of )?(?:(?:an?|the) )?", "", caption)


# -- tokenizer --------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocab_size: int = 6144) -> PreTrainedTokenizerFast:
    """Byte-level BPE (nothing is ever unknown) with Llama's special tokens, those of the runs and Vicuna's chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>", *KINDS.values(), *MASKS],
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


def tokenizer_texts(file: Path, names: Iterable[str], limit: int) -> Iterator[str]:
    """What the tokenizer learns from: conversations, a tenth of them in capitals too, and each name as whole tokens."""
    yield from (f"{SYSTEM_PROMPT} {IN_WORDS} USER: x ASSISTANT: y",) * 1_000
    for name in names:
        yield from (f" {name}",) * 50
        yield from (f" {name.upper()}",) * 12
        yield from (name.capitalize(), f" {name.capitalize()}") * 8
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, limit)):
            for message in read_messages(line):
                text = " ".join(part["text"] for part in message["content"] if part["type"] == "text")
                yield text
                if number % 10 == 0:
                    yield text.upper()


# -- conversations as tokens ------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One conversation. All but `bags` are as long as the conversation; `bags` holds one list per soft position."""

    tokens: list[int]
    weights: list[float]  # of the loss on each token
    soft: list[int]  # the bag of a soft position, -1 elsewhere
    targets: list[tuple[int, ...]]  # the words that a position of a run must hold, -1 elsewhere
    bags: list[list[int]]


Content = str | list[dict]
NO_TARGETS = (-1,) * READINGS


class Encoder:
    """Turns a conversation into tokens, as the chat template lays it out."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.masks = tokenizer.convert_tokens_to_ids(list(MASKS))
        self.kinds = {modality: tokenizer.convert_tokens_to_ids(token) for modality, token in KINDS.items()}
        self.has_runs = KINDS["image"] in tokenizer.get_vocab()  # the first nano model's tokenizer has none

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer._tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def __call__(
        self,
        messages: list[dict] | list[tuple[str, str]],
        soft_media: bool,
        rng: random.Random,
        in_words: bool | None = None,
        system_share: float = 1.0,
        user_weight: float = USER_WEIGHT,
    ) -> Example:
        """A conversation; when its last message is the user's, the prompt for the assistant's answer.

        Args:
            messages: in chat format, media with their captions; or pairs of a role and a text.
            soft_media: whether what the user shows is one position each, not its words.
            in_words: whether the assistant's media are spelled out; None: so, and nobody tells the model to.
            system_share: how often there is a system prompt where it says nothing of its own.
        """
        messages = [m if isinstance(m, dict) else {"role": m[0], "content": m[1]} for m in messages]
        example = Example([], [], [], [], [])
        system = SYSTEM_PROMPT if rng.random() < system_share else ""
        if messages[0]["role"] == "system":
            system, messages = _text_of(messages[0]["content"]), messages[1:]
        if in_words:
            system = f"{system} {IN_WORDS}".strip()
        self._add(example, [self.tokenizer.bos_token_id, *self._ids(system)], 0.0)
        for index, message in enumerate(messages):
            parts = message["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            if message["role"] == "assistant":
                self._add_assistant(example, parts, in_words is not False)
            else:
                self._add_user(example, parts, "USER: " if index else " USER: ", soft_media, rng, user_weight)
        return example

    def _add_assistant(self, example: Example, parts: list[dict], in_words: bool) -> None:
        text = " "
        for part in parts:
            if part["type"] == "text":
                text += part["text"]
            elif in_words:
                text += f" {spelled(part['type'], part['caption'])}"
            else:
                self._add(example, self._ids(text.rstrip() if text == " " else text), 1.0)
                text = ""
                self._add_run(example, part["type"], part["caption"], is_open="open" in part)
        self._add(example, [*self._ids(text), self.tokenizer.eos_token_id], 1.0)

    def _add_run(self, example: Example, modality: str, caption: str, is_open: bool) -> None:
        targets = self.run_targets(modality, caption, is_open)
        self._add(example, [self.kinds[modality]], 1.0, targets=targets[:1])
        self._add(example, self.masks[: len(targets) - 1], 0.0, targets=targets[1:])

    def run_targets(self, modality: str, caption: str, is_open: bool = False) -> list[tuple[int, ...]]:
        """For each position of a run the words that it must hold: first those of the concept, spread over its share.

        A caption has at most two words a position; a part that it does not tell (an effect's register) is `<pad>`.

        Args:
            is_open: what the caption does not tell may be anything: -1.
        """
        untold = -1 if is_open else self.tokenizer.pad_token_id
        told, words = caption_parts(modality, caption), []
        for part, places in RUN_PARTS[modality].items():
            ids = self._ids(f" {told[part]}") if part in told else [untold]
            words += [ids[place * len(ids) // places] for place in range(places)]
        return [tuple(words[at : at + READINGS]) for at in range(0, len(words), READINGS)]

    def _add_user(
        self, example: Example, parts: list[dict], start: str, soft_media: bool, rng: random.Random, weight: float
    ) -> None:
        # How words and media are joined depends on who calls later; the model sees all ways.
        space = rng.choice((" ", " ", "", "\n")) if soft_media else " "
        text = start
        for number, part in enumerate(parts):
            text += space if number else ""
            if part["type"] == "text":
                text += part["text"]
            elif soft_media:
                self._add(example, self._ids(text), weight)
                text = ""
                self._add(example, [self.tokenizer.pad_token_id], 0.0, bag=self.bag(part["type"], part["caption"], rng))
            else:
                text += spelled(part["type"], part["caption"])
        self._add(example, self._ids(f"{text} ASSISTANT:"), weight)

    def _add(
        self,
        example: Example,
        ids: list[int],
        weight: float,
        bag: list[int] | None = None,
        targets: list[tuple[int, ...]] | None = None,
    ) -> None:
        example.tokens.extend(ids)
        example.weights.extend([weight] * len(ids))
        example.soft.extend([-1 if bag is None else len(example.bags)] * len(ids))
        example.targets.extend(targets or [NO_TARGETS] * len(ids))
        if bag is not None:
            example.bags.append(bag)

    def bag(self, modality: str, caption: str, rng: random.Random) -> list[int]:
        """The tokens of the words that matter; of a medium from outside the world in half of the cases none."""
        if caption == OUTSIDE_CAPTION:
            return self._ids(f" {caption}") if rng.random() < 0.5 else []
        return self._ids(f" {' '.join(caption_parts(modality, caption).values())}")[:BAG]


def _text_of(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def read_messages(line: str) -> list[dict]:
    """The messages of one JSON line."""
    return json.loads(line)["messages"]


def _has_open(messages: list[dict]) -> bool:
    """Whether something is made that its caption does not tell all of, which cannot be spelled out."""
    return any("open" in part for message in messages for part in message["content"])


class Corpus(NamedTuple):
    """All conversations, one behind the other, ready on the device."""

    tokens: Tensor  # int16 [total]
    weights: Tensor  # float16 [total]
    soft: Tensor  # int32 [total]: row of ``bags`` or -1
    targets: Tensor  # int16 [total, READINGS], -1 outside runs
    bags: Tensor  # int16 [soft positions, BAG], -1 where unused
    starts: Tensor  # int64 [conversations]
    lengths: Tensor  # int64 [conversations]

    def to(self, device: torch.device) -> "Corpus":
        return Corpus(*(tensor.to(device) for tensor in self))

    def batch(self, rows: Tensor) -> "Batch":
        """Conversations padded on the right (weight 0, so nothing looks there)."""
        length = int(self.lengths[rows].max())
        offsets = torch.arange(length, device=rows.device)
        inside = offsets < self.lengths[rows, None]
        index = (self.starts[rows, None] + offsets).clamp(max=len(self.tokens) - 1)
        soft = self.soft[index].long().masked_fill(~inside, -1)
        targets = self.targets[index].long().masked_fill(~inside[..., None], -1)
        return Batch(self.tokens[index].long(), self.weights[index].float() * inside, soft, targets)


class Batch(NamedTuple):
    """Tokens, weights and bag rows [batch, longest], targets [batch, longest, READINGS]."""

    tokens: Tensor
    weights: Tensor
    soft: Tensor
    targets: Tensor


def encode_lines(folder: Path, lines: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    """Tokenizes conversations into flat arrays (the fields of Corpus, without starts)."""
    encoder, rng = Encoder(AutoTokenizer.from_pretrained(folder)), random.Random(f"{seed}/{lines[0]}")
    examples = [
        encoder(
            messages,
            soft_media=rng.random() < SOFT_SHARE,
            rng=rng,
            in_words=rng.random() < SPELLED_SHARE and not _has_open(messages),
            system_share=SYSTEM_SHARE,
            user_weight=USER_WEIGHT / USER_SHARE if rng.random() < USER_SHARE else 0.0,
        )
        for messages in map(read_messages, lines)
    ]
    bags = [bag + [-1] * (BAG - len(bag)) for example in examples for bag in example.bags]
    soft, count = [], 0
    for example in examples:
        soft.extend(row + count if row >= 0 else -1 for row in example.soft)
        count += len(example.bags)
    return {
        "tokens": np.array([t for e in examples for t in e.tokens], dtype=np.int16),
        "weights": np.array([w for e in examples for w in e.weights], dtype=np.float16),
        "soft": np.array(soft, dtype=np.int32),
        "targets": np.array([t for e in examples for t in e.targets], dtype=np.int16),
        "bags": np.array(bags, dtype=np.int16).reshape(-1, BAG),
        "lengths": np.array([len(e.tokens) for e in examples], dtype=np.int64),
    }


def encode_corpus(folder: Path, file: Path, limit: int | None = None, workers: int = 1, seed: int = 0) -> Corpus:
    """Tokenizes a file of conversations with the tokenizer of ``folder``."""
    with file.open(encoding="utf-8") as lines:
        wanted = islice(lines, limit)
        pieces = list(iter(lambda: list(islice(wanted, 4_000)), []))
    encode = partial(encode_lines, folder, seed=seed)
    if len(pieces) == 1:  # sooner done than another process has started
        chunks = [encode(pieces[0])]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            chunks = list(pool.map(encode, pieces))
    bags = 0
    for chunk in chunks:
        chunk["soft"][chunk["soft"] >= 0] += bags
        bags += len(chunk["bags"])
    fields = {name: torch.from_numpy(np.concatenate([chunk[name] for chunk in chunks])) for name in chunks[0]}
    return Corpus(starts=fields["lengths"].cumsum(0) - fields["lengths"], **fields)
