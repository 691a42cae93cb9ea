"""Checkpoints that are whole or absent: written beside, then renamed.

A run's folder holds `checkpoint-<step>` folders. One that is being written, or being deleted, lies in `.unfinished`, so
that a kill at any instant leaves every `checkpoint-*` whole.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from nextgpt.errors import UserInputError

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
EARLIER = "earlier"  # `earlier-1`, …: checkpoints of runs that were started anew
IDENTITY_FILE = "identity.json"


def checkpoints(run: str | Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    states = Path(run).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")
    return sorted((file.parent for file in states), key=lambda folder: int(folder.name.rpartition("-")[2]))


def unfinished_folder(run: str | Path) -> Path:
    """Where folders are written before they are renamed, and where they go to be deleted."""
    return Path(run) / UNFINISHED


def clear_unfinished(run: str | Path) -> None:
    """Deletes what a killed process left behind."""
    shutil.rmtree(unfinished_folder(run), ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Gives a finished folder its name, in one step and after its content has reached the disk."""
    for path in (*folder.rglob("*"), folder):
        _to_disk(path)
    if target.exists():
        _delete(target)
    os.replace(folder, target)
    _to_disk(target.parent)


@contextmanager
def written_whole(folder: str | Path) -> Iterator[Path]:
    """Gives an empty folder to write to; what is in it at the end replaces, file by file, what `folder` holds."""
    folder = Path(folder)
    staging = unfinished_folder(folder) / "model"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    yield staging
    for file in sorted(path for path in staging.rglob("*") if path.is_file()):
        target = folder / file.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        _to_disk(file)
        os.replace(file, target)
    clear_unfinished(folder)


def prune(run: str | Path, keep: int | None) -> None:
    """Deletes all but the last `keep` checkpoints (None or 0: keeps all)."""
    if keep:
        for folder in checkpoints(run)[:-keep]:
            _delete(folder)


def set_aside(run: str | Path, newer_than: Path | None = None) -> None:
    """Moves checkpoints out of the way of a run that starts anew in the same folder.

    Args:
        newer_than: the run starts from this checkpoint: those up to it stay, if it is one of the same folder.
    """
    old = checkpoints(run)
    places = [folder.resolve() for folder in old]
    if newer_than is not None and newer_than.resolve() in places:
        old = old[places.index(newer_than.resolve()) + 1 :]
    if not old:
        return
    numbers = [int(folder.name.rpartition("-")[2]) for folder in Path(run).glob(f"{EARLIER}-*")]
    earlier = Path(run) / f"{EARLIER}-{max(numbers, default=0) + 1}"
    earlier.mkdir()
    for folder in old:
        os.replace(folder, earlier / folder.name)
    logger.info("%d earlier checkpoints moved to %s", len(old), earlier)


def check_identity(checkpoint: str | Path, identity: dict[str, Any]) -> None:
    """Refuses a checkpoint of another run.

    Args:
        identity: what a run must share with a checkpoint to continue its exact sequence: name → value.

    Raises:
        UserInputError: names what differs.
    """
    file = Path(checkpoint) / IDENTITY_FILE
    if not file.is_file():
        logger.warning("%s does not say which run it belongs to (no %s): taken as it is", checkpoint, IDENTITY_FILE)
        return
    saved = json.loads(file.read_text(encoding="utf-8"))
    differing = [name for name in {**identity, **saved} if saved.get(name) != identity.get(name)]
    if differing:
        changes = ", ".join(f"{name} (was {_short(saved.get(name))}, is {_short(identity.get(name))})" for name in differing)
        raise UserInputError(
            f"{checkpoint} belongs to another run: changed are {changes}. "
            "Change them back, name another output_dir, or start anew with resume=false"
        )


def _delete(folder: Path) -> None:
    """Takes the name away first: a kill while files are being deleted leaves no broken checkpoint."""
    trash = unfinished_folder(folder.parent) / f"deleted-{folder.name}"
    trash.parent.mkdir(exist_ok=True)
    shutil.rmtree(trash, ignore_errors=True)
    os.replace(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) > 40 else text


def _to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
