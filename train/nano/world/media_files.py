"""Writes the media of the nano dialogues: the world's pictures, sounds and clips, and some from outside the world.

Knows where each file lies and what is in it; the dialogues only name the files.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from nextgpt.decoders import Audio, Video
from nextgpt.events import Media
from nextgpt.media import save_media
from nextgpt.train.nano.world.clips import FPS, MOTIONS, Clip, ClipRenderer, ClipWorld
from nextgpt.train.nano.world.pictures import BACKGROUNDS, SIZES, Renderer, World, render_art
from nextgpt.train.nano.world.player import SAMPLING_RATE
from nextgpt.train.nano.world.sounds import Sound, SoundWorld
from nextgpt.train.nano.world.split import split_of_names
from nextgpt.train.nano.world.things import Medium, Picture, path_of
from nextgpt.train.nano.world.unknown_sounds import UnknownSounds

logger = logging.getLogger(__name__)

OUTSIDE_CLIPS = 1  # of each artwork from outside the world
OUTSIDE_SOUNDS = 400  # at most


def outside_pictures(world: Path, split: str) -> dict[str, tuple[int, str, str]]:
    """Path → artwork's number, background and size, for the pictures of things from outside the world."""
    count = len(World(world).outside)
    rng, pictures = random.Random(0), {}
    for number, _ in itertools.product(range(count), range(3)):
        background, size = rng.choice(list(BACKGROUNDS)), rng.choice(list(SIZES))
        if split_of_names("outside", str(number)) == split:
            pictures[f"images/outside/{number}_{background}_{size}.png"] = (number, background, size)
    return pictures


def outside_clips(world: Path, split: str) -> dict[str, tuple[int, str]]:
    """Path → artwork's number and motion, for the clips of things from outside the world."""
    rng, clips = random.Random(0), {}
    for number in World(world).outside_numbers(split):
        for motion in rng.sample(list(MOTIONS), OUTSIDE_CLIPS):
            clips[f"clips/outside/{number}_{motion.replace(' ', '_')}.mp4"] = (number, motion)
    return clips


def outside_sounds(world: Path, split: str) -> dict[str, int]:
    """Path → index among the unknown sounds of the split, for the sounds from outside the world."""
    count = min(OUTSIDE_SOUNDS, len(UnknownSounds(SoundWorld(world), split)))
    return {f"sounds/outside/{split}_{index}.wav": index for index in range(count)}


def outside_files(world: Path, split: str, media: Collection[str]) -> list[str]:
    """The paths of all media from outside the world."""
    paths = list(outside_pictures(world, split))
    if "audio" in media:
        paths += outside_sounds(world, split)
    if "video" in media:
        paths += outside_clips(world, split)
    return paths


# -- what is in the files -----------------------------------------------------------------------------------------


def _pictures(world: World, split: str) -> Iterator[tuple[str, Image.Image]]:
    renderer = Renderer(torch.from_numpy(world.art))
    for rows in world.combinations(split).split(256):
        for (c, s, b, z), pixels in zip(rows.tolist(), renderer(rows), strict=True):
            picture = Picture(world.names[c], world.styles[s], world.backgrounds[b], world.sizes[z])
            yield path_of(picture), Image.fromarray(pixels.mul(255).round().byte().permute(1, 2, 0).numpy())
    for path, (number, background, size) in outside_pictures(world.folder, split).items():
        yield path, Image.fromarray(render_art(world.outside[number], background, size))


def _sounds(world: World, split: str) -> Iterator[tuple[str, Audio]]:
    sounds = SoundWorld(world.folder)
    for sound in (*(sounds.combinations[row] for row in sounds.rows(split)), *sounds.takes):
        if sound.split == split:
            yield path_of(sound), Audio(sounds.waveform(sound), SAMPLING_RATE)
    unknown = UnknownSounds(sounds, split)
    for path, index in outside_sounds(world.folder, split).items():
        yield path, Audio(unknown.waveform(index), SAMPLING_RATE)


