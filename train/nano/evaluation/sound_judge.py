"""Makes and is the judge of sounds: a small classifier that learns from true sounds of the world's instruments alone.

`python -m nextgpt.train.nano.evaluation.sound_judge --minutes 4` trains it on the training split and goes on from its last
checkpoint when started again; `--final` only measures it on the held-out sounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextgpt.decoders.audioldm import log_mel_spectrogram
from nextgpt.train.nano.evaluation import judges
from nextgpt.train.nano.evaluation.judges import UNKNOWN, MediaJudge
from nextgpt.train.nano.models.sound_lessons import PARTS, SoundLessons
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.sounds import SAMPLES, SAMPLING_RATE, SoundWorld

NONE = "none"  # register and figure of an effect
WIDTHS = (24, 48, 96, 128)
BANDS = 80
HOP = 256  # samples
SCALE = 5.0  # of the log energies


@torch.no_grad()
def energies_of(waveforms: Tensor) -> Tensor:
    """Natural logarithms of energy over pitch and time, `[N, 80, 126]`, of waveforms `[N, 32000]`."""
    return 2 * log_mel_spectrogram(waveforms, SAMPLING_RATE, HOP, BANDS).mT


class SoundJudge(MediaJudge):
    """Reads instrument (or `UNKNOWN`), register and figure (or `NONE`) off sounds; 0.4 M parameters.

    Args:
        labels: part → its names, as `{"instrument": [..., "unknown"], "register": [..., "none"], ...}`.
    """

    def __init__(self, labels: dict[str, list[str]]):
        super().__init__(labels, dict.fromkeys(labels, 2 * WIDTHS[-1] * (BANDS >> len(WIDTHS))))
        self.blocks = judges.blocks(1, *WIDTHS)

    def features(self, media: Tensor) -> dict[str, Tensor]:
        """Of `energies_of` sounds → the same features for every part; loudness does not count."""
        loudest = media.amax((1, 2), keepdim=True)
        found = self.blocks((media - loudest)[:, None] / SCALE + 2)  # [N, C, pitch, time]
        pooled = torch.cat([found.mean(3), found.amax(3)], dim=1).flatten(1)  # over time alone: the pitch counts
        return dict.fromkeys(self.labels, pooled)

    def read(self, media: Tensor) -> list[dict[str, str]]:
        """What each of the waveforms `[N, 32000]` at 16 kHz is, in words: part → name.

        Raises:
            ValueError: when they have another shape.
        """
        if media.ndim != 2 or media.shape[1] != SAMPLES:
            raise ValueError(f"waveforms are {list(media.shape)}, expected [N, {SAMPLES}]: two seconds at 16 kHz.")
        return super().read(energies_of(media))


class Sounds(judges.Lessons):
    """The sounds of one split, as `energies_of` them."""

    def __init__(self, world: World, split: str, most: int | None, device: torch.device):
        sounds = SoundWorld(world.folder)
        self.sounds = SoundLessons(sounds, split, energies_of, HOP / SAMPLING_RATE, device, most, none=True)
        names = ([*sounds.names, UNKNOWN], [*sounds.registers, NONE], [*sounds.figures, NONE])
        self.labels = dict(zip(PARTS, names, strict=True))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Some sounds, as `Lessons` says."""
        return self.sounds.draw(count)

    def draw_unknown(self, count: int) -> Tensor:
        """Some from outside, as `Lessons` says."""
        return self.sounds.draw_unknown(count)

    def exam(self) -> tuple[Tensor, Tensor, Tensor]:
        """All sounds, as `Lessons` says."""
        return self.sounds.energies, self.sounds.targets, self.sounds.unknown


if __name__ == "__main__":
    judges.main(__doc__.split("\n")[0], "sound_judge", SoundJudge, Sounds, minutes=4, batch=512)
