"""The captions of the world's pictures and clips as token ids, and the tokenizer that makes them. Knows no pixel.

Every word of the world is one token, so that a text encoder can tell words apart at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from nextgpt.train.nano.world.clips import Clip, ClipWorld
from nextgpt.train.nano.world.pictures import World

CONTEXT = 16  # tokens of a caption, with its start, its end and padding
OTHER_WORDING = 0.15  # of the captions name the thing by a synonym
START, END = "<|startoftext|>", "<|endoftext|>"
UNKNOWN = "something unknown"


def train_tokenizer(world: World, more: Sequence[str] = ()) -> CLIPTokenizer:
    """CLIP's byte-pair encoding, learned until each word of the world is whole; the end token has the highest id.

    Args:
        more: other texts whose words it shall know.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    names = [name for concept in world.concepts for name in (concept["name"], *concept["synonyms"])]
    texts = [*names, *world.styles, *world.backgrounds, *world.sizes, UNKNOWN, "a, style, background", *more]
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
    tokens += sorted(set(learned) - set(tokens), key=learned.__getitem__)
    vocab = {token: number for number, token in enumerate([*tokens, START, END])}
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids `[N, 16]`, padded."""
    return tokenizer(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids


def choose_wordings(counts: Tensor) -> Tensor:
    """For things with so many wordings each `[N]`, which one to use: mostly the first, else any."""
    chance = torch.rand(2, len(counts), device=counts.device)
    return ((chance[0] < OTHER_WORDING) * chance[1] * counts).long()


class Captions:
    """The captions of all pictures, ready on the device.

    Args:
        world: gives names, synonyms and the canonical caption.
        tokenizer: from `train_tokenizer`.
    """

    def __init__(self, world: World, tokenizer: CLIPTokenizer, device: torch.device):
        wordings = [[concept["name"], *concept["synonyms"]] for concept in world.concepts]
        most = max(map(len, wordings))
        texts = [
            world.caption_of((some * most)[wording], style, background, size)
            for some in wordings
            for wording in range(most)
            for style in world.styles
            for background in world.backgrounds
            for size in world.sizes
        ]
        ids = token_ids(tokenizer, texts)
        if ids.shape[1] != CONTEXT:
            raise ValueError(f"A caption has {ids.shape[1]} tokens, expected at most {CONTEXT}: shorten its name.")
        shape = (len(wordings), most, len(world.styles), len(world.backgrounds), len(world.sizes), CONTEXT)
        self.ids = ids.view(shape).to(device)
        self.counts = torch.tensor([len(some) for some in wordings], device=device)
        self.empty = token_ids(tokenizer, [""])[0].to(device)
        self.unknown = token_ids(tokenizer, [UNKNOWN])[0].to(device)

    def __call__(self, rows: Tensor, varied: bool = False) -> Tensor:
        """Pictures as indices `[N, 4]` → token ids `[N, 16]`; `varied` says some names by a synonym."""
        concept, style, background, size = rows.unbind(1)
        wording = choose_wordings(self.counts[concept]) if varied else torch.zeros_like(concept)
        return self.ids[concept, wording, style, background, size]


class ClipCaptions:
    """The captions of all clips as token ids.

    Args:
        world: gives things and motions.
        tokenizer: must know the motions' words.
    """

    def __init__(self, world: ClipWorld, tokenizer: CLIPTokenizer, device: torch.device):
        wordings = [[concept["name"], *concept["synonyms"]] for concept in world.world.concepts]
        most = max(map(len, wordings))
        texts = [
            Clip((some * most)[wording], motion).caption
            for some in wordings
            for wording in range(most)
            for motion in world.motions
        ]
        ids = token_ids(tokenizer, texts)
        self.ids = ids.view(len(wordings), most, len(world.motions), -1).to(device)
        self.counts = torch.tensor([len(some) for some in wordings], device=device)
        self.empty = token_ids(tokenizer, [""])[0].to(device)

    def __call__(self, rows: Tensor, varied: bool = False) -> Tensor:
        """Clips as indices `[N, 2]` → token ids `[N, 16]`; `varied` says some names by a synonym."""
        concept, motion = rows.unbind(1)
        wording = choose_wordings(self.counts[concept]) if varied else torch.zeros_like(concept)
        return self.ids[concept, wording, motion]
