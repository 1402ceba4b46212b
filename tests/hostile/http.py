"""Damaged requests, sent through the whole application of `rtm serve` without sockets.

Bytes that are not HTTP are refused by h11 and uvicorn: `tests/serve/test_http.py` has examples of them.
"""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

from tests.hostile.mutations import damage_bytes, damage_json, damage_text
from tests.hostile.targets import Attack, Target

VALUES: list[dict[str, Any]] = [
    {"puzzles": ["1000", "2000"], "model": "reverse", "max_steps": 3, "deadline": 5.0},
    {"puzzles": ["7007"] * 9},
]
ROUTES = ("POST /v1/solve", "POST /v1/solve", "POST /v1/stream", "GET /metrics", "GET /healthz")
HEADERS = {"host": "localhost", "content-type": "application/json", "accept": "*/*"}


def request(rng: random.Random) -> tuple[dict[str, Any], list[bytes]]:
    """The scope and the body, in pieces, of a request: one of these, and seldom all, is damaged."""
    (method, path), headers = rng.choice(ROUTES).split(), dict(HEADERS)
    if rng.random() < 0.1:
        method, path = damage_text(method, rng), damage_text(path, rng)
    if rng.random() < 0.1:
        name = rng.choice(list(headers))
        headers[name] = damage_text(headers[name], rng)
    if rng.random() < 0.5:
        body = damage_bytes(json.dumps(rng.choice(VALUES)).encode(), rng)
    else:
        body = json.dumps(damage_json(rng.choice(VALUES), rng)).encode("utf-8", "surrogatepass")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": method,
        "path": path, "raw_path": path.encode("utf-8", "replace"), "root_path": "", "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()],
    }  # fmt: skip
    at = rng.randrange(len(body) + 1)
    return scope, [body[:at], body[at:]]


def check(status: int, headers: dict[bytes, bytes], body: bytes, tried: str) -> bool:
    """Whether the answer is a success; raises unless it is one, or a refusal in the promised form."""
    assert status < 500 or status == 503, (tried, body)
    assert b"Traceback" not in body and b"site-packages" not in body, (tried, body)
    if status >= 400:
        error = json.loads(body)["error"]
        assert error["code"] and error["message"].isprintable(), (tried, body)
        assert headers[b"x-request-id"] == error["request_id"].encode(), (tried, headers)
    return status == 200


def http(root: Path) -> Target:
    """Requests through the guard, the routes and a solver of scripted steps, on a loop of this process."""
    from rtm_kernels.serve.app import build_app
    from rtm_kernels.serve.front import Front
    from rtm_kernels.serve.schema import Limits
    from tests.serve.support import gated_solver

    solver, executor = gated_solver()
    loop, app = asyncio.new_event_loop(), build_app(Front({"reverse": solver}, Limits()), None)

    async def exchange(scope: dict[str, Any], pieces: list[bytes]) -> tuple[int, dict[bytes, bytes], bytes]:
        sent: list[Any] = []

        async def receive() -> Any:
            if pieces:
                return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
            return await asyncio.Future()

        async def send(message: Any) -> None:
            sent.append(message)

        executor.open(1000)
        await app(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"]), b"".join(m["body"] for m in sent[1:])

    def make(rng: random.Random) -> Attack:
        scope, pieces = request(rng)
        tried = f"{scope['method']} {scope['path']} {pieces!r}"[:600]
        return lambda: (tried, check(*loop.run_until_complete(exchange(scope, pieces)), tried))

    return make
