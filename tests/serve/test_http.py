"""The routes, over real sockets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.serve.support import SLOTS, Running, Workers, metric, post, until

TOKEN = "a-token-of-enough-characters"


def test_solve_answers_in_the_order_of_the_puzzles(server: Running) -> None:
    status, answer = server.solve("4000", "1000", "x", "2007", model="reverse")
    assert status == 200 and answer["model"] == "reverse"
    rows = [(s["index"], s["input"], s["answer"], s["status"], s["steps"]) for s in answer["solutions"]]
    assert rows == [
        (0, "4000", "0004", "verified", 4), (1, "1000", "0001", "verified", 1), (2, "x", None, "invalid", 0),
        (3, "2007", None, "non_finite", 2),
    ]  # fmt: skip
    assert "puzzle length=1" in answer["solutions"][2]["error"]


def test_options_of_a_request(server: Running) -> None:
    assert server.solve("7000", max_steps=3)[1]["solutions"][0]["steps"] == 3
    assert server.solve("7000")[1]["solutions"][0]["steps"] == 7
    late = server.solve("7000", deadline=1e-6)[1]["solutions"][0]
    assert (late["status"], late["reason"]) == ("unverified", "deadline") and late["steps"] < 7


def test_a_deadline_gives_the_best_answer_so_far(server: Running, workers: Workers) -> None:
    workers[0].hold()
    workers[0].gate(1)
    connection = post(server, "/v1/solve", {"puzzles": ["7000"], "deadline": 0.3})
    time.sleep(0.4)
    workers[0].gate(10)
    answer = json.loads(connection.getresponse().read())["solutions"][0]
    assert (answer["status"], answer["reason"], answer["answer"]) == ("unverified", "deadline", "1111")


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        kind, data = block.split("\n")
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_stream_sends_each_solution_when_it_is_done(server: Running, workers: Workers) -> None:
    workers[0].hold()
    response = post(server, "/v1/stream", {"puzzles": ["5000", "1000", "3000"]}).getresponse()
    assert response.status == 200 and response.getheader("content-type", "").startswith("text/event-stream")
    until(lambda: workers[0].held == 3)
    workers[0].gate(2)  # the first step began when the first puzzle arrived, perhaps alone
    first = b"".join(response.readline() for _ in range(3)).decode()
    assert [(kind, data["index"], data["answer"]) for kind, data in events(first)] == [("solution", 1, "0001")]
    workers[0].gate(10)
    rest = events(response.read().decode())
    assert [data["index"] for kind, data in rest[:-1]] == [2, 0]
    assert rest[-1][0] == "done" and rest[-1][1]["solutions"] == 3


def test_models_health_metrics_and_the_document(server: Running) -> None:
    _, _, models = server.ask("GET", "/v1/models")
    assert [(m["name"], m["task"], m["cells"], m["default_max_steps"]) for m in models["models"]] == [
        ("reverse", "reverse", 4, 8)
    ]
    assert server.ask("GET", "/healthz")[2] == {"status": "ok"}
    server.solve("1000", "3000")
    _, headers, page = server.ask("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain")
    assert metric(page, 'rtm_puzzles_total{model="reverse",status="verified"}') == 2
    assert metric(page, 'rtm_requests_total{route="/v1/solve",status="200"}') == 1
    assert metric(page, 'rtm_act_steps_bucket{le="3.0",model="reverse"}') == 2
    assert metric(page, "rtm_worker_up") == 1 and metric(page, "rtm_puzzles_running") == 0
    status, _, document = server.ask("GET", "/openapi.json")
    assert status == 200 and document["openapi"].startswith("3.")
    assert set(document["paths"]) == {"/v1/solve", "/v1/stream", "/v1/models", "/healthz", "/metrics"}
    schema = document["components"]["schemas"]["SolveRequest"]
    assert schema["additionalProperties"] is False and schema["properties"]["puzzles"]["maxItems"] == 64


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [("GET", "/", 404), ("GET", "/docs", 404), ("GET", "/v1/solve", 405), ("DELETE", "/healthz", 405),
     ("POST", "/v1/load_model", 404), ("GET", "/v1/solve/", 404), ("GET", "/../etc/passwd", 404)],
)  # fmt: skip
def test_there_is_nothing_else(server: Running, method: str, path: str, expected: int) -> None:
    assert server.code(method, path, b"{}" if method == "POST" else None)[0] == expected


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid_request"),
        (b"{", 400, "not_json"),
        (b"\xff\xfe", 400, "not_json"),
        (b"[1, 2]", 422, "invalid_request"),
        (b'{"puzzles": ["1000"], "max_steps": ' + b"9" * 5000 + b"}", 400, "not_json"),
        ({}, 422, "invalid_request"),
        ({"puzzles": []}, 422, "invalid_request"),
        ({"puzzles": "1000"}, 422, "invalid_request"),
        ({"puzzles": [1000]}, 422, "invalid_request"),
        ({"puzzles": [""]}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "extra": 1}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "\ud800": 1}, 400, "not_json"),
        ({"puzzles": ["\ud800"]}, 400, "not_json"),
        ({"puzzles": ["1000"], "é\u202e": 1}, 422, "invalid_request"),
        ({"puzzles": ["1000"] * 65}, 422, "invalid_request"),
        ({"puzzles": ["1" * 4097]}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "max_steps": 65}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "max_steps": 0}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "max_steps": True}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "deadline": 31}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "deadline": float("nan")}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "model": "../../etc"}, 404, "unknown_model"),
        (b"[" * 17 + b"]" * 17, 400, "json_too_deep"),
        (b'{"a":' * 50_000, 400, "json_too_deep"),
        ({"puzzles": ["1"] * 300}, 400, "json_too_long"),
        (b'{"puzzles":[' + b"[]," * 80_000 + b"[]]}", 400, "json_too_long"),
        (b" " * ((256 << 10) + 1), 413, "body_too_large"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/solve"])
def test_what_is_refused(server: Running, path: str, body: Any, status: int, code: str) -> None:
    assert server.code("POST", path, body) == (status, code)


def test_the_product_of_puzzles_cells_and_steps_is_bounded(launch: Callable[..., Running]) -> None:
    server = launch(work=64 * 4 * 32)
    assert server.solve(*["1000"] * 64, max_steps=32)[0] == 200
    body = {"puzzles": ["1000"] * 64, "max_steps": 33}
    assert server.code("POST", "/v1/solve", body) == (413, "too_much_work")


def test_only_json_is_read(server: Running) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert server.code("POST", "/v1/solve", b"{}", {"content-type": kind}) == (415, "not_json")


def test_a_page_that_renames_loopback_is_refused(server: Running) -> None:
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8000"):
        assert server.code("GET", "/v1/models", headers={"host": host}) == (421, "wrong_host")
    for host in ("localhost", "LOCALHOST:80", "[::1]:8000", "127.0.0.1"):
        assert server.ask("GET", "/v1/models", headers={"host": host})[0] == 200


def test_the_token_is_asked_for_on_every_route_but_health(launch: Callable[..., Running]) -> None:
    server = launch(token=TOKEN)
    document = server.ask("GET", "/openapi.json", headers={"authorization": f"Bearer {TOKEN}"})[2]
    routes = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    assert document["security"] == [{"token": []}] and document["paths"]["/healthz"]["get"]["security"] == []
    for method, path in [*routes, ("GET", "/openapi.json"), ("GET", "/nope"), ("PUT", "/v1/solve")]:
        for wrong in ({}, {"authorization": TOKEN}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": "Bearer"}):
            if path != "/healthz":
                assert server.code(method, path, headers=wrong) == (401, "unauthorized")
    assert server.ask("GET", "/healthz", headers={"host": "anything.example"})[0] == 200
    right = {"authorization": f"bearer  {TOKEN}", "host": "anything.example"}
    assert server.ask("POST", "/v1/solve", {"puzzles": ["1000"]}, right)[0] == 200


def test_a_full_queue_refuses_with_a_time_to_come_back(launch: Callable[..., Running], workers: Workers) -> None:
    server = launch(queued=32)
    workers[0].hold()
    busy = [post(server, "/v1/solve", {"puzzles": ["1000"] * 20}) for _ in range(2)]
    until(lambda: server.run(lambda: server.server.pool.waiting) == 40 - SLOTS + 2 - 1)
    status, headers, answer = server.ask("POST", "/v1/solve", {"puzzles": ["1000"] * 10})
    assert (status, headers["retry-after"], answer["error"]["code"]) == (503, "1", "overloaded")
    workers[0].gate(1000)
    for connection in busy:
        assert {s["answer"] for s in json.loads(connection.getresponse().read())["solutions"]} == {"0001"}


@pytest.mark.parametrize("path", ["/v1/solve", "/v1/stream"])
def test_a_client_that_goes_away_frees_its_slots(server: Running, workers: Workers, path: str) -> None:
    workers[0].hold()
    gone = post(server, path, {"puzzles": ["7000"] * 64})
    until(lambda: server.run(lambda: server.server.pool.waiting) > 0)
    gone.close()
    if gone.sock is not None:
        gone.sock.close()
    pool = server.server.pool
    until(lambda: server.run(lambda: (pool.waiting, pool._queues["reverse"].running)) == (0, 0))
    workers[0].gate(2)
    assert server.solve("1000")[1]["solutions"][0]["answer"] == "0001"
    page = server.ask("GET", "/metrics")[2]
    assert metric(page, "rtm_puzzles_cancelled_total") == 64
    assert metric(page, 'rtm_refused_total{code="client_gone"}') == 1
