"""Requests that nobody meant, from the OpenAPI document, and what refusing one costs.

Bytes changed at random, through the front alone and over sockets, are in `tests/hostile`.
"""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path

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

from benchmarks import limits as costs
from tests.serve.support import WAIT, Running

EXAMPLES = 15
MIB = 1 << 20


@pytest.mark.parametrize("name", sorted(set(costs.cases()) - {"puzzles x cells x steps"}))  # needs a model of 900 cells
def test_a_refusal_takes_little_memory(server: Running, name: str) -> None:
    data, status = costs.cases()[name]
    server.raw_refusal(data)  # imports, caches
    tracemalloc.start()
    try:
        found = server.raw_refusal(data)
        peak = tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()
    assert found == status
    assert peak <= costs.MOST_MIB, f"{peak:.2f} MiB for {len(data)} bytes"


@pytest.mark.parametrize("path", sorted((costs.machine.ROOT / "profiles").glob("*/limits.json")), ids=str)
def test_the_recorded_costs_are_within_what_is_promised(path: Path) -> None:
    found = json.loads(path.read_text())["limits"]
    assert set(found) == {*costs.cases(), "connections", "queue"}
    for name, cost in found.items():
        assert 400 <= cost["status"] < 500 or (cost["status"] == 503 and name in ("connections", "queue"))
        assert cost["cpu_ms_most"] <= costs.MOST_MS and cost["mib_most"] <= costs.MOST_MIB, name
        assert cost["ms_median"] <= costs.MOST_MS, name


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
