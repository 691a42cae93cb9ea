"""A checkpoint knows its frozen parts: a fingerprint of each part's weights, and the refusal of others.

What was trained fits the very parts that it was trained with; on others of the same shape it answers nonsense in silence.
"""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from nextgpt.errors import ModelLoadError

if TYPE_CHECKING:
    from nextgpt.configuration_nextgpt import NextGPTConfig
    from nextgpt.hub.parts import FrozenPart

WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # the first of these that a folder has
# Variants of weights, and components of pipelines, that nothing here loads: whether they were fetched makes no difference.
LEFT_OUT = ("*.fp16.*", "*.non_ema.*", "*flax*", "*onnx*", "*openvino*", "safety_checker/*", "feature_extractor/*")
HEAD, PIECES, PIECE = 2**16, 32, 2**12  # bytes of the beginning, how many pieces of the rest, bytes of each


def file_hash(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def fingerprint(path: Path, *, everything: bool = False) -> str:
    """Sixteen hexadecimal digits of a part's weights: names, sizes, headers, and pieces evenly spread over each file.

    It reads at most 200 kB a file, so that parts of many gigabytes take no time.

    Args:
        path: the part's folder, or its only file.
        everything: of all weights in the folder, those that nothing loads too, as earlier checkpoints have it.
    """
    files = {path.name: path} if path.is_file() else _weights(path, everything)
    digest = hashlib.sha256()
    for name, file in files.items():
        size = file.stat().st_size
        digest.update(f"{name}\n{size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(HEAD))
            for number in range(PIECES):
                content.seek(max(0, size - PIECE) * number // (PIECES - 1))
                digest.update(content.read(PIECE))
    return digest.hexdigest()[:16]


def _weights(folder: Path, everything: bool) -> dict[str, Path]:
    """The files of a folder's weights by their names in it, of the first kind that it has."""
    is_pipeline = (folder / "model_index.json").is_file()
    for kind in WEIGHTS:
        files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob(kind))}
        if not everything:  # of a pipeline the components' own: a whole checkpoint beside them is not loaded either
            files = {name: file for name, file in files.items() if "/" in name or not is_pipeline}
            files = {name: file for name, file in files.items() if not any(fnmatch(name, each) for each in LEFT_OUT)}
        if files:
            return files
    return {}


def changed_part(part: FrozenPart, base: Path | None) -> str | None:
    """The fingerprint of a part that is not the one that was trained with; None where it is, or where no one knows."""
    path = part.local_path(base) if part.fingerprint else None
    if path is None or (found := fingerprint(path)) == part.fingerprint:
        return None
    return found if fingerprint(path, everything=True) != part.fingerprint else None


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