def _clips(world: World, split: str) -> Iterator[tuple[str, Video]]:
    clips = ClipWorld(world)
    renderer = ClipRenderer(world, Renderer(torch.from_numpy(world.art)))
    for clip in (clip for clip in clips.combinations if clip.split == split):
        shown = clip.in_looks(clips.looks)
        for each, frames in zip(shown, renderer(torch.tensor([clips.row(each) for each in shown])), strict=True):
            yield path_of(each), as_video(frames)
    for path, (number, motion) in outside_clips(world.folder, split).items():
        yield path, outside_clip(world, number, motion)


def as_video(frames: torch.Tensor) -> Video:
    """A clip `[3, 8, 64, 64]` in 0..1."""
    return Video(frames.mul(255).round().byte().permute(1, 2, 3, 0).numpy(), FPS)


def outside_clip(world: World, number: int, motion: str) -> Video:
    """Artwork from outside the world, in motion."""
    renderer = ClipRenderer(world, Renderer(torch.from_numpy(world.outside[number][None, None])), style=0)
    return as_video(renderer(torch.tensor([[0, list(MOTIONS).index(motion)]]))[0])


class TrueMedia:
    """The true media of a built world, one at a time.

    Args:
        world: what the pictures are rendered from; its folder holds the sounds.
        split: whose media from outside the world.
    """

    def __init__(self, world: World, split: str):
        self.world, self.split = world, split

    @cached_property
    def _sounds(self) -> SoundWorld:
        return SoundWorld(self.world.folder)

    @cached_property
    def _clips(self) -> ClipWorld:
        return ClipWorld(self.world)

    @cached_property
    def _renderer(self) -> ClipRenderer:
        return ClipRenderer(self.world, Renderer(torch.from_numpy(self.world.art)))

    def holds(self, medium: Medium) -> bool:
        """Whether the world's folder can render a medium: of the sounds the package holds what no part learned from."""
        return not isinstance(medium, Sound) or self._sounds.holds(medium)

    def render(self, medium: Medium) -> Media:
        """The true picture, sound or clip of a combination."""
        match medium:
            case Picture():
                return Image.fromarray(self.world.render(*medium))
            case Sound():
                return Audio(self._sounds.waveform(medium), SAMPLING_RATE)
            case Clip():
                return as_video(self._renderer(torch.tensor([self._clips.row(medium)]))[0])

    def outside(self, path: str) -> Media:
        """A medium from outside the world, by its path (`outside_files`)."""
        match path.split("/")[0]:
            case "images":
                number, background, size = self._outside_pictures[path]
                return Image.fromarray(render_art(self.world.outside[number], background, size))
            case "sounds":
                index = self._outside_sounds[path]
                return Audio(UnknownSounds(self._sounds, self.split).waveform(index), SAMPLING_RATE)
            case _:
                return outside_clip(self.world, *self._outside_clips[path])

    @cached_property
    def _outside_pictures(self) -> dict[str, tuple[int, str, str]]:
        return outside_pictures(self.world.folder, self.split)

    @cached_property
    def _outside_sounds(self) -> dict[str, int]:
        return outside_sounds(self.world.folder, self.split)

    @cached_property
    def _outside_clips(self) -> dict[str, tuple[int, str]]:
        return outside_clips(self.world.folder, self.split)


def save_exactly(video: Video, path: Path) -> None:
    """Writes a clip as MP4 without loss; what `save_media` writes for people blurs such small pictures."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=int(video.fps), options={"qp": "0", "threads": "1"})
        stream.height, stream.width = video.frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        for frame in video.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def write(medium: Media, path: Path) -> None:
    """Writes a picture, a sound or a clip so that it is read again as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(medium, Video):
        save_exactly(medium, path)
    else:
        save_media(medium, path)


MAKERS = {"image": _pictures, "audio": _sounds, "video": _clips}


def write_files(world: Path, out: Path, media: Collection[str]) -> None:
    """Writes every picture (PNG), sound (16-bit WAV) and clip (MP4) of the training and development splits."""
    built = World(world)
    for modality, split in itertools.product(media, ("train", "dev")):
        count = 0
        for path, medium in MAKERS[modality](built, split):
            write(medium, out / path)
            count += 1
        logger.info("%s, %s: %d files in %s", modality, split, count, out)
