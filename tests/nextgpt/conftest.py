"""A tiny saved model, which tests read and do not change."""

from pathlib import Path

import pytest

from tiny_models import save_tiny_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("a saved model"))
