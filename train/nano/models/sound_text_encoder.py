"""Makes the text encoder of the sound decoder: one vector a caption, the sum of what it says.

`python -m nextgpt.train.nano.models.sound_text_encoder --minutes 3` trains a small CLAP text model and its tokenizer as
`text_encoder` does its own: linear readings of the vector, with noise on it, name the sound, the register and the
figure. It points along the sum of one code for each of these: a denoiser that learned a vector of its own for each sound
would play few that it has not learned. It knows no sample.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ClapTextConfig, ClapTextModelWithProjection, RobertaTokenizer

from nextgpt.train.nano.models import loop
from nextgpt.train.nano.models.captions import choose_wordings
from nextgpt.train.nano.models.sums import SUM_WEIGHT, Codes, away_from
from nextgpt.train.nano.models.text_encoder import Readings
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.sampling import IGNORED
from nextgpt.train.nano.world.sounds import Sound, SoundWorld

WIDTH = 128
CONTEXT = 24
LEARNING_RATE = 1e-3
PARTS = ("sound", "register", "figure")


def train_tokenizer(texts: list[str]) -> RobertaTokenizer:
    """RoBERTa's byte-pair encoding, learned until each word of the world is whole."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,
        min_frequency=0,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return RobertaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=CONTEXT)


def new_text_encoder(tokenizer: RobertaTokenizer) -> ClapTextModelWithProjection:
    """The text encoder, at random."""
    return ClapTextModelWithProjection(
        ClapTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=WIDTH,
            max_position_embeddings=CONTEXT + 8,  # RoBERTa counts positions from the padding id on
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


class SoundCaptions:
    """The captions of all sounds and phrases as token ids, one wording each for the name and its synonyms.

    Args:
        world: gives the sounds.
        tokenizer: from `train_tokenizer`.
    """

    def __init__(self, world: SoundWorld, tokenizer: RobertaTokenizer, device: torch.device):
        wordings = {sound["name"]: [sound["name"], *sound["synonyms"]] for sound in world.sounds}
        most = max(map(len, wordings.values()))
        texts = [
            sound._replace(name=(wordings[sound.name] * most)[n]).caption for sound in world.captioned for n in range(most)
        ]
        encoded = tokenizer([*texts, ""], padding="max_length", max_length=CONTEXT, return_tensors="pt")
        self.ids = encoded.input_ids[:-1].view(len(world.captioned), most, CONTEXT).to(device)
        self.empty = encoded.input_ids[-1].to(device)
        self.counts = torch.tensor([len(wordings[sound.name]) for sound in world.captioned], device=device)
        self.padding = tokenizer.pad_token_id

    def __call__(self, rows: Tensor, varied: bool = False) -> Tensor:
        """Indices into `SoundWorld.captioned` `[N]` → token ids `[N, 24]`; `varied` says some names by a synonym."""
        wording = choose_wordings(self.counts[rows]) if varied else torch.zeros_like(rows)
        return self.ids[rows, wording]


def embed(encoder: ClapTextModelWithProjection, ids: Tensor, padding: int) -> Tensor:
    """Token ids `[N, 24]` → vectors of length 1, `[N, 128]`, as AudioLDM has them."""
    vectors = encoder(input_ids=ids, attention_mask=(ids != padding).long()).text_embeds
    return F.normalize(vectors.float(), dim=-1)


def caption_texts(world: SoundWorld) -> list[str]:
    """All that the tokenizer has to know."""
    names = {word for sound in world.sounds for word in (sound["name"], *sound["synonyms"])}
    return [
        Sound(name, register, figure).caption
        for name in sorted(names)
        for register in world.registers
        for figure in world.figures
    ] + [Sound(name).caption for name in sorted(names)]


def main() -> None:
    """Trains, measures the least distance and saves."""
    args = loop.arguments(__doc__.split("\n")[0], "sound_text_encoder", minutes=3, batch=2048).parse_args()
    _, device = loop.start(args)
    world = SoundWorld(args.world)
    tokenizer = train_tokenizer(caption_texts(world))
    captions = SoundCaptions(world, tokenizer, device)
    phrases = torch.arange(len(world.combinations), len(world.captioned))
    rows = torch.cat([world.rows("train"), phrases]).to(device)
    targets = world.targets(torch.arange(len(world.captioned), device=device), IGNORED)

    encoder = new_text_encoder(tokenizer).to(device)
    sizes = {"sound": len(world.names), "register": len(world.registers), "figure": len(world.figures)}
    readings, codes = Readings(WIDTH, sizes).to(device), Codes(sizes, WIDTH).to(device)
    optimizer = loop.adamw([encoder, readings], LEARNING_RATE)
    run = loop.Loop(args.out, args.minutes, optimizer, {"encoder": encoder, "readings": readings}, args.start_from)
    for _ in run:
        chosen = sampling.draw(rows, args.batch)
        with loop.autocast(device):
            vectors = embed(encoder, captions(chosen, varied=True), captions.padding) * WIDTH**0.5
            parts = readings(vectors, dict(zip(PARTS, targets[chosen].T, strict=True)))
            parts["sums"] = SUM_WEIGHT * away_from(codes(targets[chosen]), vectors)
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch, **parts)

    encoder.eval()
    with torch.no_grad():
        vectors = embed(encoder, captions(torch.arange(len(world.combinations), device=device)), captions.padding)
    near = vectors @ vectors.T - 2 * torch.eye(len(vectors), device=device)
    encoder.save_pretrained(Path(args.out))
    tokenizer.save_pretrained(args.out)
    run.write_figures(args.out, parameters=loop.parameter_count(encoder), nearest_cosine=near.max().item())


if __name__ == "__main__":
    main()
