"""Damaged requests, sent through the whole application of `rtm serve` without sockets.

Bytes that are not HTTP are refused by h11 and uvicorn.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.hostile.mutations import damage_bytes, damage_json, damage_text
from tests.hostile.targets import Attack, Target

VALUES: list[dict[str, Any]] = [
    {"puzzles": ["1000", "2000"], "model": "reverse", "max_steps": 3, "deadline": 5.0},
    {"puzzles": ["7007"] * 9},
]
ROUTES = ("POST /v1/solve", "POST /v1/solve", "POST /v1/stream", "GET /metrics", "GET /healthz")
HEADERS = {"host": b"localhost", "content-type": b"application/json", "accept": b"*/*"}


def http(root: Path) -> Target:
    """Requests through the guard, the routes and a solver of scripted steps; an answer, or a refusal as promised."""
    from starlette.testclient import TestClient

    from rtm_kernels.serve.app import build_app
    from rtm_kernels.serve.front import Front
    from rtm_kernels.serve.schema import Limits
    from tests.serve.support import gated_solver

    solver, executor = gated_solver()
    client = TestClient(build_app(Front({"reverse": solver}, Limits()), None), raise_server_exceptions=False)
    client.__enter__()  # one loop for all requests, until the process ends

    def make(rng: random.Random) -> Attack:
        (method, path), headers = rng.choice(ROUTES).split(), dict(HEADERS)
        if rng.random() < 0.1:
            path = "/" + quote(damage_text(path, rng)[:2000], errors="replace")
        if rng.random() < 0.1:
            name = rng.choice(list(headers))
            headers[name] = damage_bytes(headers[name], rng)
        if rng.random() < 0.5:
            body = damage_bytes(json.dumps(rng.choice(VALUES)).encode(), rng)
        else:
            body = json.dumps(damage_json(rng.choice(VALUES), rng)).encode("utf-8", "surrogatepass")
        return lambda: attack(method, path, headers, body)

    def attack(method: str, path: str, headers: dict[str, bytes], body: bytes) -> tuple[str, bool]:
        executor.open(1000)
        tried = f"{method} {path} {body!r}"[:600]
        answer = client.request(method, f"http://localhost{path}", content=body, headers=headers)
        assert answer.status_code < 500 or answer.status_code == 503, (tried, answer.text)
        assert "Traceback" not in answer.text and "site-packages" not in answer.text, (tried, answer.text)
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert error["code"] and error["message"].isprintable(), (tried, error)
            assert answer.headers["x-request-id"] == error["request_id"], (tried, error)
        return tried, answer.status_code == 200

    return make
