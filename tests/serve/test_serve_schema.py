"""The schema at /openapi.json is true: a fuzzer that reads it finds no fault, no other status, no other shape."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance, negative_data_rejection,
]  # fmt: skip
GREET = [{"role": "user", "content": "greet"}]
SHORT = {"max_tokens": 2, "max_completion_tokens": 2, "n": 1, "stream": False}


def named(case: schemathesis.Case) -> None:
    """A model that exists, and answers that do not take minutes; what is wrong with a request stays wrong."""
    body = case.body
    if not isinstance(body, dict) or not isinstance(body.get("model"), str) or not body["model"]:
        return
    body["model"] = "random"
    for key, short in SHORT.items():
        if type(body.get(key)) is type(short) and body[key] > short:
            body[key] = short
    if case.path.endswith("completions"):
        body.setdefault("max_tokens", 2)
    if case.meta.generation.mode.is_positive:  # what no schema can say: turns alternate, /v1/tokenize takes one of both
        if body.get("messages"):
            body["messages"] = GREET
        if case.path.endswith("/tokenize"):
            body["prompt"] = None if body.get("messages") else "greet"
        if case.path.endswith("/embeddings"):  # and which ids and dimensions a model has
            body.pop("dimensions", None)
            body["input"] = body["input"] if isinstance(body.get("input"), str) and body["input"] else "greet"


@pytest.fixture
def subnormal_numbers() -> Iterator[None]:
    """Hypothesis draws them; ``device.choose`` has switched them off in this thread."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(True)


def test_no_request_finds_a_fault(live, subnormal_numbers):
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    seen: set[tuple[str, int]] = set()
    for found in schema.exclude(path_regex="^/api/").get_all_operations():
        operation = found.ok()

        @given(
            case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
            | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        )
        @settings(max_examples=12, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        def check(case):
            named(case)
            seen.add((operation.path, case.call_and_validate(checks=CHECKS, timeout=30).status_code))  # noqa: B023

        check()
    routes = ("chat/completions", "completions", "embeddings", "tokenize", "detokenize")
    assert {(f"/v1/{route}", status) for route in routes for status in (200, 400)} <= seen, "the fuzzer gets nowhere"
