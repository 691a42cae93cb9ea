"""Where media come from: files, http(s) addresses, data: URIs and bytes, as open files with a short name each."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from nextgpt.errors import UserInputError
from nextgpt.media.text import listed
from nextgpt.modalities import MODALITIES

MAX_DOWNLOAD_BYTES = 200_000_000  # of an address or a data: URI
LONGEST_NAME = 240  # of a file in a message, in characters
_LIKE_BASE64 = re.compile(r"[A-Za-z0-9+/=_\s-]{256,}")


@contextmanager
def open_source(value: str | os.PathLike | bytes, modality: str | None = None) -> Iterator[tuple[BinaryIO, str]]:
    """Gives an open, seekable file and its name for messages.

    Args:
        value: path, http(s) address, base64 data: URI, or the bytes themselves.
        modality: what is expected there, for the messages; None for any kind.

    Raises:
        UserInputError: there is nothing that can be opened.
    """
    if isinstance(value, bytes):
        yield io.BytesIO(value), f"{modality or 'file'} of {len(value)} bytes"
        return
    text = os.fspath(value)
    if text[:5].lower() == "data:":
        yield io.BytesIO(_embedded(text)), shortened(text)
    elif text.startswith(("http://", "https://")):
        yield io.BytesIO(_download(text)), shortened(text)
    else:
        path = Path(os.path.expanduser(text))
        _check_file(path, modality)
        with path.open("rb") as file:
            yield file, shortened(text)


def shortened(name: str) -> str:
    """A path, an address or a data: URI for a message: never longer than a few lines, its end kept."""
    if name[:5].lower() == "data:":
        return f"{name[:40].partition(',')[0]},… ({len(name):,} characters)"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME // 3]}…{name[-LONGEST_NAME // 2 :]} ({len(name):,} characters)"


def _embedded(uri: str) -> bytes:
    """What a data: URI holds (RFC 2397); the kind of file that it names is not believed."""
    header, comma, payload = uri.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise UserInputError(f"{shortened(uri)}: not a base64 data URI; give it as data:image/png;base64,…")
    if len(payload) * 3 // 4 > MAX_DOWNLOAD_BYTES:
        raise UserInputError(f"{shortened(uri)}: larger than {MAX_DOWNLOAD_BYTES // 10**6} MB; give it as a file and cut it")
    try:
        data = base64.b64decode(b"".join(unquote_to_bytes(payload).split()), validate=True)
    except (binascii.Error, UnicodeError) as error:
        raise UserInputError(f"{shortened(uri)}: broken base64 ({error}); encode it again") from None
    if not data:
        raise UserInputError(f"{shortened(uri)}: holds no bytes; encode the file again")
    return data


def _check_file(path: Path, modality: str | None) -> None:
    name, text = shortened(str(path)), str(path)
    possible = [MODALITIES[modality]] if modality else MODALITIES.values()
    expected = listed([row.article for row in possible], "or")
    if not os.path.exists(path):  # unlike `path.exists()`, False for names that no file can have
        hint = f"check the path of {'the ' + modality if modality else 'the file'}"
        if _LIKE_BASE64.fullmatch(text):
            hint += "; what is encoded in base64 goes as data:image/png;base64,…"
        raise UserInputError(f"{name}: no such file; {hint}")
    if path.is_dir():
        raise UserInputError(f"{name}: is a folder, expected {expected} file; name a file in it")
    if not path.is_file():
        raise UserInputError(f"{name}: is no ordinary file, expected {expected}; name a file")
    if path.stat().st_size == 0:
        raise UserInputError(f"{name}: the file is empty, expected {expected}; export or copy it again")
    if not os.access(path, os.R_OK):
        raise UserInputError(f"{name}: no permission to read the file; change its permissions")


def _download(address: str) -> bytes:
    import httpx

    name = shortened(address)
    try:
        with httpx.stream("GET", address, follow_redirects=True, timeout=30) as response:
            response.raise_for_status()
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_DOWNLOAD_BYTES:
                    raise UserInputError(f"{name}: larger than {MAX_DOWNLOAD_BYTES // 10**6} MB; download it and cut it")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserInputError(
            f"{name}: could not be fetched ({shortened(str(error))}); check the address or give a file"
        ) from error
    return bytes(data)
