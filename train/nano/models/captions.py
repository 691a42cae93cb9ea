"""The captions of the world's pictures, sounds and clips as token ids, and the tokenizers that make them.

Every word of the world is one token, so that a text encoder can tell words apart at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import product

import torch
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from nextgpt.train.nano.world.clips import Clip, ClipWorld
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.sampling import IGNORED
from nextgpt.train.nano.world.sounds import SoundWorld

CONTEXT = 16  # tokens of a caption, with its start, its end and padding
OTHER_WORDING = 0.15  # of the captions name the thing by a synonym
START, END = "<|startoftext|>", "<|endoftext|>"
UNKNOWN = "something unknown"


# -- tokenizers -------------------------------------------------------------------------------------------------


def train_clip_tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    """CLIP's byte-pair encoding, learned until each word is whole; the end token has the highest id.

    Whole words have the same ids every time; which pieces are learned on the way to them is a matter of chance.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    pattern = re.compile(r"[^\W\d]+|\d|[^\w\s]+")  # as CLIP splits: letters, single digits, the rest
    words = sorted({word for text in texts for word in pattern.findall(text.lower())})
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, min_frequency=0, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    learned = tokenizer.get_vocab()
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    whole = {f"{word}</w>" for word in words}
    tokens += sorted(set(learned) - set(tokens), key=lambda token: (token not in whole, token))
    vocab = {token: number for number, token in enumerate([*tokens, START, END])}
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


# -- captions as token ids --------------------------------------------------------------------------------------


class CaptionTable:
    """Captions in all their wordings, as token ids.

    Args:
        tokenizer: with the length of a caption as its `model_max_length`.
        texts: of each caption its wordings.
        learned: the numbers of the captions that may be learned from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]], learned: Sequence[int]):
        self.tokenizer, self.padding = tokenizer, tokenizer.pad_token_id
        most = max(map(len, texts))
        filled = [(list(wordings) * most)[:most] for wordings in texts]
        options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "return_tensors": "pt"}
        ids = tokenizer([*(text for wordings in filled for text in wordings), ""], **options).input_ids
        if ids.shape[1] != tokenizer.model_max_length:
            raise ValueError(
                f"A caption has {ids.shape[1]} tokens, expected at most {tokenizer.model_max_length}: shorten its name."
            )
        self.ids, self.empty = ids[:-1].view(len(texts), most, -1), ids[-1]
        self.counts = torch.tensor([len(wordings) for wordings in texts])
        self.learned = torch.tensor(learned)

    def to(self, device: torch.device) -> CaptionTable:
        """Moves it."""
        self.ids, self.empty, self.counts = (tensor.to(device) for tensor in (self.ids, self.empty, self.counts))
        return self

    def __call__(self, numbers: Tensor, varied: bool = False) -> Tensor:
        """Numbers of captions `[N]` → token ids `[N, L]`; `varied` says some names by a synonym."""
        wordings = choose_wordings(self.counts[numbers]) if varied else torch.zeros_like(numbers)
        return self.ids[numbers, wordings]


def choose_wordings(counts: Tensor) -> Tensor:
    """For things with so many wordings each `[N]`, which one to use: mostly the first, else any."""
    chance = torch.rand(2, len(counts), device=counts.device)
    return ((chance[0] < OTHER_WORDING) * chance[1] * counts).long()


def _names(entries: Iterable[dict]) -> list[list[str]]:
    """Of each thing its name and its synonyms."""
    return [[entry["name"], *entry["synonyms"]] for entry in entries]


def picture_captions(
    world: World, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[CaptionTable, dict[str, Tensor]]:
    """The captions of all pictures, by `picture_numbers`, and what each says: part → its values' numbers `[captions]`.

    Args:
        tokenizer: that of a text encoder; by default a new one.
    """
    names = _names(world.concepts)
    sizes = list(world.sizes)
    every = list(product(range(len(names)), world.styles, world.backgrounds, sizes))
    texts = [[world.caption_of(name, *look) for name in names[concept]] for concept, *look in every]
    words = [word for wordings in texts for word in wordings]
    values = torch.cartesian_prod(*(torch.arange(count) for count in _picture_counts(world)))
    learned = picture_numbers(world, world.combinations("train")).tolist()
    parts = dict(zip(("concept", "style", "background", "size"), values.T, strict=True))
    return CaptionTable(tokenizer or train_clip_tokenizer([*words, UNKNOWN]), texts, learned), parts


def unknown_caption(captions: CaptionTable) -> Tensor:
    """Token ids `[L]` that stand for a picture from outside the world."""
    options = {"padding": "max_length", "max_length": captions.ids.shape[-1], "return_tensors": "pt"}
    return captions.tokenizer([UNKNOWN], **options).input_ids[0].to(captions.ids.device)


def _picture_counts(world: World) -> tuple[int, int, int, int]:
    return len(world.names), len(world.styles), len(world.backgrounds), len(world.sizes)


def picture_numbers(world: World, rows: Tensor) -> Tensor:
    """Pictures as indices `[N, 4]` → the numbers of their captions `[N]`."""
    numbers = torch.zeros_like(rows[:, 0])
    for column, count in zip(rows.T, _picture_counts(world), strict=True):
        numbers = numbers * count + column
    return numbers


def sound_captions(
    world: SoundWorld, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[CaptionTable, dict[str, Tensor]]:
    """The captions of all sounds and phrases, as `SoundWorld.captioned` has them, and what each says."""
    names = {sound["name"]: [sound["name"], *sound["synonyms"]] for sound in world.sounds}
    texts = [[sound._replace(name=name).caption for name in names[sound.name]] for sound in world.captioned]
    values = world.numbers(world.captioned, IGNORED)
    phrases = range(len(world.combinations), len(world.captioned))
    tokenizer = tokenizer or train_clip_tokenizer([word for wordings in texts for word in wordings])
    parts = dict(zip(("instrument", "register", "figure"), values.T, strict=True))
    return CaptionTable(tokenizer, texts, [*world.rows("train").tolist(), *phrases]), parts


def clip_captions(world: World, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[CaptionTable, dict[str, Tensor]]:
    """The captions of all clips, by `clip_numbers`, and what each says."""
    clips = ClipWorld(world)
    names = [names for names in _names(world.concepts) if names[0] in clips.names]
    texts = [[Clip(name, motion).caption for name in some] for some in names for motion in clips.motions]
    values = torch.cartesian_prod(torch.arange(len(names)), torch.arange(len(clips.motions)))
    learned = clip_numbers(clips, clips.rows("train")).tolist()
    tokenizer = tokenizer or train_clip_tokenizer([word for wordings in texts for word in wordings])
    return CaptionTable(tokenizer, texts, learned), dict(zip(("concept", "motion"), values.T, strict=True))


def clip_numbers(world: ClipWorld, rows: Tensor) -> Tensor:
    """Clips as indices `[N, 2]`, the concept among all concepts → the numbers of their captions `[N]`."""
    filmed = [world.world.names.index(name) for name in world.world.names if name in world.names]
    place = torch.full((len(world.world.names),), -1, device=rows.device)
    place[torch.tensor(filmed, device=rows.device)] = torch.arange(len(filmed), device=rows.device)
    return place[rows[:, 0]] * len(world.motions) + rows[:, 1]
