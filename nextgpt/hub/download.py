"""Fetches the frozen parts of a model from the Hub, their sizes first.

Files that are there already are not fetched again, a connection that breaks is taken up where it broke (a killed process
begins its last file anew), and every file is compared with the hash that the Hub knows of it.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers.utils.logging import tqdm

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.errors import ModelLoadError, UserInputError
from nextgpt.hub.fingerprints import LEFT_OUT, WEIGHTS, file_hash
from nextgpt.hub.parts import FrozenPart, fetch_model, hub_errors, hub_reason
from nextgpt.modalities import MODALITIES

logger = logging.getLogger(__name__)

LEFTOVER_SECONDS = 3600  # a part that nothing was written to for so long belongs to no download that still runs
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a Hub repository.

    Args:
        path: in the repository.
        size: in bytes.
        sha256: of large files.
        blob: git's own hash, of the others.
    """

    path: str
    size: int
    sha256: str | None
    blob: str | None

    def is_whole(self, file: Path) -> bool:
        """Whether `file` is this file."""
        from huggingface_hub.utils.sha import git_hash

        if not file.is_file() or file.stat().st_size != self.size:
            return False
        if self.sha256:
            return file_hash(file) == self.sha256
        return not self.blob or git_hash(file.read_bytes()) == self.blob


@dataclass(frozen=True)
class PartDownload:
    """What a frozen part needs.

    Args:
        name: of the part.
        part: where it comes from.
        files: that are needed.
    """

    name: str
    part: FrozenPart
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)


def parts_to_fetch(model: str, only: Iterable[str] = ()) -> dict[str, FrozenPart]:
    """The frozen parts of a model that come from the Hub, by name; the Hub is not asked for them.

    Args:
        only: the parts that are wanted (`language_model`, `encoder`, or a decoder by its kind); by default all.

    Raises:
        UserInputError: there is no such part.
        ModelLoadError: there is no such model.
    """
    config = NextGPTConfig.from_pretrained(fetch_model(model, patterns=["*.json"]))
    if unknown := set(only) - set(config.parts()):
        raise UserInputError(f"--only {', '.join(sorted(unknown))}: {model} has the parts {', '.join(config.parts())}")
    parts = {name: part for name, part in config.parts().items() if not only or name in only}
    return {name: part for name, part in parts.items() if not _is_local(part, config)}


def plan_downloads(parts: dict[str, FrozenPart]) -> list[PartDownload]:
    """Asks the Hub which files these parts need.

    Raises:
        ModelLoadError: the Hub does not answer, or has no such repository.
    """
    return [PartDownload(name, part, _files(name, part)) for name, part in parts.items()]


def download(plan: PartDownload) -> Path:
    """Fetches what is missing of a part into the Hub's cache, and compares all of it with the Hub's hashes.

    Returns:
        The folder.

    Raises:
        ModelLoadError: a file cannot be fetched, or is not what the Hub says it is.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    where = {"repo_id": plan.part.source, "revision": plan.part.revision}
    try:
        # Not `HfApi.verify_repo_checksums`, which asks the Hub again and is silent while it reads tens of GB.
        folder = Path(snapshot_download(**where, allow_patterns=[_literal(file.path) for file in plan.files]))
        with tqdm(desc=f"Verifying {plan.part.source}", total=plan.size, unit="B", unit_scale=True) as bar:
            for file in plan.files:
                if not file.is_whole(folder / file.path):
                    logger.warning("%s is damaged: it is fetched again", folder / file.path)
                    hf_hub_download(**where, filename=file.path, force_download=True)
                    if not file.is_whole(folder / file.path):
                        raise ModelLoadError(f"{folder / file.path} is not what the Hub says it is, twice: try again later")
                bar.update(file.size)
        _delete_leftovers(folder.parents[1])
    except hub_errors() as error:
        raise _unreachable(plan.part, error) from error
    return folder


def _delete_leftovers(repository: Path) -> None:
    """Deletes parts of files that killed downloads left in a repository's cache: nothing takes them up again."""
    for part in repository.glob("blobs/*.incomplete"):
        if time.time() - part.stat().st_mtime > LEFTOVER_SECONDS:
            part.unlink(missing_ok=True)


def _is_local(part: FrozenPart, config: NextGPTConfig) -> bool:
    from nextgpt.encoders import keeps_own_cache

    location = part.location(config.base_folder)
    return Path(location).is_absolute() or keeps_own_cache(location)


def _files(name: str, part: FrozenPart) -> tuple[RemoteFile, ...]:
    """Not `DiffusionPipeline.download`, which chooses while it fetches: here the sizes come first."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(part.source, revision=part.revision, files_metadata=True)
    except hub_errors() as error:
        raise _unreachable(part, error) from error
    files = [
        RemoteFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else None, each.blob_id)
        for each in found.siblings
    ]
    # A decoder is a pipeline: its weights lie in its components' folders, and whole checkpoints beside them are unused.
    needed = [*_needed([f for f in files if "/" not in f.path], weights=name not in MODALITIES)]
    if name in MODALITIES:
        needed += _needed([f for f in files if f.path.count("/") == 1], weights=True)
    return tuple(needed)


def _needed(files: list[RemoteFile], *, weights: bool) -> Iterator[RemoteFile]:
    files = [file for file in files if not _matches(file, LEFT_OUT)]
    yield from (file for file in files if _matches(file, SETTINGS))
    if not weights:
        return
    for folder in sorted({os.path.dirname(file.path) for file in files}):
        inside = [file for file in files if os.path.dirname(file.path) == folder]
        kinds = ([file for file in inside if _matches(file, (kind,))] for kind in WEIGHTS)
        yield from next(filter(None, kinds), [])


def _matches(file: RemoteFile, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(file.path, pattern) for pattern in patterns)


def _literal(path: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def _unreachable(part: FrozenPart, error: Exception) -> ModelLoadError:
    if isinstance(error, ModelLoadError):
        return error
    at = f" at revision {part.revision}" if part.revision else ""
    reason = hub_reason(error)
    asked = "" if reason.startswith("no connection") else ", the name, and `hf auth login` where the owner must consent"
    return ModelLoadError(
        f"{part.source}{at} could not be fetched from the Hub ({reason}): check the network{asked}, then run it again; "
        "what was fetched is kept"
    )
