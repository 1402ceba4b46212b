"""The routes, over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from rtm_kernels.serve.limits import Limits
from tests.serve.support import SLOTS, WAIT, Running, Workers, metric

HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
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


def post(server: Running, path: str, body: Any) -> http.client.HTTPConnection:
    """A request whose answer is still to be read."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    return connection


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


def head(lines: bytes, body: bytes = b"") -> bytes:
    return b"POST /v1/solve HTTP/1.1\r\n" + HOST + JSON + lines + b"Connection: close\r\n\r\n" + body


def refusal(answer: bytes) -> tuple[int, str]:
    """(status, code) of a whole answer that is a refusal in the promised form, after which the server closed."""
    start, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in start.split(b"\r\n")[1:])
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message", "request_id"} and int(headers[b"content-length"]) == len(body)
    assert headers[b"x-request-id"].decode() == error["request_id"] and headers[b"cache-control"] == b"no-store"
    assert headers[b"content-type"] == b"application/json" and headers[b"connection"] == b"close"
    return int(start.split()[1]), error["code"]


TOO_LARGE, NO_HTTP = (431, "headers_too_large"), (400, "bad_request")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (head(b"".join(b"X-%d: 1\r\n" % i for i in range(64))), TOO_LARGE),
        (head(b"X: " + b"a" * (16 << 10) + b"\r\n"), TOO_LARGE),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * (20 << 10), TOO_LARGE),
        (b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n" + HOST + b"\r\n", TOO_LARGE),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, NO_HTTP),
        (b"GET  /healthz HTTP/1.1\r\n" + HOST + b"\r\n", NO_HTTP),
        (b"GET /healthz HTTQ/1.1\r\n" + HOST + b"\r\n", NO_HTTP),
        (b"GET /healthz HTTP/1.1\r\nHost localhost\r\n\r\n", NO_HTTP),
        (b"GET /healthz HTTP/1.1\r\n\r\n", NO_HTTP),
        (head(b"Content-Length: 99999999999999999999999\r\n"), NO_HTTP),
        (head(b"Content-Length: -1\r\n"), NO_HTTP),
        (head(b"Content-Length: 1\r\nContent-Length: 2\r\n", b"xx"), NO_HTTP),
        (head(b"Transfer-Encoding: gzip\r\n"), NO_HTTP),
        (head(b"Transfer-Encoding: chunked\r\n", b"zz\r\n"), NO_HTTP),
        (head(b"Transfer-Encoding: chunked\r\n", b"5;" + b"x" * (1 << 20)), TOO_LARGE),
    ],
    ids=["many", "large", "endless", "long_target", "tls", "line", "version", "no_colon", "no_host", "huge_length",
         "negative_length", "two_lengths", "encoding", "chunk", "long_chunk"],
)  # fmt: skip
def test_what_http_refuses_is_told_in_the_same_form(server: Running, data: bytes, expected: tuple[int, str]) -> None:
    assert refusal(server.raw(data)) == expected
    page = server.ask("GET", "/metrics")[2]
    assert metric(page, f'rtm_refused_total{{code="{expected[1]}"}}') >= 1
    until(lambda: server.run(lambda: len(server.server.server_state.connections)) == 0)


def test_bytes_that_are_no_request_after_one_that_was(server: Running) -> None:
    first, second = server.raw(b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n" + b"\0\0\0\r\n\r\n").split(
        b"HTTP/1.1 400", 1
    )
    assert first.startswith(b"HTTP/1.1 200") and refusal(b"HTTP/1.1 400" + second) == NO_HTTP


def test_a_bad_chunk_after_the_answer_began_ends_the_connection(server: Running, workers: Workers) -> None:
    bad = head(b"Transfer-Encoding: chunked\r\n", b"zz\r\n").replace(b"application/json", b"text/plain")
    assert refusal(server.raw(bad))[0] in (400, 415)
    workers[0].hold()
    data = json.dumps({"puzzles": ["1000", "7000"]}).encode()
    start = head(b"Content-Length: %d\r\n" % len(data), data).replace(b"/v1/solve", b"/v1/stream")
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as connection:
        connection.sendall(start.replace(b"Connection: close\r\n", b""))
        workers[0].gate(2)
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.sendall(b"\0\0\r\n\r\n")
        workers[0].gate(1000)
        rest = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert b"event: done" in rest and b"request failed" not in rest
    assert server.solve("1000")[0] == 200


def test_a_chunked_body_is_bounded_while_it_is_read(server: Running) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    over = b"1\r\n "  # nothing is left to read when the server closes, which would reset the connection
    answer = server.raw(head(b"Transfer-Encoding: chunked\r\n", chunk * 4 + over))
    assert refusal(answer) == (413, "body_too_large")


def test_a_body_larger_than_said_or_smuggled_is_refused(server: Running) -> None:
    both = server.raw(head(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"))
    assert both.split()[1][:1] == b"4" and refusal(both)[0] < 500


def test_slow_bodies_and_heads_are_cut(launch: Callable[..., Running]) -> None:
    server = launch(read=0.3)
    answer = server.raw(head(b"Content-Length: 10\r\n", b"{"))
    assert answer.startswith(b"HTTP/1.1 408") and b"read_timeout" in answer
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert ended(connection)
    assert server.solve("1000")[0] == 200


def ended(connection: socket.socket) -> bool:
    """Whether the server closed the connection without an answer; waits for it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_sockets_that_send_nothing_keep_nobody_out(server: Running) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) for _ in range(200)]
    try:
        for connection in idle[::2]:
            connection.sendall(b"POST /v1/solve HTTP/1.1\r\nX-A: b\r\n")
        for _ in range(10):
            assert server.solve("3000")[1]["solutions"][0]["answer"] == "0003"
        assert all(ended(connection) for connection in idle[:150])
        assert server.run(lambda: len(server.server.server_state.connections)) <= Limits().connections
    finally:
        for connection in idle:
            connection.close()


def test_connections_are_bounded_when_all_are_at_work(launch: Callable[..., Running], workers: Workers) -> None:
    server = launch(connections=3)
    workers[0].hold()
    busy = [post(server, "/v1/solve", {"puzzles": ["1000"]}) for _ in range(3)]
    workers[0].executors["reverse"].wait()
    until(lambda: server.run(lambda: server.server.pool._queues["reverse"].running) == 3)
    status, headers, answer = server.ask("POST", "/v1/solve", {"puzzles": ["1000"]})
    assert (status, headers["retry-after"], answer["error"]["code"]) == (503, "1", "too_many_connections")
    assert answer["error"]["request_id"] == headers["x-request-id"]
    workers[0].gate(100)
    assert [connection.getresponse().status for connection in busy] == [200] * 3


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that has to come true."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


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
