"""A tiny saved model that draws, plays and films, which tests read and do not change."""

from pathlib import Path

import pytest

from tiny_models import save_tiny_any_to_any


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return save_tiny_any_to_any(tmp_path_factory.mktemp("any to any"))
