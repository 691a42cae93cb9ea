"""Makes the text encoder that the diffusion decoders share: its states tell apart all that a caption says.

`python -m nextgpt.train.nano.models.text_encoder --minutes 3` trains a small CLIP text model until linear readings of each
of its states, with noise on them, name the concept, the style, the background and the size; it goes on from its last
checkpoint when started again. The readings are left behind. It knows no pixel; but what the captions of two unlike
pictures have in states far apart, a denoiser learns quickly, and an output projection can miss by a little.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nextgpt.train.nano.models import loop
from nextgpt.train.nano.models.captions import CONTEXT, Captions, ClipCaptions, train_tokenizer
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.clips import MOTIONS, ClipWorld
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.sampling import IGNORED

WIDTH = 192
LEARNING_RATE = 1e-3
MOST_NOISE = 1.5  # on the states, in units of their own deviation
PARTS = ("concept", "style", "background", "size")
CLIP_LAYERS = 2


def new_text_encoder(tokenizer: CLIPTokenizer, layers: int = 4) -> CLIPTextModel:
    """The text encoder, at random; with four layers 2 M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=6,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class Readings(nn.Module):
    """Linear readings of a text state.

    Args:
        width: of the states.
        sizes: part of a caption → how many values it has.
    """

    def __init__(self, width: int, sizes: dict[str, int]):
        super().__init__()
        self.heads = nn.ModuleDict({part: nn.Linear(width, size) for part, size in sizes.items()})

    def forward(self, states: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of each reading of states `[N, width]`, with noise on them; targets `[N]`, `IGNORED` for none."""
        noise = MOST_NOISE * torch.rand(len(states), 1, device=states.device) * states.detach().float().std()
        states = states + noise * torch.randn_like(states)
        return {
            part: F.cross_entropy(head(states), targets[part], ignore_index=IGNORED) for part, head in self.heads.items()
        }


def last_states(states: Tensor, ids: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """The states `[M, 192]` from each caption's end on, which have read all of it, and their captions `[M]`."""
    read = ids == end  # the padding is the end token again
    return states[read], read.nonzero()[:, 0]


@torch.no_grad()
def distances(encoder: CLIPTextModel, captions: Captions, rows: Tensor, world: World) -> dict[str, dict[str, float]]:
    """Root mean square differences of the states of captions that differ in one part: their mean and least."""
    sizes = (len(world.names), len(world.styles), len(world.backgrounds), len(world.sizes))

    def states(some: Tensor) -> Tensor:
        return torch.cat([encoder(input_ids=ids).last_hidden_state.float() for ids in captions(some).split(512)])

    found = {}
    for column, (part, size) in enumerate(zip(PARTS, sizes, strict=True)):
        other = rows.clone()
        other[:, column] = (other[:, column] + torch.randint(1, size, (len(rows),), device=rows.device)) % size
        differing = (states(rows) - states(other)).pow(2).mean((1, 2)).sqrt()
        found[part] = {"mean": round(differing.mean().item(), 3), "least": round(differing.min().item(), 3)}
    return found


def train(
    args: Namespace,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    readings: Readings,
    draw: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
) -> loop.Loop:
    """Trains encoder and readings, saves the encoder with its tokenizer and returns the run.

    Args:
        draw: count → token ids `[N, 16]` of captions, and what each says: part → `[N]`.
    """
    device = next(encoder.parameters()).device
    optimizer = loop.adamw([encoder, readings], LEARNING_RATE)
    run = loop.Loop(args.out, args.minutes, optimizer, {"encoder": encoder, "readings": readings}, args.start_from)
    for _ in run:
        ids, targets = draw(args.batch)
        with loop.autocast(device):
            states = encoder(input_ids=ids).last_hidden_state
            states, whose = last_states(states, ids, tokenizer.eos_token_id)
            parts = readings(states, {part: target[whose] for part, target in targets.items()})
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch, **parts)
    encoder.eval().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    return run


def main() -> None:
    """Trains the text encoder of the pictures or of the clips, and saves it."""
    parser = loop.arguments(__doc__.split("\n")[0], "text_encoder", minutes=3, batch=2048)
    parser.add_argument("--clips", action="store_true", help="that of the clip decoder: it tells the thing and its motion")
    args = parser.parse_args()
    world, device = loop.start(args)
    (of_clips if args.clips else of_pictures)(args, world, device)


def of_pictures(args: Namespace, world: World, device: torch.device) -> None:
    """Readings name the concept, the style, the background, the size and the artwork; the distances are measured."""
    tokenizer = train_tokenizer(world)
    captions = Captions(world, tokenizer, device)
    rows = sampling.combinations(world, "train", args.concepts, device)
    sizes = dict(zip(PARTS, (len(world.names), len(world.styles), len(world.backgrounds), len(world.sizes)), strict=True))
    readings = Readings(WIDTH, sizes | {"artwork": sizes["concept"] * sizes["style"]}).to(device)
    encoder = new_text_encoder(tokenizer).to(device)

    def draw(count: int) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = sampling.draw(rows, count)
        targets = dict(zip(PARTS, chosen.T, strict=True))
        targets["artwork"] = targets["concept"] * sizes["style"] + targets["style"]
        return captions(chosen, varied=True), targets

    run = train(args, encoder, tokenizer, readings, draw)
    dev = sampling.combinations(world, "dev", args.concepts, device)
    run.write_figures(
        args.out, parameters=loop.parameter_count(encoder), distances_dev=distances(encoder, captions, dev, world)
    )


def of_clips(args: Namespace, pictures: World, device: torch.device) -> None:
    """Readings name the thing and its motion."""
    world = ClipWorld(pictures)
    tokenizer = train_tokenizer(pictures, [*MOTIONS])
    captions = ClipCaptions(world, tokenizer, device)
    rows = world.rows("train").to(device)
    sizes = {"concept": len(pictures.names), "motion": len(world.motions)}
    readings = Readings(WIDTH, sizes).to(device)
    encoder = new_text_encoder(tokenizer, CLIP_LAYERS).to(device)

    def draw(count: int) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = sampling.draw(rows, count)
        concept, motion = chosen.unbind(1)
        return captions(chosen, varied=True), {"concept": concept, "motion": motion}

    run = train(args, encoder, tokenizer, readings, draw)
    run.write_figures(args.out, parameters=loop.parameter_count(encoder))


if __name__ == "__main__":
    main()
