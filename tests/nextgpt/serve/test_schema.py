"""The server does what its schema says, to requests that fit it and to others; cases made by schemathesis.

`NEXTGPT_API_CASES=2000 python -m pytest tests/nextgpt/serve/test_schema.py` tries so many in place of 200.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from urllib.request import urlopen

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tiny_server import ASK, data_url, send, serving, tiny_pipeline

CASES = int(os.environ.get("NEXTGPT_API_CASES", 200))
CHAT = "POST /v1/chat/completions"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
schemathesis.openapi.format("uri", st.sampled_from([data_url("moving")]))  # a picture and a clip
KEPT: list[str] = []  # the id of a medium of an answer
schemathesis.openapi.format("medium-id", st.builds(lambda: KEPT[0]))
schemathesis.openapi.format("byte", st.sampled_from([data_url("audio").partition(",")[2]]))


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pipe = tiny_pipeline(tmp_path_factory.mktemp("described"), ["image"])
    limits = {"max_steps": 1, "max_new_tokens": 12, "max_side": 16, "max_frames": 2, "max_seconds": 0.2, "max_answers": 1}
    with serving(pipe, **limits) as address:
        asked = ASK | {"require": {"image": 1}, "max_completion_tokens": 12, "modalities": ["text", "image"]}
        parts = send(address, asked)[2]["choices"][0]["message"]["parts"]
        again = [*ASK["messages"], {"role": "assistant", "parts": parts}, *ASK["messages"]]
        assert send(address, ASK | {"messages": again})[0] == 200
        KEPT[:] = [part["id"] for part in parts if part["type"] == "image"]
        yield address


@pytest.fixture(scope="module")
def operations(address):
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    found = {result.ok().label: result.ok() for result in schema.get_all_operations()}
    assert len(found) == 8
    return found


def run(operation, mode, cases):
    """Statuses of so many cases, each of which passes all checks."""
    statuses: Counter[int] = Counter()

    @seed(0)
    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        response = case.call_and_validate(checks=CHECKS, timeout=60)
        statuses[response.status_code] += 1

    check()
    return statuses


@pytest.mark.slow
def test_chat_requests_that_fit_are_answered_and_others_refused(operations):
    fitting = run(operations[CHAT], GenerationMode.POSITIVE, CASES * 3 // 8)
    others = run(operations[CHAT], GenerationMode.NEGATIVE, CASES // 8)
    assert not others[200]
    assert fitting[200] * 4 >= fitting.total() + others.total(), (fitting, others)


@pytest.mark.slow
def test_every_other_address_does_what_it_says(operations):
    rest = [operation for label, operation in operations.items() if label != CHAT]
    for operation in rest:
        run(operation, GenerationMode.POSITIVE, max(CASES // 4 // len(rest), 2))
    drawn = operations["POST /v1/images/generations"]
    assert not run(drawn, GenerationMode.NEGATIVE, CASES // 4)[200]


def test_the_schema_knows_one_form_of_errors(address):
    with urlopen(f"{address}/openapi.json") as answer:
        schema = json.load(answer)
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    assert not any("422" in operation["responses"] for operation in operations)
    refused = [schema for operation in operations for schema in operation["responses"]["400"]["content"].values()]
    assert all(each == {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}} for each in refused)
    bodies = {name: each for name, each in schema["components"]["schemas"].items() if each.get("type") == "object"}
    free = [name for name, each in bodies.items() if each.get("additionalProperties", False) is not False]
    assert not free
