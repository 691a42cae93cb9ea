"""Renders the media of the demo's examples from the nano world: a picture, a sound and a clip.

`python -m nextgpt.train.nano.examples` writes them to `demo/examples`, from the world inside the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nextgpt.hub.parts import preset_folder
from nextgpt.media import save_media
from nextgpt.train.nano.world.clips import Clip
from nextgpt.train.nano.world.media_files import TrueMedia
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.sounds import Sound
from nextgpt.train.nano.world.things import Picture

PICTURE, CLIP = Picture("bell", "3d", "blue"), Clip("cat", "bouncing")
SOUND = Sound("violin", "high", "rising scale")  # a held-out one: the package holds no others


def render(folder: Path, out: Path) -> None:
    """Writes `bell.png`, `violin.flac` and `cat.mp4`.

    Args:
        folder: of the world.
        out: where the files go.
    """
    true = TrueMedia(World(folder), "dev")
    for medium, name in ((PICTURE, "bell.png"), (SOUND, "violin.flac"), (CLIP, "cat.mp4")):
        save_media(true.render(medium), out / name)


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
