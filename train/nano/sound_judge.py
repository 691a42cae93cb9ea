"""Makes and is the judge of sounds: a small classifier that learns from true sounds of the world alone.

`python -m nextgpt.train.nano.sound_judge --minutes 4` trains it on the training split and goes on from its last
checkpoint when started again; `--final` only measures it on the held-out sounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextgpt.decoders.audioldm import log_mel_spectrogram
from nextgpt.train.nano import judges, loop
from nextgpt.train.nano.judges import UNKNOWN, MediaJudge
from nextgpt.train.nano.sounds import SAMPLES, SAMPLING_RATE, SoundWorld
from nextgpt.train.nano.unknown_sounds import UnknownSounds, begin_anywhere, disturb
from nextgpt.train.nano.world import World

NONE = "none"  # register and figure of an effect
WIDTHS = (24, 48, 96, 128)
BANDS = 80
HOP = 256  # samples
LATE = 8  # frames
SCALE = 5.0  # of the log energies


@torch.no_grad()
def energies_of(waveforms: Tensor) -> Tensor:
    """Natural logarithms of energy over pitch and time, `[N, 80, 126]`, of waveforms `[N, 32000]`."""
    return torch.cat([2 * log_mel_spectrogram(part, SAMPLING_RATE, HOP, BANDS).mT for part in waveforms.split(64)])


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
        rows = sounds.rows(split, most)
        self.energies = energies_of(sounds.heard(rows)).to(device)
        self.unknown = energies_of(UnknownSounds(sounds, split).waveforms()).to(device)
        self.silence = self.energies.min().item()
        self.labels = {
            "instrument": [*sounds.names, UNKNOWN],
            "register": [*sounds.registers, NONE],
            "figure": [*sounds.figures, NONE],
        }
        nothing = torch.tensor([len(names) - 1 for names in self.labels.values()])
        targets = sounds.targets(rows, judges.IGNORED)
        self.targets = targets.where(targets != judges.IGNORED, nothing).to(device)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Some sounds, as `Lessons` says."""
        chosen = loop.draw_evenly(self.targets[:, 0], count)
        return disturb(self.energies[chosen], self.silence, LATE), self.targets[chosen]

    def draw_unknown(self, count: int) -> Tensor:
        """Some from outside, as `Lessons` says."""
        return disturb(begin_anywhere(loop.draw(self.unknown, count)), self.silence, LATE)

    def exam(self) -> tuple[Tensor, Tensor, Tensor]:
        """All sounds, as `Lessons` says."""
        return self.energies, self.targets, self.unknown


if __name__ == "__main__":
    judges.main(__doc__.split("\n")[0], "sound_judge", SoundJudge, Sounds, minutes=4, batch=512)
