"""Requests that nobody meant: from the OpenAPI document, and bytes changed at random. RTM_MUTATIONS asks for more."""

from __future__ import annotations

import json
import os
import random
import socket
from collections import Counter
from collections.abc import Iterator

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

from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.server import Options
from tests.serve.support import SETUP, Running, Workers

MUTATIONS = int(os.environ.get("RTM_MUTATIONS", "300"))
EXAMPLES = 15
HANG = 30.0
"""A request without an answer for so long is a hang; on an idle machine a second would do."""

HEAD = b"POST /v1/solve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODIES = [
    json.dumps({"puzzles": ["1000", "2000"], "model": "reverse", "max_steps": 3, "deadline": 5.0}).encode(),
    json.dumps({"puzzles": ["7007"] * 9}).encode(),
    b'{"puzzles": ["\\u0031000"], "max_steps": 1e0}',
]
WHOLE = [
    HEAD + b"Content-Length: %d\r\n\r\n" % len(BODIES[0]) + BODIES[0],
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODIES[1]) + BODIES[1] + b"\r\n0\r\n\r\n",
    HEAD.replace(b"solve", b"stream") + b"Content-Length: %d\r\n\r\n" % len(BODIES[1]) + BODIES[1],
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n",
]
PIECES = [
    b"\r\n", b"\0", b'"', b"\\", b"[" * 20, b"}", b"9" * 400, b"\xff\xfe", b"\xed\xa0\x80", b"-1", b"NaN", b"%00",
    b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"Content-Length: 3\r\n", b"..",
]  # fmt: skip


@pytest.fixture
def hardened(workers: Workers) -> Iterator[Running]:
    """A server whose reads end soon, since half of what it gets is incomplete."""
    server = Running(Options(SETUP, port=0, limits=Limits(read=0.3)))
    yield server
    server.end()


def mutated(rng: random.Random, data: bytes) -> bytes:
    """`data` with bytes changed, pieces put in, parts cut, doubled or swapped."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, end = sorted((rng.randrange(len(result) + 1), rng.randrange(len(result) + 1)))
        match rng.randrange(6):
            case 0:
                result[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                result[at:at] = rng.choice(PIECES)
            case 2:
                del result[at : min(end, at + 30)]
            case 3:
                result[at:at] = result[at : min(end, at + 200)]
            case 4:
                del result[at:]
            case 5:
                result[at:end] = result[at:end][::-1]
    return bytes(result)


def answer_to(server: Running, data: bytes) -> bytes:
    """What comes back until the server closes, or until the answers to what was sent are complete."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANG) as connection:
        received = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(1 << 16):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
        return received


def check(server: Running, data: bytes) -> None:
    received = answer_to(server, data)
    if received:
        status = int(received.split(b" ", 2)[1])
        assert status < 500 or status == 503, (data, received)
        assert b"Traceback" not in received and b"site-packages" not in received, (data, received)


def test_changed_bytes_never_break_it(hardened: Running) -> None:
    for seed in range(MUTATIONS):
        rng = random.Random(seed)
        check(hardened, mutated(rng, rng.choice(WHOLE)))
    for seed in range(MUTATIONS):
        rng = random.Random(seed)
        body = mutated(rng, rng.choice(BODIES))
        check(hardened, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    status, answer = hardened.solve("1000")
    assert status == 200 and answer["solutions"][0]["answer"] == "0001"
    assert hardened.run(lambda: hardened.server.pool.waiting) == 0


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
            response = case.call(timeout=HANG)
            assert response.status_code < 500 or response.status_code == 503, response.text
            assert mode is GenerationMode.POSITIVE or response.status_code >= 400, response.text
            case.validate_response(response, checks=conformance)
            seen[case.operation.label] += 1

        call()
    assert {"POST /v1/solve", "POST /v1/stream"} <= set(seen)
    if mode is GenerationMode.POSITIVE:
        assert set(seen) >= {"GET /healthz", "GET /metrics", "GET /v1/models"}
