"""Makes the encoder's audio tower: a small ImageBind of which linear readings tell instrument, register and figure.

`python -m nextgpt.train.nano.models.audio_encoder --minutes 10` learns from the world's sounds and goes on from its last
checkpoint when started again. What it hears is what the encoder's own preprocessing computes. The readings are left
behind; `assemble` joins the tower with that of the pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextgpt.encoders import ImageBindConfig, preprocessor_for
from nextgpt.encoders.imagebind import ImageBind
from nextgpt.encoders.imagebind.processing import FRAME_SHIFT_MS
from nextgpt.train.nano.models import loop
from nextgpt.train.nano.models.encoder import EMBED_DIM, WEIGHT_DECAY
from nextgpt.train.nano.models.targets import TARGETS_WEIGHT, OrthogonalTargets, Probes, away_from
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.player import SAMPLES, SAMPLING_RATE, SECONDS
from nextgpt.train.nano.world.sampling import IGNORED
from nextgpt.train.nano.world.sounds import SoundWorld
from nextgpt.train.nano.world.spectrograms import PARTS, SoundSet

LEARNING_RATE = 1e-3
UNKNOWN_SHARE = 1 / 6
HOP = SAMPLING_RATE * FRAME_SHIFT_MS // 1000
FRAMES = 192  # 1.94 seconds; every figure has ended by then
SHORT_SHARE = 0.1  # of the sounds end early,
SHORTEST = 120  # but not before so many frames
FIGURE = PARTS.index("figure")
AUGMENTED = 8  # readings of each development sound, every time augmented in another way


def new_config(**changes) -> ImageBindConfig:
    """The configuration of the tower: two seconds are one clip of 4 × 12 patches, each 16 bands by 0.16 seconds."""
    return ImageBindConfig(
        **{
            "towers": ("audio",),
            "out_embed_dim": EMBED_DIM,
            "audio_kernel_size": 16,
            "audio_stride": 16,
            "audio_num_mel_bins": 64,
            "audio_target_len": FRAMES,
            "audio_window_ms": 64,  # in 25 ms a low chord looks like one of its notes
            "audio_clips": 1,
            "audio_clip_seconds": int(SECONDS),
            "audio_mean": -3.9,  # over the world's sounds
            "audio_std": 5.4,
            "audio_logit_scale": 1.0,  # as long as a picture's, for both go through one input projection
            "audio_embed_dim": 192,
            "audio_num_blocks": 4,
            "audio_num_heads": 6,
        }
        | changes
    )


def energies_of(waveforms: Tensor) -> Tensor:
    """What the encoder's preprocessing computes of sounds, before it normalises: `[N, 32000]` → `[N, 64, 192]`.

    All sounds go through it as one long one; the few windows that reach from one into the next are not kept.
    """
    count, every = len(waveforms), SAMPLES // HOP
    config = new_config(audio_target_len=count * every, audio_clip_seconds=count * SECONDS, audio_mean=0.0, audio_std=1.0)
    long = preprocessor_for(config).audio(waveforms.flatten().cpu().numpy(), SAMPLING_RATE)  # [1, 1, 64, N * 200]
    return long[0, 0].unflatten(1, (count, every))[..., :FRAMES].transpose(0, 1).contiguous()


def end_early(energies: Tensor) -> Tensor:
    """`energies_of` sounds `[N, 64, 192]`, some of them short: there the preprocessing fills up with zeros."""
    chance = torch.rand(2, len(energies), 1, 1, device=energies.device)
    ends = torch.where(chance[0] < SHORT_SHARE, SHORTEST + chance[1] * (FRAMES - SHORTEST), FRAMES)
    return energies.where(torch.arange(FRAMES, device=energies.device) < ends, 0.0)


def no_figure(targets: Tensor, value: int) -> Tensor:
    """Targets `[N, 3]` (`PARTS`) where what has a register and no figure, a phrase of loose notes, has `value` for it.

    Otherwise an instrument whose one held sound is a note would be heard as a note when it plays a chord.
    """
    told = targets.clone()
    told[(targets[:, PARTS.index("register")] != IGNORED) & (targets[:, FIGURE] == IGNORED), FIGURE] = value
    return told


class AudioTower(nn.Module):
    """Tower and probes as one network, with the training loss."""

    def __init__(self, tower: ImageBind, probes: Probes):
        super().__init__()
        self.tower, self.probes = tower, probes

    def embed_energies(self, energies: Tensor) -> Tensor:
        """Of `energies_of` sounds, `[N, 64, 192]` → embeddings `[N, 256]`."""
        config = self.tower.config
        return self.tower.embed("audio", (energies[:, None, None] - config.audio_mean) / config.audio_std)

    def forward(self, energies: Tensor, targets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Parts of the loss, and the embeddings `[N, 256]`.

        Args:
            energies: `energies_of` sounds.
            targets: what they are, `[N, 3]` (`PARTS`), `IGNORED` for nothing.
        """
        heard = self.embed_energies(energies)
        return self.probes.losses(heard.float(), targets), heard


