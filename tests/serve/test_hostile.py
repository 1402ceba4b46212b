"""Requests drawn from the OpenAPI document. Bytes changed at random are in `tests/hostile`."""

from __future__ import annotations

from collections import Counter

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serve.support import WAIT, Running

EXAMPLES = 10


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_openapi_document_is_kept(server: Running, mode: GenerationMode) -> None:
    """What the document allows is answered as it says; what it forbids is refused; nothing fails."""
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    conformance = [status_code_conformance, content_type_conformance, response_schema_conformance]
    seen = Counter[str]()
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue  # these take no input that could be wrong

        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def call(case: schemathesis.Case) -> None:
            response = case.call(timeout=WAIT)
            assert response.status_code < 500 or response.status_code == 503, response.text
            assert mode is GenerationMode.POSITIVE or response.status_code >= 400, response.text
            case.validate_response(response, checks=conformance)
            seen[case.operation.label] += 1

        call()
    assert {"POST /v1/solve", "POST /v1/stream"} <= set(seen)
    if mode is GenerationMode.POSITIVE:
        assert set(seen) >= {"GET /healthz", "GET /metrics", "GET /v1/models"}
