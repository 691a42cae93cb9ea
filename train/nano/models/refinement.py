"""Goes on training an autoencoder's decoder on what a denoiser makes of captions, beside true media: it learns to clean it.

`python -m nextgpt.train.nano.models.refinement image` (or `audio`) starts from the autoencoder and writes the one in the
decoder's folder, `vae`; it goes on from its last checkpoint when started again. A denoiser gives fine structure up and
leaves a little noise; the halves of an autoencoder are trained without it and would show both as they are. The latents stay
what they were, for the encoder does.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch
from diffusers import AutoencoderDC, StableDiffusion3Pipeline
from torch import Tensor

from nextgpt.train.nano.defaults import ROOT
from nextgpt.train.nano.models import autoencoder, loop, text_encoders
from nextgpt.train.nano.models.decoder import ALONE, KINDS, Media, call
from nextgpt.train.nano.models.denoising import NOISE_SCHEDULE
from nextgpt.train.nano.world.pictures import World

FOLDERS = {"image": "image_decoder/vae", "audio": "sound_decoder/vae"}
LEARNING_RATE = 5e-4
WORSE = 0.8  # at most so much more is wrong than what the denoiser makes of captions that it has learned
BATCH = 64


@torch.no_grad()
def made_latents(
    args: Namespace, world: World, vae: AutoencoderDC, pipeline: StableDiffusion3Pipeline, device: torch.device
) -> tuple[Media, Tensor]:
    """The media that the denoiser has learned, and what it makes of their captions in one step, `[media, C, H, W]`."""
    kind = KINDS[args.modality]
    conditioning = text_encoders.encode_all(args.modality, pipeline.text_encoder, pipeline.tokenizer, world, device)
    media, last = kind.media(args, world, vae, device), NOISE_SCHEDULE["num_train_timesteps"] - 1
    made = []
    for part in torch.arange(len(media.captions), device=device).split(BATCH):
        asked = {name: states[media.captions[part]].float() for name, states in conditioning.items()}
        noise = torch.randn_like(media.latents[part], dtype=torch.float32)
        timesteps = torch.full((len(part),), last, device=device)
        made.append(call(pipeline.transformer, noise, timesteps, asked).bfloat16())
    return media, torch.cat(made)


def losses(vae: AutoencoderDC, media: Media, made: Tensor, count: int) -> dict[str, Tensor]:
    """Parts of the loss on media made from captions, some of them worse than they are."""
    chosen = media.choose(count)
    true, worse = media.latents[chosen].float(), 1 + WORSE * torch.rand(count, 1, 1, 1, device=made.device)
    decoded = vae.decode(true + worse * (made[chosen].float() - true)).sample.float()
    found = autoencoder.reconstruction_losses(decoded, media.pixels(chosen))
    return {f"made_{name}": loss for name, loss in found.items()}


def main() -> None:
    """Refines, saves and measures."""
    parser = loop.arguments(__doc__.split("\n")[0], FOLDERS, LEARNING_RATE)
    parser.add_argument("--root", type=Path, default=ROOT, help="where the autoencoder and the decoder are")
    args = parser.parse_args()
    world, device = loop.start(args)
    vae = autoencoder.load(args.root / KINDS[args.modality].parts[0], device)
    pipeline = StableDiffusion3Pipeline.from_pretrained(args.out.parent, dtype=torch.float32, **ALONE).to(device)
    media, made = made_latents(args, world, vae, pipeline, device)
    vae.decoder.requires_grad_(True)
    vae.to(memory_format=torch.channels_last)
    draw, dev = autoencoder.material(args, world, device)

    def step(count: int) -> dict[str, Tensor]:
        return losses(vae, media, made, count // 2) | autoencoder.losses(vae, draw(count - count // 2))

    run = autoencoder.train(vae, step, args, args.learning_rate, device)
    run.write_figures(args.out, **autoencoder.measure(args.out, args.modality, dev, run.work / "sheet.png"))


if __name__ == "__main__":
    main()
