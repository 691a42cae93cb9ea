"""Conversations such as nano learned from, made of the world inside the package, to be mixed with a person's own.

A model that learns something new from that alone forgets the old; these keep it. The package holds the pictures and clips
of the whole world, but of its sounds only effects and those that no part of nano learned from: conversations about a
sound are those of the development split. Nothing of the held-out split is in any.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from transformers.utils.logging import tqdm

from nextgpt.errors import UserInputError
from nextgpt.events import Media
from nextgpt.hub.parts import preset_folder
from nextgpt.signals import MODALITIES
from nextgpt.train.data.sampler import shares
from nextgpt.train.nano.dialogues.composer import LINES, combinations, load_composer, media_line
from nextgpt.train.nano.world.media_files import TrueMedia, outside_files, write
from nextgpt.train.nano.world.pictures import World
from nextgpt.train.nano.world.things import path_of

# As the last stage of nano mixed them, with more naming and more small talk: what is answered in words is lost first.
MIXTURE = {"instruct": 2, "align_decoders": 1, "align_encoders": 1, "talk": 0.6}
KINDS = LINES | {"talk": lambda composer, media, index, rng: media_line([composer.talk.replied(rng)])}
OUTSIDE = "dev"  # of the media from outside the world the package holds those that no part learned from


def write_rehearsal(out: str | Path, count: int, *, seed: int = 0, world: str | Path | None = None) -> int:
    """Writes conversations to a JSON-lines file and their media to a folder beside it, of the same name.

    Args:
        out: the file; `data/nano.jsonl` has its media in `data/nano`.
        count: of conversations.
        seed: the same gives the same files.
        world: a built world's folder; by default the one inside the package.

    Returns:
        The number of media files.

    Raises:
        UserInputError: the file's name leaves no name for the folder, or `count` is not positive.
    """
    out = check_file(out, count)
    rehearsal = _Rehearsal(Path(world or preset_folder("nano") / "world"))
    return write_with_media(out, rehearsal.lines(count, seed), count, rehearsal.medium)


def check_file(out: str | Path, count: int) -> Path:
    """The file, where so many conversations and a folder of media beside it can be written; raises UserInputError."""
    out = Path(out)
    if not out.suffix:
        raise UserInputError(f"{out}: expected a file's name with an ending, e.g. {out}.jsonl; the media go to {out}")
    if count < 1:
        raise UserInputError(f"count is {count}, expected at least 1 conversation")
    return out


def write_with_media(out: Path, lines: Iterable[dict], count: int, medium: Callable[[str], Media]) -> int:
    """Writes conversations to a JSON-lines file, and each medium that they show once; the number of media.

    Args:
        out: the file; the media go to a folder of its name without the ending.
        count: of the lines.
        medium: a path within that folder → what is shown under it.
    """
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    written: set[str] = set()
    texts = []
    for line in tqdm(lines, total=count, desc=out.name, unit=" conversations"):
        for part in _shown(line):
            if part["path"] not in written:
                written.add(part["path"])
                write(medium(part["path"]), folder / part["path"])
            part["path"] = f"{folder.name}/{part['path']}"
        texts.append(json.dumps(line, ensure_ascii=False) + "\n")
    out.write_text("".join(texts), encoding="utf-8")
    return len(written)


class _Rehearsal:
    """Makes conversations whose media a world's folder can render."""

    def __init__(self, world: Path):
        outside = outside_files(world, OUTSIDE, MODALITIES)
        # In other words than its own the model inside the package would forget how it answers.
        self.composers = {split: load_composer(world, split, outside) for split in ("train", "dev")}
        self.true, self.outside = TrueMedia(World(world), OUTSIDE), set(outside)
        self.combinations = {
            split: {modality: combinations(composer.setting, modality) for modality in MODALITIES}
            for split, composer in self.composers.items()
        }
        media = [
            variant
            for split, of in self.combinations.items()
            for some in of.values()
            for medium in some
            for variant in self.composers[split].setting.variants(medium)
        ]
        self.media = {path_of(medium): medium for medium in media if self.true.holds(medium)}

    def lines(self, count: int, seed: int) -> Iterator[dict]:
        """Conversations as `dialogues` makes them, of all kinds in turn."""
        rng = random.Random(seed)
        kinds = [kind for kind, many in zip(MIXTURE, shares([*MIXTURE.values()], count), strict=True) for _ in range(many)]
        rng.shuffle(kinds)
        for some in self.combinations.values():
            for media in some.values():
                rng.shuffle(media)
        written: set[str] = set()
        for index, kind in enumerate(kinds):
            line = self._line(kind, index, rng)
            while (messages := json.dumps(line["messages"])) in written:
                line = self._line(kind, rng.randrange(2**20), rng)
            written.add(messages)
            yield line

    def medium(self, path: str):
        """What is shown under a path."""
        return self.true.outside(path) if path in self.outside else self.true.render(self.media[path])

    def _line(self, kind: str, index: int, rng: random.Random) -> dict:
        """A conversation of the training split; one about a sound that the package lacks gives way to a development one."""
        line = self._of("train", kind, index, rng)
        while not self._can_show(line):
            line = self._of("dev", kind, rng.randrange(2**20), rng)
            while not any(part["type"] == "audio" for part in _shown(line)):
                line = self._of("dev", kind, rng.randrange(2**20), rng)
        return line

    def _of(self, split: str, kind: str, index: int, rng: random.Random) -> dict:
        return KINDS[kind](self.composers[split], self.combinations[split], index, rng)

    def _can_show(self, line: dict) -> bool:
        return all(part["path"] in self.media or part["path"] in self.outside for part in _shown(line))


def _shown(line: dict) -> list[dict]:
    """The media parts of the user."""
    return [part for message in line["messages"] for part in message["content"] if "path" in part]
