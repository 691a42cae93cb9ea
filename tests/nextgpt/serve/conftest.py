"""One server that most tests ask, and OpenAI's client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from nextgpt import NextGPTPipeline
from tiny_server import serving, tiny_pipeline


@pytest.fixture(scope="session")
def pipe(tmp_path_factory) -> NextGPTPipeline:
    return tiny_pipeline(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def address(pipe) -> Iterator[str]:
    with serving(pipe) as address:
        yield address


@pytest.fixture(scope="session")
def client(address) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        yield client
