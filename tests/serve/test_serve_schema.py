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
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
SHORT = {"max_tokens": 2, "max_completion_tokens": 2, "n": 1, "stream": False}


def named(case: schemathesis.Case) -> None:
    """Mostly a model that exists, and answers that do not take minutes: otherwise all would end at the first check."""
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) != 2:
        body["model"] = "random"
        body.update({key: SHORT[key] for key in SHORT.keys() & body.keys()})
        if case.path.endswith("completions"):
            body["max_tokens"] = 2


@pytest.fixture
def subnormal_numbers() -> Iterator[None]:
    """Hypothesis draws them; ``device.choose`` has switched them off in this thread."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(True)


def test_no_request_finds_a_fault(live, subnormal_numbers):
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    asked: set[str] = set()
    for found in schema.exclude(path_regex="^/api/").get_all_operations():
        operation = found.ok()

        @given(
            case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
            | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        )
        @settings(max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        def check(case):
            named(case)
            case.call_and_validate(checks=CHECKS, timeout=30)

        check()
        asked.add(operation.path)
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/metrics"} <= asked