@torch.no_grad()
def measure(network: AudioTower, energies: Tensor, targets: Tensor, unknown: Tensor) -> dict[str, float]:
    """Shares of right readings of sounds, and of sounds from outside the world."""

    def read(some: Tensor) -> dict[str, Tensor]:
        read = [network.probes(network.embed_energies(part)) for part in some.split(64)]
        logits = {part: torch.cat([each[part] for each in read]) for part in PARTS}
        logits["figure"] = logits["figure"][:, :-1]  # what is measured has one
        return {part: each.argmax(1) for part, each in logits.items()}

    said = read(energies)
    figures = {part: (said[part] == target).float().mean().item() for part, target in zip(PARTS, targets.T, strict=True)}
    last = network.probes.heads["instrument"].out_features - 1
    figures["unknown"] = (read(unknown)["instrument"] == last).float().mean().item()
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    """Trains, measures and saves the audio tower."""
    parser = loop.arguments(__doc__.split("\n")[0], "audio_encoder", LEARNING_RATE, loop.HIDDEN_RATE)
    args = parser.parse_args()
    _, device = loop.start(args)
    world = SoundWorld(args.world)

    def sounds_of(split: str) -> SoundSet:
        return SoundSet(world, split, energies_of, HOP / SAMPLING_RATE, device, args.concepts)

    taught = sounds_of("train")
    sizes = {"instrument": len(world.names) + 1, "register": len(world.registers), "figure": len(world.figures)}
    probes = Probes(sizes | {"figure": len(world.figures) + 1}, EMBED_DIM, scale=EMBED_DIM**0.5)
    network = AudioTower(ImageBind(new_config()), probes).to(device)
    first = EMBED_DIM - sum(sizes.values())  # the vision tower takes the first ones
    loop.PatchProjection.replace_in(network)
    sums = OrthogonalTargets(sizes, EMBED_DIM, first).to(device)
    optimizer = loop.muon([network], [network.tower.modality_trunks], args.learning_rate, WEIGHT_DECAY, args.hidden_rate)
    compute = torch.compile(network) if args.compile else network
    run = loop.Loop(args.out, args.minutes, optimizer, {"network": network}, args.start_from)
    for _ in run:
        energies, targets = sampling.draw_mixed(taught, args.batch, UNKNOWN_SHARE, unknown=len(world.names))
        with loop.autocast(device):
            parts, heard = compute(end_early(energies), no_figure(targets, len(world.figures)))
            parts["sums"] = TARGETS_WEIGHT * away_from(sums(targets), heard)
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch, **parts)

    network.eval()
    torch.manual_seed(0)
    dev = sounds_of("dev")
    figures = {"dev": measure(network, dev.energies, dev.targets, dev.unknown)}
    energies, targets, unknown = (some.repeat_interleave(AUGMENTED, 0) for some in (dev.energies, dev.targets, dev.unknown))
    figures["dev_augmented"] = measure(network, dev.augment(energies), targets, dev.augment(unknown))
    network.tower.bfloat16().save_pretrained(args.out)
    run.write_figures(args.out, parameters=loop.parameter_count(network.tower), **figures)


if __name__ == "__main__":
    main()
