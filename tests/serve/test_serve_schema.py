"""The schema at /openapi.json is true: a fuzzer that reads it finds no fault, no other status, no other shape."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
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

schema = schemathesis.pytest.from_fixture("fuzzed")


@pytest.fixture
def fuzzed(live):
    return schemathesis.openapi.from_url(f"{live.url}/openapi.json")


def named(case: schemathesis.Case) -> None:
    """Mostly a model that exists, and answers that do not take minutes: otherwise all would end at the first check."""
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) != 2:
        body["model"] = "random"
        body.update({key: SHORT[key] for key in SHORT.keys() & body.keys()})
        if "messages" in body and case.path.endswith("completions"):
            body["max_tokens"] = 2


@schema.exclude(path_regex="^/api/compare").parametrize()
@settings(max_examples=12, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
          suppress_health_check=list(HealthCheck))  # fmt: skip
def test_no_request_finds_a_fault(case):
    named(case)
    case.call_and_validate(checks=CHECKS, timeout=30)
