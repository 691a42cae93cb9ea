"""Renders the media of the demo's examples from the nano world: a picture, a sound and a clip.

`python -m nextgpt.train.nano.examples` writes them to `demo/examples`, from the world inside the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from nextgpt.decoders import Audio
from nextgpt.events import save_media
from nextgpt.hub.parts import preset_folder
from nextgpt.train.nano.world.clips import Clip, ClipRenderer, ClipWorld
from nextgpt.train.nano.world.media_files import as_video
from nextgpt.train.nano.world.pictures import Renderer, World
from nextgpt.train.nano.world.sounds import SAMPLING_RATE, Sound, SoundWorld
from nextgpt.train.nano.world.things import Picture

PICTURE, CLIP = Picture("bell", "3d", "blue"), Clip("cat", "bouncing")
SOUND = Sound("violin", "high", "rising scale")  # a held-out one: the package holds no others


def render(folder: Path, out: Path) -> None:
    """Writes `bell.png`, `violin.flac` and `cat.mp4`.

    Args:
        folder: of the world.
        out: where the files go.
    """
    world = World(folder)
    Image.fromarray(world.render(*PICTURE)).save(out / f"{PICTURE.concept}.png")
    save_media(Audio(SoundWorld(folder).waveform(SOUND), SAMPLING_RATE), out / f"{SOUND.name}.flac")
    clips = ClipWorld(world)
    row = torch.tensor([[world.names.index(CLIP.concept), clips.motions.index(CLIP.motion)]])
    frames = ClipRenderer(world, Renderer(torch.from_numpy(world.art)))(row)[0]
    save_media(as_video(frames), out / f"{CLIP.concept}.mp4")


def main() -> None:
    """Renders them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", type=Path, help="by default the one inside the package")
    parser.add_argument("--out", type=Path, default=Path("demo/examples"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    render(args.world or preset_folder("nano") / "world", args.out)


if __name__ == "__main__":
    main()
