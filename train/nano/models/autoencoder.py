"""Makes the autoencoders: of pictures, which clips use frame by frame, and of the log-mel spectrograms of sounds.

`python -m nextgpt.train.nano.models.autoencoder image` (or `audio`) makes diffusers' `AutoencoderDC`, which makes each side
eight times smaller and keeps 24 channels, and goes on from its last checkpoint when started again. Pictures are the world's
artwork at any place, size and angle on any colour: trained on finished pictures alone it remembered these, and unseen ones
came back 3 dB worse.

The encoder is linear and not trained: the latents are the principal components of patches of 8 × 8 pixels, so what is far
apart in pixels is as far apart in latents, and a thing on another background differs in just that. An encoder that was
trained as well spread pictures over twice as many directions, all of which a denoiser then had to learn.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.train.nano.models import loop
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.pictures import Renderer, World
from nextgpt.train.nano.world.sounds import SoundWorld
from nextgpt.train.nano.world.spectrograms import FRAMES, MEL_MEAN, MEL_STD, as_pictures, log_mels
from nextgpt.train.nano.world.waveforms import in_parts

FOLDERS = {"image": "autoencoder", "audio": "sound_autoencoder"}
FACTOR, LATENT_CHANNELS = 8, 24  # how much smaller each side is
SAMPLE = 1024  # media whose patches' principal components are computed
LEARNING_RATE = 1e-3
MOST_NOISE = 0.1  # on the latents, in units of their deviation: a denoiser's will be a little off
SIDES = (18.0, 64.0)  # of the artwork, in pixels
REACH = 14.0  # pixels from the middle
TURNED_SHARE, TINTED_SHARE = 0.4, 0.4  # of the pictures are turned; are on any colour
LATE = 8  # frames by which a sound may come late in training
GAIN = 0.7  # at most, in log units, either way


def new_autoencoder(media: Tensor) -> AutoencoderDC:
    """The network (2.3 M parameters), its encoder as it stays, its decoder at random.

    Args:
        media: pictures in -1..1 or spectrograms, `[N, C, H, W]`, whose patches' principal components the latents are.
    """
    channels, (widths, layers) = media.shape[1], ((32, 64, 128, 128), (0, 1, 2, 2))
    autoencoder = AutoencoderDC(
        in_channels=channels,
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(4 * channels, 4 * channels, 16 * channels, 64 * channels),
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(0, 1, 1, 0),
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((),) * len(widths),
        decoder_qkv_multiscales=((),) * len(widths),
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    )
    make_linear(autoencoder.encoder, media)
    # Pipelines read these two off any autoencoder.
    autoencoder.register_to_config(block_out_channels=autoencoder.config.encoder_block_out_channels, shift_factor=0.0)
    return autoencoder


@torch.no_grad()
def make_linear(encoder: nn.Module, media: Tensor) -> None:
    """Lets the encoder fold patches into channels and give their first principal components.

    All latents together have mean 0 and deviation 1 over the media `[N, C, H, W]`; none is scaled alone.
    """
    for parameter in encoder.parameters():
        parameter.zero_()  # what is left of blocks and halvings are their shortcuts: a halving folds 2 × 2 pixels
    first, last = encoder.conv_in.conv, encoder.conv_out
    first.weight[:, :, 1, 1] = torch.eye(first.in_channels)
    folded = encoder.conv_in(media)
    for block in encoder.down_blocks:
        folded = block(folded)
    patches = folded.movedim(1, -1).flatten(0, -2)  # [patches, 64 C]
    mean = patches.mean(0)
    components = torch.linalg.eigh((patches - mean).T @ (patches - mean)).eigenvectors.flip(1)[:, :LATENT_CHANNELS]
    scale = ((patches - mean) @ components).std()
    last.weight[:, :, 1, 1] = components.T / scale
    last.bias.copy_(-(mean @ components) / scale)
    encoder.requires_grad_(False)


class AnyPictures:
    """Draws artwork at any place, size and angle, on any colour.

    Args:
        renderer: of the world.
        rows: pictures of the training split, as indices `[N, 4]`: which artwork may stand on which background.
    """

    def __init__(self, renderer: Renderer, rows: Tensor):
        self.renderer, self.rows = renderer, rows

    def __call__(self, count: int) -> Tensor:
        """Pictures `[count, 3, 64, 64]` in 0..1."""
        device, chosen = self.rows.device, sampling.draw(self.rows, count)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(count, *shape, device=device)

        def some(share: float, *shape: int) -> Tensor:
            return torch.rand(count, *shape, device=device) < share

        turn = uniform(-math.pi, math.pi) * some(TURNED_SHARE)
        colours = self.renderer.backgrounds[chosen[:, 2]]
        colours = torch.where(some(TINTED_SHARE, 1), uniform(0, 1, 3), colours)
        return self.renderer.place(
            chosen, uniform(*SIDES), uniform(-REACH, REACH), uniform(-REACH, REACH), turn, colours
        ).clamp(0, 1)


class AnySounds:
    """Draws log-mel spectrograms of sounds and studies, a little later, louder or softer.

    Args:
        world: of sounds; its training split is used.
    """

    def __init__(self, world: SoundWorld, most: int | None, device: torch.device):
        self.sounds = log_mels(world.heard(world.rows("train", most))).to(device)
        self.studies = in_parts(log_mels, world.studies).to(device)

    def __call__(self, count: int) -> Tensor:
        """Spectrograms `[count, 1, 160, 80]`."""
        chosen = [sampling.draw(self.sounds, count // 2), sampling.draw(self.studies, count - count // 2)]
        mels = F.pad(torch.cat(chosen), (0, 0, int(torch.randint(LATE + 1, ())), 0), mode="replicate")[:, :, :FRAMES]
        gains = GAIN * (2 * torch.rand(count, 1, 1, 1, device=mels.device) - 1)
        return (mels + gains).clamp(min=self.sounds.min())


@torch.no_grad()
def scale_to_mels(autoencoder: AutoencoderDC) -> None:
    """Lets a new autoencoder begin with outputs of a spectrogram's mean and deviation."""
    last = autoencoder.decoder.conv_out.conv
    last.weight *= MEL_STD
    last.bias += MEL_MEAN


