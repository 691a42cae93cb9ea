"""Makes and is the classifiers of pictures, sounds and clips, which say what a piece of media shows.

`python -m nextgpt.train.nano.evaluation.classifiers image --world runs/nano/world --out runs/nano/picture_classifier` (or
`audio`, `video`) trains one on true media of the training split and goes on from its last checkpoint when started again;
`--final` only measures it on the held-out split. No part of the model ever learns from a classifier.
"""

from __future__ import annotations

import argparse
import json
import logging
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.decoders.audioldm import log_mel_spectrogram
from nextgpt.train.nano.models import loop
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.clips import FRAMES, ClipRenderer, ClipWorld, KeptClips
from nextgpt.train.nano.world.pictures import Renderer, World
from nextgpt.train.nano.world.player import SAMPLES, SAMPLING_RATE
from nextgpt.train.nano.world.sampling import IGNORED
from nextgpt.train.nano.world.sounds import SoundWorld
from nextgpt.train.nano.world.spectrograms import BANDS, HOP, PARTS, SoundSet
from nextgpt.train.nano.world.unknown_pictures import UnknownClips, UnknownPictures, augment, augment_clips, turn_some

logger = logging.getLogger(__name__)

LEARNING_RATE = 2e-3
SMOOTHING = 0.05  # of the targets
UNKNOWN, NONE = "unknown", "none"  # a thing from outside the world; register and figure of an effect
UNKNOWN_SHARE = 1 / 8
BATCH = 32  # pieces that are read at once
WEIGHTS, CONFIG = "classifier.safetensors", "config.json"

PICTURE_MOVED = {"shift": 3, "stretch": 0.08}
LEARNED_FRAMES = 2  # of a clip, drawn at random: in training they stand for all
CLIP_SHIFT, CLIP_LOOKS = 3, 4  # pixels; styles and backgrounds in which each is learned
SCALE = 5.0  # what log energies are divided by


# -- networks ---------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """Reads the parts of what a piece of media shows; of the first one the last name is `UNKNOWN`.

    Args:
        labels: part → its names, as `{"concept": [..., "unknown"], "style": [...], ...}`.
        widths: part → width of the features that it is read from.
        shape: how the network is laid out, kept beside the weights.
    """

    default_shape: dict[str, Any]

    def __init__(self, labels: dict[str, list[str]], widths: dict[str, int], shape: dict[str, Any]):
        super().__init__()
        self.labels, self.shape = labels, shape
        self.heads = nn.ModuleDict({part: nn.Linear(widths[part], len(names)) for part, names in labels.items()})

    @abstractmethod
    def features(self, media: Tensor) -> dict[str, Tensor]:
        """Media `[N, ...]` → for each part, the features `[N, width]` that it is read from."""

    def forward(self, media: Tensor) -> dict[str, Tensor]:
        """Media `[N, ...]` → logits for each part."""
        features = self.features(media)
        return {part: head(features[part]) for part, head in self.heads.items()}

    @torch.no_grad()
    def numbers(self, media: Tensor) -> dict[str, Tensor]:
        """What each piece shows: part → the numbers of its names `[N]`."""
        logits = [self.eval()(part) for part in media.split(BATCH)]
        return {part: torch.cat([each[part] for each in logits]).argmax(1) for part in self.labels}

    def read(self, media: Tensor) -> list[dict[str, str]]:
        """What each piece shows, in words: part → name."""
        said = {part: numbers.tolist() for part, numbers in self.numbers(media).items()}
        return [{part: self.labels[part][said[part][n]] for part in self.labels} for n in range(len(media))]

    def save_pretrained(self, folder: Path) -> None:
        """Writes the configuration and the weights, these in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"labels": self.labels, "shape": self.shape}
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        weights = {name: v.bfloat16() if v.is_floating_point() else v for name, v in self.state_dict().items()}
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Classifier:
        """Reads what `save_pretrained` wrote."""
        config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        classifier = cls(config["labels"], config["shape"])
        classifier.load_state_dict(load_file(Path(folder) / WEIGHTS))
        return classifier.eval()


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions; halves height and width."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def blocks(channels: int, fold: int, widths: list[int]) -> nn.Sequential:
    """Folds `fold` × `fold` pixels into channels, then one block for each width."""
    each = [channels * fold**2, *widths]
    convolutions = [block(a, b) for a, b in zip(each, each[1:], strict=False)]
    return nn.Sequential(nn.PixelUnshuffle(fold), *convolutions) if fold > 1 else nn.Sequential(*convolutions)


def pool(features: Tensor) -> Tensor:
    """Mean and maximum over height and width: `[N, C, H, W]` → `[N, 2 C]`."""
    return torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)


