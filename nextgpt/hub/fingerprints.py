"""A checkpoint knows its frozen parts: a fingerprint of each part's weights, and the refusal of others.

What was trained fits the very parts that it was trained with; on others of the same shape it answers nonsense in silence.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from nextgpt.errors import ModelLoadError

if TYPE_CHECKING:
    from nextgpt.configuration_nextgpt import NextGPTConfig
    from nextgpt.hub.parts import FrozenPart

WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # the first of these that a folder has
HEAD, PIECES, PIECE = 2**16, 32, 2**12  # bytes of the beginning, how many pieces of the rest, bytes of each


def file_hash(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """Sixteen hexadecimal digits of a part's weights: names, sizes, headers, and pieces evenly spread over each file.

    It reads at most 200 kB a file, so that parts of many gigabytes take no time.

    Args:
        path: the part's folder, or its only file.
    """
    files = [path] if path.is_file() else next(filter(None, (sorted(path.rglob(kind)) for kind in WEIGHTS)), [])
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        name = file.name if file == path else file.relative_to(path).as_posix()
        digest.update(f"{name}\n{size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(HEAD))
            for number in range(PIECES):
                content.seek(max(0, size - PIECE) * number // (PIECES - 1))
                digest.update(content.read(PIECE))
    return digest.hexdigest()[:16]


def changed_part(part: FrozenPart, base: Path | None) -> str | None:
    """The fingerprint of a part that is not the one that was trained with; None where it is, or where no one knows."""
    path = part.local_path(base) if part.fingerprint else None
    found = fingerprint(path) if path else part.fingerprint
    return found if found != part.fingerprint else None


def check_fingerprints(config: NextGPTConfig) -> None:
    """Raises ModelLoadError for the first frozen part that is not the one the checkpoint was trained with."""
    for name, part in config.parts().items():
        if found := changed_part(part, config.base_folder):
            raise ModelLoadError(describe_change(config, name, found))


def describe_change(config: NextGPTConfig, name: str, found: str) -> str:
    """One line: which part changed, and which version of this package had the one that is needed."""
    part = config.part(name)
    version = getattr(config, "nextgpt_version", None)
    had = f"nextgpt {version} had it" if version and part.source.startswith("preset:") else "get back the one it had"
    return (
        f"the {name.replace('_', ' ')} at {part.source} is not the one that this checkpoint was trained with (fingerprint "
        f"{found}, expected {part.fingerprint}): {had}; or train anew on this one"
    )
