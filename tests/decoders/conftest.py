"""A tiny random pipeline of every kind, saved once and loaded once."""

import shutil

import pytest

from nextgpt.decoders import load_decoder
from tiny_decoders import TINY_DECODERS


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Kind → its folder."""
    return {kind: save(tmp_path_factory.mktemp(kind)) for kind, save in TINY_DECODERS.items()}


@pytest.fixture(scope="session")
def decoders(folders):
    """Kind → decoder; the pipeline loads when it is first used."""
    return {kind: load_decoder(kind, str(folder)) for kind, folder in folders.items()}


@pytest.fixture
def own_folder(folders, tmp_path):
    """A copy that a test may damage."""
    return lambda kind: shutil.copytree(folders[kind], tmp_path / "decoder")
