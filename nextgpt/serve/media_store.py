"""The media of answers for as long as a client may come back for them, under addresses that nobody can guess."""

from __future__ import annotations

import base64
import mimetypes
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextgpt.modalities import MODALITIES
from nextgpt.serve.settings import ServerSettings

ID_BYTES = 24  # 192 bits
ID_LENGTH = ID_BYTES * 4 // 3  # characters


@dataclass
class KeptAnswer:
    """An answer that media belong to, as the next turn needs it.

    Args:
        content: the text that the client got, links included.
        parts: the assistant's message, media by their kind alone.
    """

    content: str = ""
    parts: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class KeptMedium:
    """A file of an answer.

    Args:
        id: cannot be guessed.
        kind: its modality.
        path: of the file.
        mime_type: of the file.
        seed: that it was made with.
        expires_at: in seconds since 1970.
        owner: whose request it was made for.
        answer: that it is a part of.
    """

    id: str
    kind: str
    path: Path
    mime_type: str
    seed: int
    expires_at: int
    owner: str
    answer: KeptAnswer
    size: int

    @property
    def is_sound(self) -> bool:
        """Whether it is what OpenAI's field for a sound can hold."""
        return self.mime_type.startswith("audio/")

    def base64(self) -> str:
        """The file in base64."""
        return base64.b64encode(self.path.read_bytes()).decode()


class MediaStore:
    """Keeps files in a folder of its own, which goes when it is closed. Safe to use from several threads.

    Args:
        settings: how many, how large together, how long.
    """

    def __init__(self, settings: ServerSettings):
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="nextgpt-media-"))
        self._kept: OrderedDict[str, KeptMedium] = OrderedDict()  # the oldest first
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, kind: str, media: Any, seed: int, owner: str, answer: KeptAnswer) -> KeptMedium:
        """Writes a medium as a file and keeps it; where there is no place, the oldest go."""
        row = MODALITIES[kind]
        id = secrets.token_urlsafe(ID_BYTES)
        path = self.folder / f"{id}{row.suffix}"
        row.save(media, path)
        mime_type = (mimetypes.guess_type(path.name)[0] or "application/octet-stream").replace("/x-", "/")
        expires_at = int(time.time() + self.settings.media_seconds)
        kept = KeptMedium(id, kind, path, mime_type, seed, expires_at, owner, answer, path.stat().st_size)
        with self._lock:
            self._kept[id] = kept
            self._bytes += kept.size
            self._drop_old()
        return kept

    def find(self, id: str, owner: str | None = None) -> KeptMedium | None:
        """A medium that is still kept, and is the owner's where one is given; None otherwise."""
        with self._lock:
            self._drop_old()
            kept = self._kept.get(id)
        return kept if kept is not None and owner in (None, kept.owner) else None

    def drop_expired(self) -> None:
        """Lets go what is over its time; each call of the others does too."""
        with self._lock:
            self._drop_old()

    def drop(self, media: list[KeptMedium]) -> None:
        """Lets media go: nobody got their addresses."""
        with self._lock:
            for kept in media:
                self._remove(kept.id)

    def close(self) -> None:
        """Everything goes."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0
        shutil.rmtree(self.folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._kept)

    def _drop_old(self) -> None:
        now = time.time()
        while self._kept:
            oldest = next(iter(self._kept.values()))
            too_much = len(self._kept) > self.settings.max_kept_media or self._bytes > self.settings.max_kept_bytes
            if oldest.expires_at > now and not (too_much and len(self._kept) > 1):
                return
            self._remove(oldest.id)

    def _remove(self, id: str) -> None:
        kept = self._kept.pop(id, None)
        if kept is not None:
            self._bytes -= kept.size
            kept.path.unlink(missing_ok=True)
