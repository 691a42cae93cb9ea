"""Makes the picture autoencoder: 64 × 64 pixels to 8 × 8 latents of 16 channels and back. Knows no words.

`python -m nextgpt.train.nano.models.autoencoder --minutes 30` trains diffusers' `AutoencoderKL` on the world's pictures and
goes on from its last checkpoint when started again. `--refine` then sharpens the decoding half alone, so that the
latents stay what a UNet has learned; with `--encoder` what is decoded must also look alike to the encoder.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.encoders.imagebind import ImageBind
from nextgpt.train.nano.models import loop
from nextgpt.train.nano.models.encoder import Sight
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.pictures import SIZES, Renderer

LATENT_CHANNELS = 16
LEARNING_RATE = 2e-3
KL_WEIGHT = 2e-6  # light: at 5e-4 the latents kept a noise of 0.3 deviations and the pictures stayed blurred
REFINING_NOISE = 0.2  # at most, in units of the latents' deviation
LOOK_WEIGHT = 1.0
SMALL_SHARE = 2.0  # how many small pictures are refined for each large one: they are the harder ones to tell


def new_autoencoder(channels: int = 3, widths: tuple[int, ...] = (24, 48, 96, 128)) -> AutoencoderKL:
    """The network, at random; 3.3 M parameters. It makes each side eight times smaller."""
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        sample_size=64,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,  # `normalise_latents` folds the scale into the weights
    )


def reconstruction_losses(decoded: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """How far pictures `[N, C, H, W]` are apart, in themselves and in their edges."""
    edges = sum(F.l1_loss(decoded.diff(dim=axis), pixels.diff(dim=axis)) for axis in (2, 3))
    return {"pixels": F.l1_loss(decoded, pixels), "edges": edges}


def losses(autoencoder: AutoencoderKL, pixels: Tensor) -> dict[str, Tensor]:
    """Parts of the loss; pixels `[N, C, H, W]`, of pictures in -1..1."""
    posterior = autoencoder.encode(pixels).latent_dist
    decoded = autoencoder.decode(posterior.sample()).sample.float()
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return reconstruction_losses(decoded, pixels) | {"kl": KL_WEIGHT * kl}


@torch.no_grad()
def encode_all(autoencoder: AutoencoderKL, renderer: Renderer, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of pictures given as indices, each `[N, 16, 8, 8]`."""
    posteriors = [autoencoder.encode(renderer(part) * 2 - 1).latent_dist for part in rows.split(256)]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