class PictureClassifier(Classifier):
    """Reads concept (or `UNKNOWN`), style, background and size off pictures `[N, 3, 64, 64]` in 0..1."""

    default_shape = {"fold": 2, "widths": [64, 128, 256]}

    def __init__(self, labels: dict[str, list[str]], shape: dict[str, Any] | None = None):
        shape = shape or self.default_shape
        super().__init__(labels, dict.fromkeys(labels, 2 * shape["widths"][-1]), shape)
        self.blocks = blocks(3, **shape)

    def features(self, media: Tensor) -> dict[str, Tensor]:
        """Pictures → the same features for every part."""
        return dict.fromkeys(self.labels, pool(self.blocks(media * 2 - 1)))


@torch.no_grad()
def energies_of(waveforms: Tensor) -> Tensor:
    """Natural logarithms of energy over pitch and time, `[N, 80, 126]`, of waveforms `[N, 32000]`."""
    return 2 * log_mel_spectrogram(waveforms, SAMPLING_RATE, HOP, BANDS).mT


class SoundClassifier(Classifier):
    """Reads instrument (or `UNKNOWN`), register and figure (or `NONE`) off sounds."""

    default_shape = {"fold": 2, "widths": [64, 128, 256]}

    def __init__(self, labels: dict[str, list[str]], shape: dict[str, Any] | None = None):
        shape = shape or self.default_shape
        rows = BANDS // shape["fold"] >> len(shape["widths"])
        super().__init__(labels, dict.fromkeys(labels, 2 * shape["widths"][-1] * rows), shape)
        self.blocks = blocks(1, **shape)

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


class ClipClassifier(Classifier):
    """Reads concept (or `UNKNOWN`) and motion off clips `[N, 3, 8, 64, 64]` in 0..1.

    The thing is read off single frames, the motion off all frames and their differences, at half the resolution.
    """

    default_shape = {"fold": 2, "widths": [64, 128, 256], "motion_widths": [32, 64, 96]}

    def __init__(self, labels: dict[str, list[str]], shape: dict[str, Any] | None = None):
        shape = shape or self.default_shape
        widths = {"concept": 2 * shape["widths"][-1], "motion": 2 * shape["motion_widths"][-1]}
        super().__init__(labels, widths, shape)
        self.frame_blocks = blocks(3, shape["fold"], shape["widths"])
        self.motion_blocks = blocks(3 * (2 * FRAMES - 1), 1, shape["motion_widths"])

    def features(self, media: Tensor) -> dict[str, Tensor]:
        """Clips → features of the frames for the concept, of the changes for the motion."""
        media = media * 2 - 1
        frames = media.transpose(1, 2)  # [N, frames, 3, H, W]
        if self.training:
            chosen = torch.rand(frames.shape[:2], device=media.device).argsort(1)[:, :LEARNED_FRAMES]
            seen = frames[torch.arange(len(frames), device=media.device)[:, None], chosen]
        else:
            seen = frames
        pooled = pool(self.frame_blocks(seen.flatten(0, 1))).unflatten(0, seen.shape[:2]).mean(1)
        small = F.avg_pool2d(media.flatten(1, 2), 2).unflatten(1, (3, FRAMES))
        changes = torch.cat([small, small.diff(dim=2)], dim=2).flatten(1, 2)
        return {"concept": pooled, "motion": pool(self.motion_blocks(changes))}


# -- training and evaluation sets -------------------------------------------------------------------------------


class MediaSet:
    """True media of one split.

    Args:
        world: gives the folder of the world.
        split: "train", "dev" or "heldout".
        most: only so many of the things or sounds.
    """

    labels: dict[str, list[str]]

    @abstractmethod
    def __init__(self, world: World, split: str, most: int | None, device: torch.device): ...

    @abstractmethod
    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Augmented media and the numbers of their labels `[count, parts]`, to learn from."""

    @abstractmethod
    def draw_unknown(self, count: int) -> Tensor:
        """Augmented media from outside the world, to learn from."""

    @abstractmethod
    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """All true media, the numbers of their labels `[N, parts]`, and media from outside the world."""


class Pictures(MediaSet):
    """The pictures of one split."""

    def __init__(self, world: World, split: str, most: int | None, device: torch.device):
        self.renderer = Renderer(torch.from_numpy(world.art).to(device))
        self.rows = sampling.combinations(world, split, most, device)
        self.unknown = UnknownPictures(world, split, self.renderer, self.rows)
        self.labels = {
            "concept": [*world.names, UNKNOWN],
            "style": list(world.styles),
            "background": list(world.backgrounds),
            "size": list(world.sizes),
        }

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Some pictures."""
        chosen = sampling.draw(self.rows, count)
        return augment(self.renderer(chosen, **PICTURE_MOVED)), chosen

    def draw_unknown(self, count: int) -> Tensor:
        """Some from outside."""
        return augment(self.unknown(count, **PICTURE_MOVED))

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """All pictures."""
        return torch.cat([self.renderer(part) for part in self.rows.split(256)]), self.rows, self.unknown(200)


