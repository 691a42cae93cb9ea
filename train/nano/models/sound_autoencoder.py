"""Makes the sound autoencoder: log-mel spectrograms of 128 × 64 to 16 × 8 latents of 16 channels and back.

`python -m nextgpt.train.nano.models.sound_autoencoder --minutes 30` trains diffusers' `AutoencoderKL` on the world's sounds
and the studies beside them, and goes on from its last checkpoint when started again. It knows no words.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from nextgpt.decoders.audioldm import log_mel_spectrogram
from nextgpt.decoders.vocoder import GriffinLimVocoderConfig
from nextgpt.train.nano.models import loop
from nextgpt.train.nano.models.autoencoder import LEARNING_RATE, losses, new_autoencoder, normalise_latents
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.sounds import SoundWorld, as_floats

VOCODER = GriffinLimVocoderConfig(upsample_rates=(256,), rounds=32)
WIDTHS = (16, 32, 64, 96)  # 1.8 M parameters
FRAMES = 128  # 2.048 seconds: the autoencoder halves three times
MEL_MEAN, MEL_STD = -6.4, 3.4  # over the world's sounds
MOST_SHIFT = 4  # frames by which a sound may come late in training
MOST_GAIN = 1.0  # in log units


@torch.no_grad()
def spectrograms(world: SoundWorld, rows: Tensor) -> Tensor:
    """Log-mel spectrograms `[N, 1, 128, 64]` of sounds given as indices, with silence behind."""
    return spectrograms_of(world.heard(rows)).to(rows.device)


@torch.no_grad()
def spectrograms_of(waveforms: Tensor) -> Tensor:
    """Log-mel spectrograms `[N, 1, 128, 64]` of waveforms `[N, samples]`, with silence behind."""
    waveforms = F.pad(waveforms, (0, FRAMES * VOCODER.hop_length - waveforms.shape[1]))
    mels = [
        log_mel_spectrogram(part, VOCODER.sampling_rate, VOCODER.hop_length, VOCODER.model_in_dim)[:, :FRAMES]
        for part in waveforms.split(64)
    ]
    return torch.cat(mels)[:, None]


def as_pictures(mels: Tensor) -> Tensor:
    """Log-mel spectrograms `[N, 1, 128, 64]` to look at, `[N, 3, 64, 128]`: time to the right, pitch upwards."""
    return ((mels - MEL_MEAN) / (6 * MEL_STD) + 0.5).expand(-1, 3, -1, -1).mT.flip(2)


@torch.no_grad()
def scale_to_mels(autoencoder: AutoencoderKL) -> None:
    """Lets a new autoencoder begin with inputs and outputs of a spectrogram's mean and deviation."""
    first, last = autoencoder.encoder.conv_in, autoencoder.decoder.conv_out
    first.weight /= MEL_STD
    first.bias -= first.weight.sum((1, 2, 3)) * MEL_MEAN
    last.weight *= MEL_STD
    last.bias += MEL_MEAN


@torch.no_grad()
def encode_all(autoencoder: AutoencoderKL, mels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of spectrograms, each `[N, 16, 16, 8]`."""
    posteriors = [autoencoder.encode(part).latent_dist for part in mels.split(32)]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


def main() -> None:
    """Trains, normalises the latents, measures and saves."""
    args = loop.arguments(__doc__.split("\n")[0], "sound_autoencoder", minutes=30, batch=128).parse_args()
    _, device = loop.start(args)
    world = SoundWorld(args.world)
    mels = spectrograms(world, world.rows("train").to(device))
    studies = spectrograms_of(as_floats(world.studies)).to(device)

    autoencoder = new_autoencoder(channels=1, widths=WIDTHS)
    scale_to_mels(autoencoder)
    autoencoder = autoencoder.to(device, memory_format=torch.channels_last)
    optimizer = loop.adamw([autoencoder], LEARNING_RATE, weight_decay=0.0)
    compute = torch.compile(losses) if args.compile else losses
    run = loop.Loop(args.out, args.minutes, optimizer, {"autoencoder": autoencoder}, args.start_from)
    for _ in run:
        batch = torch.cat([sampling.draw(mels, args.batch // 2), sampling.draw(studies, args.batch - args.batch // 2)])
        late = int(torch.randint(MOST_SHIFT + 1, ()))
        batch = F.pad(batch, (0, 0, late, 0), mode="replicate")[:, :, :FRAMES]
        batch = (batch + MOST_GAIN * (torch.rand(len(batch), 1, 1, 1, device=device) - 0.5)).clamp(min=mels.min())
        with loop.autocast(device):
            parts = compute(autoencoder, batch)
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch, **parts)

    autoencoder.eval()
    normalise_latents(autoencoder, encode_all(autoencoder, mels)[0])
    autoencoder.bfloat16().save_pretrained(args.out)
    autoencoder = AutoencoderKL.from_pretrained(args.out).float().to(device)
    dev = spectrograms(world, world.rows("dev").to(device))
    with torch.no_grad():
        decoded = autoencoder.decode(encode_all(autoencoder, dev)[0]).sample
    loop.save_contact_sheet([as_pictures(dev[:12]), as_pictures(decoded[:12])], run.work / "sheet.png")
    run.write_figures(
        args.out,
        parameters=loop.parameter_count(autoencoder),
        log_mel_error_dev=F.l1_loss(decoded, dev).item(),
        latent_noise=encode_all(autoencoder, dev)[1].mean().item(),
    )


if __name__ == "__main__":
    main()
