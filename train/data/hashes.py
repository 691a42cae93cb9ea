"""SHA-256 of files, remembered by path, size and time of change."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache
from pathlib import Path

from nextgpt.hub.fingerprints import file_hash

HASHES_FILE = "hashes.sqlite"
REMEMBERED = 65_536  # hashes that `remembered_hash` holds
LOCK_SECONDS = 60.0  # how long one process waits while another writes


def remembered_hash(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits; a file that has not changed since is not read again by this process."""
    status = os.stat(path)
    return _hash_of_state(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=REMEMBERED)
def _hash_of_state(path: str, size: int, changed: int) -> str:
    return file_hash(Path(path))


class FileHashes:
    """SHA-256 of files. A file is read again only when its size or time of change is another than last time.

    Args:
        folder: where the hashes are remembered; several processes may share it.
    """

    def __init__(self, folder: str | Path):
        self.file = Path(folder) / HASHES_FILE
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size, changed, sha256 BLOB)")

    def of(self, paths: Iterable[Path]) -> dict[Path, bytes | OSError]:
        """Path → the 32 bytes of its hash, or the error that reading it gave."""
        found: dict[Path, bytes | OSError] = {}
        unknown: list[tuple[Path, int, int]] = []
        with closing(self._connect()) as database:
            for path in dict.fromkeys(paths):
                try:
                    status = path.stat()
                except (OSError, ValueError) as error:  # ValueError: a name that no file can have
                    found[path] = error if isinstance(error, OSError) else OSError(str(error))
                    continue
                seen = (_name(path), status.st_size, status.st_mtime_ns)
                row = database.execute("SELECT sha256 FROM files WHERE path=? AND size=? AND changed=?", seen).fetchone()
                if row:
                    found[path] = row[0]
                else:
                    unknown.append((path, status.st_size, status.st_mtime_ns))
        if unknown:
            with ThreadPoolExecutor() as pool:
                hashed = dict(zip((path for path, *_ in unknown), pool.map(_read, unknown), strict=True))
            rows = [
                (_name(path), size, changed, hashed[path])
                for path, size, changed in unknown
                if isinstance(hashed[path], bytes)
            ]
            with closing(self._connect()) as database, database:
                database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
            found |= hashed
        return found

    def fingerprint(self, location: str, revision: str | None, patterns: Iterable[str]) -> str:
        """Identifies a frozen part: a hash of its files (those that match `patterns`), or of its repository and revision."""
        path, digest = Path(location), hashlib.sha256()
        if not path.exists():
            digest.update(f"{location}@{revision}".encode("utf-8", "backslashreplace"))
            return digest.hexdigest()
        files = {file for pattern in patterns for file in path.glob(pattern)} if path.is_dir() else {path}
        for file, content in sorted(self.of(file for file in files if file.is_file()).items()):
            if isinstance(content, OSError):
                raise content
            digest.update(os.fsencode(file.name) + content)
        return digest.hexdigest()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.file, timeout=LOCK_SECONDS)


def _name(path: Path) -> str:
    """A path as text that a database takes, also where it is not UTF-8."""
    return str(path.absolute()).encode("utf-8", "backslashreplace").decode()


def _read(item: tuple[Path, int, int]) -> bytes | OSError:
    try:
        with item[0].open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return error