class Sounds(MediaSet):
    """The sounds of one split, as `energies_of` them."""

    def __init__(self, world: World, split: str, most: int | None, device: torch.device):
        sounds = SoundWorld(world.folder)
        self.sounds = SoundSet(sounds, split, energies_of, HOP / SAMPLING_RATE, device, most, none=True)
        names = ([*sounds.names, UNKNOWN], [*sounds.registers, NONE], [*sounds.figures, NONE])
        self.labels = dict(zip(PARTS, names, strict=True))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Some sounds."""
        return self.sounds.draw(count)

    def draw_unknown(self, count: int) -> Tensor:
        """Some from outside."""
        return self.sounds.draw_unknown(count)

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """All sounds."""
        return self.sounds.energies, self.sounds.targets, self.sounds.unknown


class Clips(MediaSet):
    """The clips of one split."""

    def __init__(self, world: World, split: str, most: int | None, device: torch.device):
        clips = ClipWorld(world)
        renderer = Renderer(torch.from_numpy(world.art).to(device))
        pictures = UnknownPictures(world, split, renderer, world.combinations(split).to(device))
        self.unknown = UnknownClips(pictures, clips)
        rows = clips.rows(split, most).to(device)
        looks = torch.cat([clips.vary(rows) for _ in range(CLIP_LOOKS)])
        self.kept = KeptClips(ClipRenderer(world, renderer), looks)
        self.labels = {"concept": [*world.names, UNKNOWN], "motion": list(clips.motions)}

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Some clips."""
        clips, targets = turn_some(*self.kept(count, CLIP_SHIFT))
        return augment_clips(clips), targets

    def draw_unknown(self, count: int) -> Tensor:
        """Some from outside."""
        return augment_clips(self.unknown(count))

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """All clips."""
        return self.kept.pixels.float() / 255, self.kept.rows[:, :2], self.unknown(100)


# -- training ---------------------------------------------------------------------------------------------------


def measure(classifier: Classifier, media: Tensor, targets: Tensor, unknown: Tensor) -> dict[str, float]:
    """Shares of right readings of true media, and of media from outside the world."""
    said = classifier.numbers(media)
    right = {part: said[part] == target for part, target in zip(classifier.labels, targets.T, strict=True)}
    first = next(iter(classifier.labels))
    right[UNKNOWN] = classifier.numbers(unknown)[first] == len(classifier.labels[first]) - 1
    return {name: round(each.float().mean().item(), 4) for name, each in right.items()}


def train(classifier: Classifier, taught: MediaSet, args: argparse.Namespace, device: torch.device) -> loop.Loop:
    """Trains for `args.minutes`, going on from the last checkpoint."""
    optimizer = loop.adamw([classifier], args.learning_rate, weight_decay=0.05)
    compute = torch.compile(classifier) if args.compile else classifier
    first = next(iter(taught.labels.values()))

    run = loop.Loop(args.out, args.minutes, optimizer, {"classifier": classifier}, args.start_from)
    for _ in run:
        media, targets = sampling.draw_mixed(taught, args.batch, UNKNOWN_SHARE, unknown=len(first) - 1)
        with loop.autocast(device):
            logits = compute(media)
        parts = {
            part: F.cross_entropy(logits[part].float(), target, ignore_index=IGNORED, label_smoothing=SMOOTHING)
            for part, target in zip(taught.labels, targets.T, strict=True)
        }
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch, **parts)
    return run


FOLDERS = {"image": "picture_classifier", "audio": "sound_classifier", "video": "clip_classifier"}
CLASSIFIERS: dict[str, type[Classifier]] = {
    "image": PictureClassifier,
    "audio": SoundClassifier,
    "video": ClipClassifier,
}
MEDIA_SETS: dict[str, type[MediaSet]] = {"image": Pictures, "audio": Sounds, "video": Clips}


def main() -> None:
    """Trains one and measures it on the development split, or with `--final` only measures it on the held-out one."""
    parser = loop.arguments(__doc__.split("\n")[0], FOLDERS, LEARNING_RATE)
    parser.add_argument("--final", action="store_true", help="only measure the saved one on the held-out split")
    args = parser.parse_args()
    kind, media_set = CLASSIFIERS[args.modality], MEDIA_SETS[args.modality]
    world, device = loop.start(args)
    if args.final:
        classifier = kind.from_pretrained(args.out).to(device)
        logger.info("held out: %s", measure(classifier, *media_set(world, "heldout", args.concepts, device).all()))
        return

    taught = media_set(world, "train", args.concepts, device)
    classifier = kind(taught.labels).to(device, memory_format=torch.channels_last)
    run = train(classifier, taught, args, device)
    classifier.save_pretrained(args.out)
    torch.manual_seed(0)
    figures = measure(classifier, *media_set(world, "dev", args.concepts, device).all())
    run.write_figures(args.out, parameters=loop.parameter_count(classifier), dev=figures)


if __name__ == "__main__":
    main()
