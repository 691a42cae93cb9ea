"""Sounds as log-mel spectrograms; true and unknown ones to learn from, augmented and transposed, and studies.

There are few combinations, and they are easily learned by heart. So of what there is to learn from an eighth are sounds
transposed, of which only the figure can be told, and three quarters are studies (`sounds.studies`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nextgpt.decoders.audioldm import log_mel_spectrogram
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.player import SAMPLING_RATE
from nextgpt.train.nano.world.sampling import IGNORED
from nextgpt.train.nano.world.sounds import SoundWorld
from nextgpt.train.nano.world.unknown_sounds import UnknownSounds
from nextgpt.train.nano.world.waveforms import in_parts

PARTS = ("instrument", "register", "figure")
LATE = 0.12  # seconds by which a sound may come late
TEMPO = (0.88, 1.12)
TUNING = 1  # bands
LOST = 0.2  # of the bands, at most
TOGETHER = 64  # sounds of which energies are computed at once
BANDS, HOP = 80, 256  # bands, and samples from frame to frame: with fewer the classifier mistakes one instrument in ten
FRAMES = 160  # 2.56 seconds, two squares of 80 bands: silence behind
MEL_MEAN, MEL_STD = -5.5, 3.1  # of log-mel spectrograms, over the world's sounds


@torch.no_grad()
def log_mels(waveforms: Tensor) -> Tensor:
    """Log-mel spectrograms `[N, 1, 160, 80]` of waveforms `[N, 32000]`, with silence behind."""
    waveforms = F.pad(waveforms, (0, FRAMES * HOP - waveforms.shape[1]))
    mels = [log_mel_spectrogram(part, SAMPLING_RATE, HOP, BANDS)[:, :FRAMES] for part in waveforms.split(TOGETHER)]
    return torch.cat(mels)[:, None]


def as_pictures(mels: Tensor) -> Tensor:
    """Log-mel spectrograms `[N, 1, 160, 80]` to look at, `[N, 3, 80, 160]`: time to the right, pitch upwards."""
    return ((mels - MEL_MEAN) / (6 * MEL_STD) + 0.5).expand(-1, 3, -1, -1).mT.flip(2)


class SoundSet:
    """The sounds of one split.

    Args:
        world: of sounds.
        split: "train", "dev" or "heldout".
        energies_of: waveforms `[N, 32000]` → natural logarithms of energy over pitch and time, `[N, bands, frames]`.
        frame_seconds: from one frame to the next.
        most: only so many instruments and effects.
        none: whether the register and the figure of an effect are to be told as one more value, the last.
    """

    def __init__(
        self,
        world: SoundWorld,
        split: str,
        energies_of: Callable[[Tensor], Tensor],
        frame_seconds: float,
        device: torch.device,
        most: int | None = None,
        none: bool = False,
    ):
        def energies(waveforms: Tensor) -> Tensor:
            return torch.cat([energies_of(part) for part in waveforms.split(TOGETHER)]).to(device)

        rows = world.rows(split, most)
        waveforms, targets = world.heard(rows), world.targets(rows, IGNORED)
        if split != "train":  # in training the other takes are among the studies
            takes = [take for take in world.takes if take.split == split and take.name in world.names[:most]]
            waveforms = torch.cat([waveforms, *(torch.from_numpy(world.waveform(take))[None] for take in takes)])
            targets = torch.cat([targets, world.numbers(takes, IGNORED)])
        self.energies, self.unknown = energies(waveforms), energies(UnknownSounds(world, split).waveforms())
        self.targets = targets.to(device)
        if none:
            last = torch.tensor([len(world.names), len(world.registers), len(world.figures)], device=device)
            self.targets = self.targets.where(self.targets != IGNORED, last)
        self.silence = self.energies.min().item()
        self.late = int(LATE / frame_seconds)
        if split == "train":
            targets = world.study_targets(IGNORED)
            kept = targets[:, 0] < (most or len(world.names))
            self.studies, self.study_targets = in_parts(energies, world.studies[kept]), targets[kept].to(device)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Of the training split: sounds and studies `[count, bands, frames]`, and what they are `[count, 3]` (`PARTS`).

        `IGNORED` stands for what is not told.
        """
        quarter, eighth = count // 4, count // 8
        chosen = sampling.draw_evenly(self.targets[:, 0], quarter)
        studies = torch.randint(len(self.studies), (count - quarter,), device=chosen.device)
        moved = transpose(self.energies[chosen[:eighth]])
        untold = self.targets[chosen[:eighth]].clone()
        untold[:, :2] = IGNORED
        energies = torch.cat([moved, self.energies[chosen[eighth:]], self.studies[studies]])
        return self.augment(energies), torch.cat([untold, self.targets[chosen[eighth:]], self.study_targets[studies]])

    def draw_unknown(self, count: int) -> Tensor:
        """Sounds from outside the world to learn from, `[count, bands, frames]`."""
        return self.augment(begin_anywhere(sampling.draw(self.unknown, count)))

    def augment(self, energies: Tensor) -> Tensor:
        """`augment` with what belongs to these sounds."""
        return augment(energies, self.silence, self.late)


