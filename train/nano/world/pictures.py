"""Builds the world of pictures: fetches the artwork, checks its licences, and renders any combination.

`python -m nextgpt.train.nano.world.pictures --out runs/nano/world` needs npm and Pillow. It knows names, pixels and
licences, and nothing of models. The concepts and their English are kept by hand in `concepts.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nextgpt.train.nano.world.split import split_of, split_of_names

logger = logging.getLogger(__name__)

CONCEPTS = Path(__file__).parent / "concepts.json"
SIDE = 64
# Softened, so that no artwork drowns in its background.
BACKGROUNDS = {
    "white": (250, 250, 250),
    "black": (28, 28, 32),
    "red": (214, 66, 66),
    "orange": (240, 150, 60),
    "yellow": (245, 220, 95),
    "green": (84, 168, 92),
    "blue": (72, 124, 214),
    "purple": (142, 88, 190),
}
SIZES = {"large": 58, "small": 34}  # side of the artwork, in pixels


class Source(NamedTuple):
    """An npm package: where its pictures lie, their licence, and the file and words of it that say so."""

    package: str
    pictures: str
    licence: str
    file: str
    words: str


STYLES = {
    "cartoon": Source(
        *("emoji-datasource-google", "img/google/64", "Apache-2.0 (Noto Emoji, Google)"),
        *("README.md", "Noto images, are available under the [Apache License 2.0]"),
    ),
    "flat": Source(
        *("emoji-datasource-twitter", "img/twitter/64", "CC-BY 4.0 (Twemoji, Twitter and contributors)"),
        *("README.md", "Twitter images are available under the [Creative Commons Attribution 4.0 license]"),
    ),
    "3d": Source(
        *("@lobehub/fluent-emoji-3d", "assets", "MIT (Fluent Emoji, Microsoft; packaged by LobeHub)"),
        *("package.json", '"license": "MIT"'),
    ),
}
NAMES = Source("emojibase-data", "", "MIT (emojibase, after Unicode CLDR)", "LICENSE", "MIT License")
OUTSIDE_CATEGORIES = ("Smileys & Emotion", "People & Body", "Flags", "Symbols")
# These hold cats, monkeys, bicycles, hands, hearts: too like things of the world to be outside it.
NOT_OUTSIDE = ("cat-face", "monkey-face", "person-sport", "person-activity", "hands", "hand-prop", "face-glasses", "heart")
LIKE_THE_WORLD = {"2620", "1f4a6"}  # so are a skull with crossed bones and drops of sweat


class World:
    """A built world: concepts, artwork and the pictures made of them.

    Args:
        folder: what `build` wrote.
    """

    styles = tuple(STYLES)
    backgrounds = tuple(BACKGROUNDS)
    sizes = tuple(SIZES)

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        described = json.loads((self.folder / "world.json").read_text(encoding="utf-8"))
        self.concepts = described["concepts"]
        self.clips: dict[str, list[str]] | None = described.get("clips")  # the styles and backgrounds of its clips
        self.names = [concept["name"] for concept in self.concepts]

    @cached_property
    def art(self) -> np.ndarray:
        """uint8 `[concept, style, 64, 64, 4]`, RGBA."""
        return np.load(self.folder / "art.npz")["art"]

    @cached_property
    def outside(self) -> np.ndarray:
        """uint8 `[picture, 64, 64, 4]`, RGBA: artwork of things that are not in the world."""
        return np.load(self.folder / "outside.npz")["art"]

    def outside_numbers(self, split: str) -> list[int]:
        """Which rows of `outside` belong to a split."""
        return [n for n in range(len(self.outside)) if split_of_names("outside", str(n)) == split]

    def combinations(self, split: str) -> Tensor:
        """All pictures of one split, as indices `[N, 4]`: concept, style, background, size."""
        rows = [
            (c, s, b, z)
            for c, concept in enumerate(self.names)
            for s, style in enumerate(self.styles)
            for b, background in enumerate(self.backgrounds)
            for z, size in enumerate(self.sizes)
            if split_of(concept, style, background, size) == split
        ]
        return torch.tensor(rows)

    @staticmethod
    def caption_of(concept: str, style: str, background: str, size: str) -> str:
        """The canonical caption of a picture."""
        return f"a {size} {concept}, {style} style, {background} background"

    def caption(self, combination: Sequence[int]) -> str:
        """The canonical caption of a picture given as indices."""
        c, s, b, z = (int(i) for i in combination)
        return self.caption_of(self.names[c], self.styles[s], self.backgrounds[b], self.sizes[z])

    def render(self, concept: str, style: str, background: str, size: str) -> np.ndarray:
        """One picture, uint8 `[64, 64, 3]`."""
        art = self.art[self.names.index(concept), self.styles.index(style)]
        return render_art(art, background, size)


def render_art(art: np.ndarray, background: str, size: str) -> np.ndarray:
    """Artwork uint8 `[64, 64, 4]` on a background, uint8 `[64, 64, 3]`."""
    renderer = Renderer(torch.from_numpy(art[None, None]))
    index = torch.tensor([[0, 0, list(BACKGROUNDS).index(background), list(SIZES).index(size)]])
    return renderer(index)[0].mul(255).round().byte().permute(1, 2, 0).numpy()


class Renderer:
    """Composes pictures from artwork on any device, by the batch.

    Args:
        art: uint8 `[concept, style, 64, 64, 4]`.
    """

    def __init__(self, art: Tensor):
        art = art.float().div(255).permute(0, 1, 4, 2, 3)
        self.art = torch.cat([art[:, :, :3] * art[:, :, 3:], art[:, :, 3:]], dim=2)  # premultiplied
        self.backgrounds = torch.tensor(list(BACKGROUNDS.values()), device=art.device) / 255

    def __call__(self, index: Tensor, shift: float = 0.0, stretch: float = 0.0, generator=None) -> Tensor:
        """Indices `[N, 4]` → pictures `[N, 3, 64, 64]` in 0..1, float32.

        Args:
            shift, stretch: move the artwork by up to so many pixels, scale it by up to such a share, at random.
        """
        sides = torch.tensor(list(SIZES.values()), device=index.device)[index[:, 3]].float()  # [N]
        if stretch:
            sides = sides * (1 + stretch * _uniform(len(index), index.device, generator))
        moved = torch.zeros(2, len(index), device=index.device)
        if shift:
            moved = torch.stack([shift * _uniform(len(index), index.device, generator) for _ in range(2)])
        return self.place(index, sides, *moved)

    def place(
        self,
        index: Tensor,
        sides: Tensor,
        right: Tensor,
        down: Tensor,
        turn: Tensor | None = None,
        colours: Tensor | None = None,
    ) -> Tensor:
        """Pictures `[N, 3, 64, 64]` in 0..1 of artwork anywhere; of the indices `[N, 4]` the size does not matter.

        Args:
            sides: of the artwork, `[N]`, in pixels.
            right, down: of its middle from the picture's, `[N]`, in pixels.
            turn: clockwise, `[N]`, in radians.
            colours: of the backgrounds, `[N, 3]` in 0..1, instead of those of the indices.
        """
        concept, style, background, _ = index.unbind(1)
        turn = torch.zeros_like(sides) if turn is None else turn
        scale, cos, sin = SIDE / sides, turn.cos(), turn.sin()
        x, y = right * 2 / SIDE, down * 2 / SIDE
        across = torch.stack([cos, sin, -(cos * x + sin * y)], dim=1)
        along = torch.stack([-sin, cos, sin * x - cos * y], dim=1)
        theta = torch.stack([across, along], dim=1) * scale[:, None, None]  # from the picture into the artwork
        grid = F.affine_grid(theta, (len(index), 4, SIDE * 2, SIDE * 2), align_corners=False)  # twice as fine:
        layers = F.grid_sample(self.art[concept, style], grid, align_corners=False)
        layers = F.avg_pool2d(layers, 2)  # averaging it down again avoids jagged small pictures
        colours = self.backgrounds[background] if colours is None else colours
        return layers[:, :3] + colours[:, :, None, None] * (1 - layers[:, 3:])


def _uniform(count: int, device, generator) -> Tensor:
    return torch.rand(count, device=device, generator=generator) * 2 - 1


# ---------------------------------------------------------------------- building


def build(out: Path) -> None:
    """Fetches the packages and writes `world.json`, `art.npz`, `outside.npz` and `ATTRIBUTION.md`."""
    concepts = json.loads(CONCEPTS.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        folders = {source.package: _fetch(source.package, Path(scratch)) for source in (*STYLES.values(), NAMES)}
        attribution = _attribution(folders)
        art = [[_artwork(folders, style, concept["codepoint"]) for style in STYLES] for concept in concepts]
        outside = _outside(folders, {_bare(concept["codepoint"]) for concept in concepts} | LIKE_THE_WORLD)
    world = {
        "concepts": concepts,
        "styles": list(STYLES),
        "backgrounds": {name: list(colour) for name, colour in BACKGROUNDS.items()},
        "sizes": SIZES,
        "clips": {"styles": list(STYLES), "backgrounds": list(BACKGROUNDS)},
    }
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "art.npz", art=np.array(art))
    np.savez_compressed(out / "outside.npz", art=np.stack(outside))
    (out / "ATTRIBUTION.md").write_text(attribution, encoding="utf-8")
    (out / "world.json").write_text(json.dumps(world, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    logger.info("%d concepts, %d pictures from outside, in %s", len(concepts), len(outside), out)


def _outside(folders: dict[str, Path], known: set[str]) -> list[np.ndarray]:
    """Artwork of faces, people, flags and symbols, each in one style."""
    entries = json.loads((folders["emoji-datasource-google"] / "emoji.json").read_text(encoding="utf-8"))
    wanted = [e for e in entries if e["category"] in OUTSIDE_CATEGORIES and e["subcategory"] not in NOT_OUTSIDE]
    choose = random.Random(0)
    artworks = (
        _artwork(folders, choose.choice(list(STYLES)), entry["unified"], required=False)
        for entry in sorted(wanted, key=lambda entry: entry["unified"])
        if _bare(entry["unified"]) not in known
    )
    return [artwork for artwork in artworks if artwork is not None]


def _fetch(package: str, scratch: Path) -> Path:
    """Downloads and unpacks an npm package; returns its folder."""
    printed = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=scratch, check=True, capture_output=True, text=True
    ).stdout
    archive = scratch / printed.split()[-1]
    folder = scratch / package.replace("/", "-")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def _bare(codepoint: str) -> str:
    return codepoint.lower().replace("-fe0f", "")


def _artwork(folders: dict[str, Path], style: str, codepoint: str, required: bool = True) -> np.ndarray | None:
    """uint8 `[64, 64, 4]`, from whichever spelling of the code point the package uses."""
    source = STYLES[style]
    for name in (codepoint.lower(), _bare(codepoint), f"{_bare(codepoint)}-fe0f"):
        for suffix in (".png", ".webp"):
            path = folders[source.package] / source.pictures / f"{name}{suffix}"
            if path.is_file():
                image = Image.open(path).convert("RGBA").convert("RGBa")  # premultiplied: clean edges when resized
                return np.array(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).convert("RGBA"))
    if required:
        raise FileNotFoundError(f"{source.package} has no picture for {codepoint}: take it out of {CONCEPTS.name}.")
    return None


def _attribution(folders: dict[str, Path]) -> str:
    """Who made what, under which licence; each licence is looked up in the package that was fetched."""
    lines = ["# Where the nano world comes from", ""]
    for what, source in [*((f"Pictures, {style}", source) for style, source in STYLES.items()), ("Names", NAMES)]:
        folder = folders[source.package]
        if source.words not in (folder / source.file).read_text(encoding="utf-8"):
            raise ValueError(
                f"{source.package}: {source.file} no longer says {source.words!r}; "
                "read the licence before using its pictures."
            )
        version = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
        lines.append(f"- {what}: {source.licence}, from the npm package {source.package} {version}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/nano/world"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    build(args.out)


if __name__ == "__main__":
    main()
