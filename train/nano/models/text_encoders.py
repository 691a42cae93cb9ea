"""Makes the decoders' text encoders: what a caption tells can be read linearly off what they make of it, noise and all.

`python -m nextgpt.train.nano.models.text_encoders image` (or `audio`, `video`) trains a small one with its tokenizer from
captions alone, and goes on from its last checkpoint when started again; the readings are left behind. What the captions of
two unlike media have far apart, a denoiser learns quickly, and an output projection can miss by a little.

They are CLIP's; the text embedding is all that a small Stable Diffusion 3 takes. That of a sound or a clip points along the
sum of one code for each thing that the caption says: a denoiser that learned a vector of its own for each of them would make
few that it has not learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from nextgpt.decoders import Conditioning
from nextgpt.train.nano.models import loop
from nextgpt.train.nano.models.captions import CaptionTable, clip_captions, picture_captions, sound_captions
from nextgpt.train.nano.models.targets import TARGETS_WEIGHT, OrthogonalTargets, Probes, away_from
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.sounds import SoundWorld

FOLDERS = {"image": "text_encoder", "audio": "sound_text_encoder", "video": "clip_text_encoder"}
WIDTH, POOLED = 192, 256  # of the states; of the text embedding
LEARNING_RATE = 1.5e-3
MOST_NOISE = 1.0  # on what is read, in units of its own deviation


class Kind(NamedTuple):
    """How the text encoder of one modality is made.

    Attributes:
        captions: world, and a tokenizer if there is one → its captions, and what each says: part → `[captions]`.
        codes: whether it points along the sum of codes.
    """

    captions: Callable[..., tuple[CaptionTable, dict[str, Tensor]]]
    codes: bool


def _pictures(world: World, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[CaptionTable, dict[str, Tensor]]:
    captions, values = picture_captions(world, tokenizer)
    return captions, values | {"artwork": values["concept"] * len(world.styles) + values["style"]}


def _sounds(world: World, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[CaptionTable, dict[str, Tensor]]:
    return sound_captions(SoundWorld(world.folder), tokenizer)


KINDS = {"image": Kind(_pictures, False), "audio": Kind(_sounds, True), "video": Kind(clip_captions, True)}


def new_text_encoder(tokenizer: PreTrainedTokenizerBase) -> CLIPTextModelWithProjection:
    """At random; 1.3 M parameters beside those of the words."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=POOLED,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=tokenizer.model_max_length,
        **{name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name) is not None},
    )
    return CLIPTextModelWithProjection(config)


@torch.no_grad()
def encode_captions(encoder: CLIPTextModelWithProjection, captions: CaptionTable) -> Conditioning:
    """Conditioning of all captions in their first wording, and last of the empty one: name → `[captions + 1, ...]`."""
    ids = torch.cat([captions.ids[:, 0], captions.empty[None]])
    vectors = torch.cat([encoder(input_ids=part).text_embeds for part in ids.split(512)]).bfloat16()
    return {"prompt_embeds": vectors[:, None], "pooled_prompt_embeds": vectors}


def encode_all(
    modality: str,
    encoder: CLIPTextModelWithProjection,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    device: torch.device,
) -> Conditioning:
    """Conditioning of all captions of a world, as [`encode_captions`] has it."""
    return encode_captions(encoder, KINDS[modality].captions(world, tokenizer)[0].to(device))


def main() -> None:
    """Trains the encoder of one modality and saves it with its tokenizer."""
    args = loop.arguments(__doc__.split("\n")[0], FOLDERS, LEARNING_RATE).parse_args()
    world, device = loop.start(args)
    kind = KINDS[args.modality]
    captions, values = kind.captions(world)
    values = {part: numbers.to(device) for part, numbers in values.items()}
    sizes = {part: int(numbers.max()) + 1 for part, numbers in values.items()}
    captions = captions.to(device)
    encoder = new_text_encoder(captions.tokenizer).to(device)
    probes = Probes(sizes, POOLED).to(device)
    codes = OrthogonalTargets(sizes, POOLED).to(device) if kind.codes else None
    rows = captions.learned.to(device)

    optimizer = loop.adamw([encoder, probes], args.learning_rate)
    run = loop.Loop(args.out, args.minutes, optimizer, {"encoder": encoder, "probes": probes}, args.start_from)
    for _ in run:
        chosen = sampling.draw(rows, args.batch)
        ids = captions(chosen, varied=True)
        targets = torch.stack([numbers[chosen] for numbers in values.values()], dim=1)
        with loop.autocast(device):
            read = encoder(input_ids=ids).text_embeds.float()
            parts = {"readings": sum(probes.losses(read, targets, MOST_NOISE).values())}
            if codes:
                parts["codes"] = TARGETS_WEIGHT * away_from(codes(targets), read)
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch, **parts)
    encoder.eval().save_pretrained(args.out)
    captions.tokenizer.save_pretrained(args.out)

    vectors = encode_captions(encoder, captions)["pooled_prompt_embeds"]
    figures = {"parameters": loop.parameter_count(encoder), "least_distance": least_distance(vectors[:-1].float())}
    run.write_figures(args.out, **figures)


def least_distance(states: Tensor, sample: int = 2000) -> float:
    """The least root mean square difference between the conditionings of two captions, in their own deviations."""
    chosen = states[torch.randperm(len(states), generator=torch.Generator().manual_seed(0))[:sample]].flatten(1)
    distances = torch.cdist(chosen, chosen) / chosen.shape[1] ** 0.5
    distances.fill_diagonal_(torch.inf)
    return round((distances.min() / chosen.std()).item(), 4)


if __name__ == "__main__":
    main()
