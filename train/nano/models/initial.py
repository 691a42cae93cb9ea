"""What the stages begin from, computed instead of learned: the input projection, and the signal tokens.

`python -m nextgpt.train.nano.models.initial --root runs/nano` needs the frozen parts, put together (`assemble frozen`).

The language model has learned to read one embedding in place of a medium, the sum of those of its caption's words, and to
make a medium by a mark of its kind and the masks behind it (see `language_model`). So the input projection begins as the
linear map that brings the encoder's embeddings nearest to such sums (ridge regression on all media of the training split),
and the signal tokens begin as the marks. Both know nothing that is held out.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders import Audio, Video
from nextgpt.encoders import Encoder as MediaEncoder
from nextgpt.encoders import preprocessor_for
from nextgpt.events import Media
from nextgpt.modeling_nextgpt import NextGPTForConditionalGeneration
from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.signals import SignalVocabulary
from nextgpt.train.nano.defaults import ROOT
from nextgpt.train.nano.dialogues.composer import load_composer, true_media
from nextgpt.train.nano.dialogues.corpus import KINDS, MASKS, Encoder
from nextgpt.train.nano.world.media_files import TrueMedia
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.things import Medium, modality_of

logger = logging.getLogger(__name__)

RIDGE = 1e-5  # for each medium; embeddings have length 1
BATCH = 32


def mark_rows(config: NextGPTConfig, tokenizer: PreTrainedTokenizerBase, table: Tensor) -> Tensor:
    """Of an embedding table `[tokens, hidden]` the rows of the marks, one for each signal token, `[signals, hidden]`."""
    runs = SignalVocabulary.create(config.signal_tokens, config.input_modalities, 0).runs
    marks = [mark for modality, run in runs.items() for mark in (KINDS[modality], *MASKS[: len(run) - 1])]
    return table[tokenizer.convert_tokens_to_ids(marks)]


def caption_sums(media: Iterable[Medium], tokenizer: PreTrainedTokenizerBase, table: Tensor) -> Tensor:
    """For each medium the sum of the embeddings of its caption's words, `[media, hidden]`."""
    encoder, rng = Encoder(tokenizer), random.Random(0)
    bags = [encoder.bag(modality_of(medium), medium.caption, rng) for medium in media]
    return torch.stack([table[torch.tensor(bag)].sum(0) for bag in bags])


@torch.no_grad()
def embed_media(network: MediaEncoder, modality: str, media: Iterable[Media]) -> Tensor:
    """The encoder's embeddings of media of one kind, `[media, embed_dim]`."""
    preprocess = getattr(preprocessor_for(network.config), modality)
    left, found = iter(media), []
    while values := [preprocess(*_arguments(medium)) for medium in islice(left, BATCH)]:
        found.append(network.encode(modality, torch.stack(values)))
    return torch.cat(found).float()


def _arguments(medium: Media) -> tuple:
    """What the preprocessing takes of a medium."""
    match medium:
        case Audio(array, sampling_rate):
            return array, sampling_rate
        case Video(frames, fps):
            return frames, fps
    return (medium,)


def ridge_regression(inputs: Tensor, targets: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """The linear map from `[N, in]` to `[N, out]` with the least squared error.

    Args:
        ridge: what the squares of the weights cost, for each of the N.

    Returns:
        Weight `[out, in]` and bias `[out]`, which costs nothing.
    """
    inputs, targets = inputs.double(), targets.double()
    means = inputs.mean(0), targets.mean(0)
    centred = inputs - means[0]
    costs = ridge * len(inputs) * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    weight = torch.linalg.solve(centred.T @ centred + costs, centred.T @ (targets - means[1])).T
    return weight.float(), (means[1] - weight @ means[0]).float()


@torch.no_grad()
def begin(config: NextGPTConfig, world: Path) -> NextGPTForConditionalGeneration:
    """The model before its first stage."""
    torch.manual_seed(0)
    model = NextGPTForConditionalGeneration.from_parts(config)
    tokenizer = AutoTokenizer.from_pretrained(config.part("language_model").local_path(config.base_folder))
    table = model.get_input_embeddings().weight.float()
    for rows in (model.signal_rows.input, model.signal_rows.output):
        rows.copy_(mark_rows(config, tokenizer, table))
    setting, true = load_composer(world, "train").setting, TrueMedia(World(world), "train")
    embeddings, sums = [], []
    for modality in config.input_modalities:
        media = true_media(setting, modality)
        shown = (true.render(medium) for medium in tqdm(media, desc=modality))
        embeddings.append(embed_media(model.encoder, modality, shown))
        sums.append(caption_sums(media, tokenizer, table))
    weight, bias = ridge_regression(torch.cat(embeddings), torch.cat(sums))
    model.input_projection.weight.copy_(weight)
    model.input_projection.bias.copy_(bias)
    return model


def main() -> None:
    """Reads `<root>/model/config.json`, writes `<root>/initial`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT)
    root = parser.parse_args().root
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = NextGPTConfig.from_pretrained(root / "model")
    model = begin(config, root / "world")
    NextGPTProcessor.from_config(config).save_pretrained(root / "initial")
    model.save_pretrained(root / "initial")
    logger.info("written to %s", root / "initial")


if __name__ == "__main__":
    main()
