"""Files that are whole or absent: written beside, then renamed."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(file: str | Path) -> Iterator[Path]:
    """Gives a path to write to. It becomes `file` at the end, or is deleted where an error comes before that."""
    file = Path(file)
    beside = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield beside
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def json_line(record: Any) -> bytes:
    """Plain data as a line of JSON in UTF-8. A lone surrogate, which UTF-8 cannot hold, becomes JSON's escape of it."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