def reconstruction_losses(decoded: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """How far pictures `[N, C, H, W]` are apart, in themselves and in their edges."""
    edges = sum(F.l1_loss(decoded.diff(dim=axis), pixels.diff(dim=axis)) for axis in (2, 3))
    return {"pixels": F.l1_loss(decoded, pixels), "edges": edges}


def losses(autoencoder: AutoencoderDC, pixels: Tensor) -> dict[str, Tensor]:
    """Parts of the loss; pixels `[N, C, H, W]`, of pictures in -1..1."""
    latents = autoencoder.encode(pixels).latent
    noise = MOST_NOISE * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    decoded = autoencoder.decode(latents + noise * torch.randn_like(latents)).sample.float()
    return reconstruction_losses(decoded, pixels)


@torch.no_grad()
def encode(autoencoder: AutoencoderDC, pixels: Tensor) -> Tensor:
    """Latents `[N, 24, H / 8, W / 8]` of pictures in -1..1 or of spectrograms, batch by batch."""
    return torch.cat([autoencoder.encode(part).latent for part in pixels.split(64)])


@torch.no_grad()
def decode(autoencoder: AutoencoderDC, latents: Tensor) -> Tensor:
    """The inverse of `encode`."""
    return torch.cat([autoencoder.decode(part).sample for part in latents.split(64)])


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, the mean over pictures `[N, 3, H, W]` in 0..1."""
    return (-10 * (first - second).pow(2).flatten(1).mean(1).clamp(min=1e-10).log10()).mean().item()


def load(folder: Path, device: torch.device) -> AutoencoderDC:
    """A saved autoencoder in full precision, frozen."""
    return AutoencoderDC.from_pretrained(folder).float().to(device).eval().requires_grad_(False)


class Material(NamedTuple):
    """What an autoencoder learns from, and what it is measured on: pictures in -1..1 or spectrograms.

    Attributes:
        draw: count → as many of the training split, `[count, C, H, W]`, augmented.
        dev: of the development split, as they are.
    """

    draw: Callable[[int], Tensor]
    dev: Tensor


def material(args: Namespace, world: World, device: torch.device) -> Material:
    """Of the modality that the arguments name."""
    if args.modality == "image":
        renderer = Renderer(torch.from_numpy(world.art).to(device))
        any_pictures = AnyPictures(renderer, sampling.combinations(world, "train", args.concepts, device))
        dev = renderer(sampling.combinations(world, "dev", args.concepts, device)) * 2 - 1
        return Material(lambda count: any_pictures(count) * 2 - 1, dev)
    sounds = SoundWorld(args.world)
    dev = log_mels(sounds.heard(sounds.rows("dev"))).to(device)
    return Material(AnySounds(sounds, args.concepts, device), dev)


def train(
    autoencoder: AutoencoderDC, step: Callable[[int], dict[str, Tensor]], args: Namespace, rate: float, device: torch.device
) -> loop.Loop:
    """Trains the decoder for `args.minutes`, going on from the last checkpoint, and saves both halves.

    Args:
        step: size of the batch → the parts of its loss.
        rate: of learning.
    """
    optimizer = loop.adamw([autoencoder.decoder], rate, weight_decay=0.0)
    run = loop.Loop(args.out, args.minutes, optimizer, {"autoencoder": autoencoder}, args.start_from)
    for _ in run:
        with loop.autocast(device):
            parts = step(args.batch)
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch, **parts)
    autoencoder.to(memory_format=torch.contiguous_format).bfloat16().save_pretrained(args.out)
    return run


def measure(out: Path, modality: str, dev: Tensor, sheet: Path) -> dict[str, float]:
    """How well a saved one gives development media back; some of them are drawn beside the true ones."""
    autoencoder = load(out, dev.device)
    latents = encode(autoencoder, dev)
    again = decode(autoencoder, latents)
    figures = {"parameters": loop.parameter_count(autoencoder), "latent_std_dev": latents.std().item()}
    if modality == "image":
        dev, again = (dev + 1) / 2, (again / 2 + 0.5).clamp(0, 1)
        figures["psnr_dev"] = psnr(dev, again)
    else:
        figures["log_mel_error_dev"] = F.l1_loss(again, dev).item()
        dev, again = as_pictures(dev), as_pictures(again)
    loop.save_contact_sheet([dev[:12], again[:12], dev[12:24], again[12:24]], sheet)
    return figures


def main() -> None:
    """Makes the encoder, trains the decoder, saves and measures."""
    args = loop.arguments(__doc__.split("\n")[0], FOLDERS, LEARNING_RATE).parse_args()
    world, device = loop.start(args)
    draw, dev = material(args, world, device)
    sample = torch.cat([draw(args.batch) for _ in range(SAMPLE // args.batch + 1)])
    autoencoder = new_autoencoder(sample.cpu())  # it is made there, and moved below
    if args.modality == "audio":
        scale_to_mels(autoencoder)
    autoencoder = autoencoder.to(device, memory_format=torch.channels_last)
    compute = torch.compile(losses) if args.compile else losses
    run = train(autoencoder, lambda count: compute(autoencoder, draw(count)), args, args.learning_rate, device)
    run.write_figures(args.out, **measure(args.out, args.modality, dev, run.work / "sheet.png"))


if __name__ == "__main__":
    main()