def uniform(low: float, high: float, energies: Tensor, *shape: int) -> Tensor:
    """Numbers between two, `[N, *shape]` for N spectrograms; `[N, 1, 1]` without a shape."""
    return low + (high - low) * torch.rand(len(energies), *(shape or (1, 1)), device=energies.device)


def tone(most: float, energies: Tensor) -> Tensor:
    """A smooth colouring, `[N, bands, 1]`, of at most so much either way."""
    return F.interpolate(uniform(-most, most, energies, 1, 6), energies.shape[1], mode="linear", align_corners=True).mT


def transpose(energies: Tensor) -> Tensor:
    """Each spectrogram `[N, bands, frames]` moved up or down by up to a quarter of the bands, and coloured anew."""
    most = energies.shape[1] // 4
    moved = torch.randint(-most, most + 1, (len(energies), 1), device=energies.device)
    return move_bands(energies, moved) + tone(2.5, energies)


def move_bands(energies: Tensor, by: Tensor) -> Tensor:
    """Each spectrogram `[N, bands, frames]` moved down by so many bands, `[N, 1]`; the last one is repeated."""
    places = (torch.arange(energies.shape[1], device=energies.device) + by).clamp(0, energies.shape[1] - 1)
    return energies.gather(1, places[:, :, None].expand_as(energies))


def begin_anywhere(energies: Tensor) -> Tensor:
    """Each spectrogram `[N, bands, frames]` begun anywhere in it; what was before follows its end."""
    frames = energies.shape[2]
    begins = torch.randint(frames, (len(energies), 1), device=energies.device)
    places = (torch.arange(frames, device=energies.device) + begins) % frames
    return energies.gather(2, places[:, None].expand_as(energies))


def augment(energies: Tensor, silence: float, late: int) -> Tensor:
    """Loudness, tone, sharpness, noise, tempo, tuning and begin as in sounds that are not quite true; some bands are lost.

    Args:
        energies: natural logarithms of energy over pitch and time, `[N, bands, frames]`.
        silence: their least value.
        late: frames by which a sound may come late, with silence before it.
    """
    places = torch.arange(energies.shape[2], device=energies.device) - uniform(0, late + 1, energies, 1).long()
    places = (places * uniform(*TEMPO, energies, 1)).round().long()
    energies = energies.gather(2, places.clamp(0, energies.shape[2] - 1)[:, None].expand_as(energies))
    energies = energies.where((places >= 0)[:, None], silence)
    energies = move_bands(energies, torch.randint(-TUNING, TUNING + 1, (len(energies), 1), device=energies.device))
    bands = torch.arange(energies.shape[1], device=energies.device)[:, None]
    first = uniform(-LOST * energies.shape[1], energies.shape[1], energies)
    lost = (bands >= first) & (bands < first + uniform(0, LOST * energies.shape[1], energies))
    energies = energies.where(~lost, silence)
    blurred = F.avg_pool2d(F.pad(energies, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    energies = energies.lerp(blurred, uniform(0, 0.7, energies))
    energies = energies + uniform(-0.4, 0.4, energies).clamp(min=0) * torch.randn_like(energies)
    noise = energies.amax((1, 2), keepdim=True) - uniform(7, 30, energies) + 0.7 * torch.randn_like(energies)
    # The colouring is about 4 decibels, and the sound up to 12 softer.
    return (energies + tone(1, energies)).logaddexp(noise) + uniform(-2.8, 0.2, energies)
