"""Makes the decoders' text encoders: what a caption tells can be read linearly off what they make of it, noise and all.

`python -m nextgpt.train.nano.models.text_encoders image` (or `audio`, `video`) trains a small one with its tokenizer from
captions alone, and goes on from its last checkpoint when started again; the readings are left behind. What the captions of
two unlike media have far apart, a denoiser learns quickly, and an output projection can miss by a little.

- `image`, `audio`: CLIP's; its text embedding, all that a small Stable Diffusion 3 takes. That of a sound points along the
  sum of one code for each thing that the caption says: a denoiser that learned a vector of its own for each sound would
  play few that it has not learned.
- `video`: T5's encoder; its last states, as Latte takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
)

from nextgpt.decoders import Conditioning
from nextgpt.train.nano.models import loop
from nextgpt.train.nano.models.captions import CaptionTable, clip_captions, picture_captions, sound_captions
from nextgpt.train.nano.models.targets import TARGETS_WEIGHT, OrthogonalTargets, Probes, away_from
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.sounds import SoundWorld

FOLDERS = {"image": "text_encoder", "audio": "sound_text_encoder", "video": "clip_text_encoder"}
WIDTH, POOLED = 192, 256  # of the states; of the embedding of pictures and sounds
LEARNING_RATE = 1.5e-3
MOST_NOISE = 1.0  # on what is read, in units of its own deviation


class Kind(NamedTuple):
    """How the text encoder of one modality is made.

    Attributes:
        captions: world, and a tokenizer if there is one → its captions, and what each says: part → `[captions]`.
        new: tokenizer → the encoder, at random.
        model: the encoder's class.
        encode: encoder, token ids `[N, L]`, whether each is padding `[N, L]` → conditioning by the decoder's names.
        reads, width: the conditioning that is read, and the width of what is read of it.
        codes: whether it points along the sum of codes.
    """

    captions: Callable[..., tuple[CaptionTable, dict[str, Tensor]]]
    new: Callable[[PreTrainedTokenizerBase], nn.Module]
    model: type[PreTrainedModel]
    encode: Callable[[nn.Module, Tensor, Tensor], Conditioning]
    reads: str
    width: int
    codes: bool = False


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name) is not None}


def _new_clip(tokenizer: PreTrainedTokenizerBase) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=POOLED,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=tokenizer.model_max_length,
        **_special_ids(tokenizer),
    )
    return CLIPTextModelWithProjection(config)


def _encode_clip(encoder: nn.Module, ids: Tensor, padding: Tensor) -> Conditioning:
    vectors = encoder(input_ids=ids).text_embeds
    return {"prompt_embeds": vectors[:, None], "pooled_prompt_embeds": vectors}


def _new_t5(tokenizer: PreTrainedTokenizerBase) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=32,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=6,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        **_special_ids(tokenizer),
    )
    return T5EncoderModel(config)


def _encode_t5(encoder: nn.Module, ids: Tensor, padding: Tensor) -> Conditioning:
    states = encoder(input_ids=ids, attention_mask=(~padding).long()).last_hidden_state
    return {"prompt_embeds": states * ~padding[..., None]}


def _pictures(world: World, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[CaptionTable, dict[str, Tensor]]:
    captions, values = picture_captions(world, tokenizer)
    return captions, values | {"artwork": values["concept"] * len(world.styles) + values["style"]}


def _sounds(world: World, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[CaptionTable, dict[str, Tensor]]:
    return sound_captions(SoundWorld(world.folder), tokenizer)


KINDS = {
    "image": Kind(_pictures, _new_clip, CLIPTextModelWithProjection, _encode_clip, "pooled_prompt_embeds", POOLED),
    "audio": Kind(_sounds, _new_clip, CLIPTextModelWithProjection, _encode_clip, "pooled_prompt_embeds", POOLED, codes=True),
    "video": Kind(clip_captions, _new_t5, T5EncoderModel, _encode_t5, "prompt_embeds", WIDTH),
}


@torch.no_grad()
def encode_captions(modality: str, encoder: nn.Module, captions: CaptionTable) -> Conditioning:
    """Conditioning of all captions in their first wording, and last of the empty one: name → `[captions + 1, ...]`."""
    ids = torch.cat([captions.ids[:, 0], captions.empty[None]])
    parts = [KINDS[modality].encode(encoder, part, part == captions.padding) for part in ids.split(512)]
    return {name: torch.cat([part[name] for part in parts]).bfloat16() for name in parts[0]}


def encode_all(
    modality: str, encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, world: World, device: torch.device
) -> Conditioning:
    """Conditioning of all captions of a world, as [`encode_captions`] has it."""
    return encode_captions(modality, encoder, KINDS[modality].captions(world, tokenizer)[0].to(device))


def _read_off(states: Tensor, ids: Tensor, padding: int) -> Tensor:
    """What is read: a vector itself; of states `[N, L, width]` the one at the caption's end."""
    if states.ndim == 2:
        return states
    last = (ids != padding).cumsum(1).argmax(1)  # the first of the most, where the padding is the end token itself
    return states[torch.arange(len(ids), device=ids.device), last]


def main() -> None:
    """Trains the encoder of one modality and saves it with its tokenizer."""
    args = loop.arguments(__doc__.split("\n")[0], FOLDERS).parse_args()
    world, device = loop.start(args)
    kind = KINDS[args.modality]
    captions, values = kind.captions(world)
    values = {part: numbers.to(device) for part, numbers in values.items()}
    sizes = {part: int(numbers.max()) + 1 for part, numbers in values.items()}
    captions = captions.to(device)
    encoder = kind.new(captions.tokenizer).to(device)
    probes = Probes(sizes, kind.width).to(device)
    codes = OrthogonalTargets(sizes, POOLED).to(device) if kind.codes else None
    rows = captions.learned.to(device)

    optimizer = loop.adamw([encoder, probes], LEARNING_RATE)
    run = loop.Loop(args.out, args.minutes, optimizer, {"encoder": encoder, "probes": probes}, args.start_from)
    for _ in run:
        chosen = sampling.draw(rows, args.batch)
        ids = captions(chosen, varied=True)
        targets = torch.stack([numbers[chosen] for numbers in values.values()], dim=1)
        with loop.autocast(device):
            made = kind.encode(encoder, ids, ids == captions.padding)
            read = _read_off(made[kind.reads], ids, captions.padding).float()
            parts = {kind.reads: sum(probes.losses(read, targets, MOST_NOISE).values())}
            if codes:
                parts["codes"] = TARGETS_WEIGHT * away_from(codes(targets), read)
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch, **parts)
    encoder.eval().save_pretrained(args.out)
    captions.tokenizer.save_pretrained(args.out)

    every = encode_captions(args.modality, encoder, captions)
    spread = {name: least_distance(states[:-1].float()) for name, states in every.items()}
    run.write_figures(args.out, parameters=loop.parameter_count(encoder), least_distance=spread)


def least_distance(states: Tensor, sample: int = 2000) -> float:
    """The least root mean square difference between the conditionings of two captions, in their own deviations."""
    chosen = states[torch.randperm(len(states), generator=torch.Generator().manual_seed(0))[:sample]].flatten(1)
    distances = torch.cdist(chosen, chosen) / chosen.shape[1] ** 0.5
    distances.fill_diagonal_(torch.inf)
    return round((distances.min() / chosen.std()).item(), 4)


if __name__ == "__main__":
    main()