@torch.no_grad()
def normalise_latents(autoencoder: AutoencoderKL, latents: Tensor) -> None:
    """Folds each channel's mean and deviation into the 1 × 1 convolutions on both sides of the latents.

    So the latents have mean 0 and deviation 1, and pipelines that know one `scaling_factor` and no shift do well.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))  # [16]
    inward, outward = autoencoder.quant_conv, autoencoder.post_quant_conv
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight *= std[None, :, None, None]
    inward.weight[:LATENT_CHANNELS] /= std[:, None, None, None]  # the means; the log-variances follow
    inward.bias[:LATENT_CHANNELS] = (inward.bias[:LATENT_CHANNELS] - mean) / std
    inward.bias[LATENT_CHANNELS:] -= 2 * std.log()


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures in 0..1 through the latents and back."""
    return (autoencoder.decode(autoencoder.encode(pictures * 2 - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, the mean over pictures `[N, 3, H, W]` in 0..1."""
    return (-10 * (first - second).pow(2).flatten(1).mean(1).clamp(min=1e-10).log10()).mean().item()


def train(args: Namespace, renderer: Renderer, rows: Tensor) -> loop.Loop:
    """Trains both halves, normalises the latents and saves."""
    autoencoder = new_autoencoder().to(rows.device, memory_format=torch.channels_last)
    optimizer = loop.adamw([autoencoder], LEARNING_RATE, weight_decay=0.0)
    compute = torch.compile(losses) if args.compile else losses
    run = loop.Loop(args.out, args.minutes, optimizer, {"autoencoder": autoencoder}, args.start_from)
    for _ in run:
        pictures = renderer(sampling.draw(rows, args.batch))  # where the decoder will draw them
        with loop.autocast(rows.device):
            parts = compute(autoencoder, pictures * 2 - 1)
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch, **parts)
    autoencoder.eval()
    normalise_latents(autoencoder, encode_all(autoencoder, renderer, rows)[0])
    autoencoder.bfloat16().save_pretrained(args.out)
    return run


class Look(Sight):
    """How unlike pictures look to an encoder of the world, as in perceptual losses (LPIPS, Zhang et al., 2018).

    It compares the states of every block, patch by patch: the embedding alone tells what is shown, hardly in which style.

    Args:
        folder: of the encoder.
    """

    def __init__(self, folder: Path):
        super().__init__(ImageBind.from_pretrained(folder).float().eval().requires_grad_(False))
        self._states: list[Tensor] = []
        for block in self.towers.modality_trunks["vision"].blocks:
            block.register_forward_hook(lambda _block, _inputs, states: self._states.append(states))

    def states(self, pictures: Tensor) -> Tensor:
        """Pictures `[N, 3, 64, 64]` in -1..1 → what each block makes of each patch, `[blocks, N, L, D]`."""
        self._states.clear()
        self.embed_pictures((pictures + 1) / 2)
        return torch.stack(self._states)

    def forward(self, decoded: Tensor, pixels: Tensor) -> Tensor:
        """Scalar in 0..2, from two batches of pictures `[N, 3, 64, 64]` in -1..1."""
        with torch.no_grad():
            true = self.states(pixels)
        return 1 - F.cosine_similarity(self.states(decoded), true, dim=-1).mean()


def refine(args: Namespace, renderer: Renderer, rows: Tensor) -> loop.Loop:
    """Goes on with the decoding half alone: the latents stay what a UNet has learned."""
    autoencoder = AutoencoderKL.from_pretrained(args.out).float().to(rows.device, memory_format=torch.channels_last)
    latents = encode_all(autoencoder, renderer, rows)[0]
    decoding = nn.ModuleDict({"decoder": autoencoder.decoder, "post_quant_conv": autoencoder.post_quant_conv})
    optimizer = loop.adamw([decoding], LEARNING_RATE / 2, weight_decay=0.0)
    look = Look(args.encoder).to(rows.device) if args.encoder else None
    decode = torch.compile(autoencoder.decode) if args.compile else autoencoder.decode
    small = rows[:, 3] == list(SIZES).index("small")
    shares = torch.where(small, SMALL_SHARE, 1.0)
    run = loop.Loop(args.out.with_name(f"{args.out.name}_refined"), args.minutes, optimizer, {"decoding": decoding})
    for _ in run:
        chosen = torch.multinomial(shares, args.batch, replacement=True)
        noise = REFINING_NOISE * torch.rand(args.batch, 1, 1, 1, device=rows.device)  # a UNet's will be a little off
        near = latents[chosen] + noise * torch.randn_like(latents[chosen])
        pixels = renderer(rows[chosen]) * 2 - 1
        with loop.autocast(rows.device):
            decoded = decode(near).sample.float()
            parts = reconstruction_losses(decoded, pixels)
            if look:
                parts["look"] = LOOK_WEIGHT * look(decoded, pixels)
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch, **parts)
    autoencoder.bfloat16().save_pretrained(args.out)
    return run


def main() -> None:
    """Trains or refines, and measures."""
    parser = loop.arguments(__doc__.split("\n")[0], "autoencoder", minutes=30, batch=128)
    parser.add_argument("--refine", action="store_true", help="go on with the decoding half of the saved one only")
    parser.add_argument("--encoder", type=Path, help="with --refine: what is decoded must look like the original to it")
    args = parser.parse_args()
    world, device = loop.start(args)
    renderer = Renderer(torch.from_numpy(world.art).to(device))
    rows = sampling.combinations(world, "train", args.concepts, device)
    run = (refine if args.refine else train)(args, renderer, rows)

    autoencoder = AutoencoderKL.from_pretrained(args.out).float().to(device)
    dev = renderer(sampling.combinations(world, "dev", args.concepts, device)[:256])
    decoded = reconstruct(autoencoder, dev)
    loop.save_contact_sheet([dev[:16], decoded[:16], dev[16:32], decoded[16:32]], run.work / "sheet.png")
    latents = autoencoder.encode(dev * 2 - 1).latent_dist
    earlier = {"before_refining": json.loads((args.out / loop.LOG_FILE).read_text(encoding="utf-8"))} if args.refine else {}
    run.write_figures(
        args.out,
        parameters=loop.parameter_count(autoencoder),
        psnr_dev=psnr(dev, decoded),
        latent_std=latents.mean.std().item(),
        latent_noise=latents.std.mean().item(),
        **earlier,
    )


if __name__ == "__main__":
    main()
