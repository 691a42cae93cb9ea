"""A small world to train in, one for each file: some tests damage what lies in it."""

from pathlib import Path

import pytest

from nextgpt.processing_nextgpt import NextGPTProcessor
from nextgpt.train.stages import load_for_training
from tiny_training import build_world, config_for


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build_world(tmp_path_factory.mktemp("a world"))


@pytest.fixture(scope="module")
def processor(world: Path) -> NextGPTProcessor:
    return load_for_training(config_for(world, "instruct", world / "unused"))[1]
