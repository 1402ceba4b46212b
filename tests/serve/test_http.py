"""The routes, their limits and refusals, over real sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from rtm_kernels import RecursiveReasoner, Solver
from tests.serve.support import SLOTS, WAIT, Running, check_refusal, metric, until

TOKEN = "a-token-of-enough-characters"


def test_solve_answers_in_the_order_of_the_puzzles(server: Running) -> None:
    found = server.solve("4000", "1000", "x", "2007", model="reverse")
    assert [(s["index"], s["input"], s["answer"], s["status"], s["steps"]) for s in found] == [
        (0, "4000", "0004", "verified", 4), (1, "1000", "0001", "verified", 1), (2, "x", None, "invalid", 0),
        (3, "2007", None, "non_finite", 2),
    ]  # fmt: skip
    assert "puzzle length=1" in found[2]["error"]
    assert [server.solve("7000", max_steps=n)[0]["steps"] for n in (3, 64)] == [3, 7]


def test_a_deadline_gives_the_best_answer_so_far(server: Running) -> None:
    server.hold()
    connection = server.post("/v1/solve", ["7000"], deadline=1)
    until(lambda: server.service.running == 1)
    until(lambda: server.executor.stepped.acquire(blocking=False))
    time.sleep(1.1)
    server.open()
    (found,) = json.loads(connection.getresponse().read())["solutions"]
    assert (found["status"], found["reason"], found["answer"]) == ("unverified", "deadline", "1111")


def events(text: str) -> list[tuple[str, Any]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]


def test_stream_sends_each_solution_when_it_is_done(server: Running) -> None:
    server.hold()
    response = server.post("/v1/stream", ["5000", "1000", "3000"]).getresponse()
    assert response.status == 200 and response.getheader("content-type", "").startswith("text/event-stream")
    until(lambda: server.service.running == 3)
    for steps, index in ((1, 1), (2, 2), (2, 0)):
        server.open(steps)
        ((kind, data),) = events(b"".join(response.readline() for _ in range(3)).decode())
        assert (kind, data["index"], data["status"]) == ("solution", index, "verified")
    server.open()
    ((kind, data),) = events(response.read().decode())
    assert kind == "done" and data["solutions"] == 3


def test_models_health_metrics_and_the_document(launch: Callable[..., Running]) -> None:
    server = launch()
    (model,) = server.ask("GET", "/v1/models")[2]["models"]
    assert (model["name"], model["task"], model["cells"], model["default_max_steps"]) == ("reverse", "reverse", 4, 8)
    assert server.ask("GET", "/healthz")[2] == {"status": "ok"}
    server.solve("1000", "3000")
    _, headers, page = server.ask("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain")
    assert metric(page, 'rtm_puzzles_total{model="reverse",status="verified"}') == 2
    assert metric(page, 'rtm_requests_total{code="",route="/v1/solve",status="200"}') == 1
    assert metric(page, 'rtm_act_steps_total{model="reverse"}') == 4
    assert metric(page, "rtm_puzzles_running") == metric(page, "rtm_puzzles_queued") == 0
    document = server.ask("GET", "/openapi.json")[2]
    assert set(document["paths"]) == {"/v1/solve", "/v1/stream", "/v1/models", "/healthz", "/metrics"}
    for path, refused in (("/docs", 404), ("/v1/solve/", 404), ("/../etc/passwd", 404), ("/v1/solve", 405)):
        assert server.code("GET", path)[0] == refused
    schema = document["components"]["schemas"]["SolveRequest"]
    assert schema["additionalProperties"] is False and schema["properties"]["puzzles"]["maxItems"] == 64


def test_health_notices_other_bits_and_a_stuck_solver(launch: Callable[..., Running]) -> None:
    server = launch(probe=0.3, request=1.0, read=0.2)
    server.hold()
    assert server.code("POST", "/v1/solve", {"puzzles": ["1000"]}) == (503, "deadline")
    assert server.code("GET", "/healthz") == (503, "probe_timeout")
    threading.Timer(0.1, server.open, [1]).start()
    assert server.ask("GET", "/healthz")[0] == 200  # a busy solver is not a stuck one
    server.open()
    until(lambda: server.ask("GET", "/healthz")[0] == 200)
    server.front._golden["reverse"] = ("0001", "verified")
    server.front._healthy_at -= 10
    until(lambda: server.code("GET", "/healthz") == (503, "golden_mismatch"))


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid_request"),
        (b"{", 400, "not_json"),
        (b"\xff\xfe", 400, "not_json"),
        (b"[1, 2]", 422, "invalid_request"),
        (b'{"puzzles": ["1000"], "max_steps": ' + b"9" * 5000 + b"}", 400, "not_json"),
        ({}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "extra": 1}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "\ud800": 1}, 422, "invalid_request"),
        ({"puzzles": ["\ud800"]}, 422, "invalid_request"),
        ({"puzzles": ["1000"] * 65}, 422, "invalid_request"),
        ({"puzzles": ["1" * 8193]}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "max_steps": 65}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "deadline": 31}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "deadline": float("nan")}, 422, "invalid_request"),
        ({"puzzles": ["1000"], "model": "../../etc"}, 404, "unknown_model"),
        (b"[" * (1 << 17), 400, "not_json"),
        (b'{"puzzles":[' + b"[]," * 80_000 + b"[]]}", 422, "invalid_request"),
        (b" " * ((256 << 10) + 1), 413, "body_too_large"),
    ],
)  # fmt: skip
def test_what_is_refused(server: Running, body: Any, status: int, code: str) -> None:
    assert server.code("POST", "/v1/solve", body) == (status, code)


def test_mazes_of_every_side_are_served_and_larger_ones_refused(launch: Callable[..., Running]) -> None:
    maze = Solver(RecursiveReasoner.from_pretrained("maze"), max_steps=1, batch_size=2)
    server = launch(solver=maze)
    spaced = "\n".join(" ".join(row) for row in ["S" + "." * 63, *["." * 64] * 62, "." * 63 + "G"])
    for text, status in (
        (spaced, "unverified"),
        (field(31), "unverified"),
        (field(65), "invalid"),
        ("S" * 8192, "invalid"),
    ):
        [found] = server.solve(text)
        assert found["status"] == status and len(found["answer"] or "") in (0, 31 * 31, 64 * 64)
    assert server.code("POST", "/v1/solve", {"puzzles": [spaced + "  "]}) == (422, "invalid_request")


def field(side: int) -> str:
    """An open field from corner to corner, too wide for one step."""
    return "S" + "." * (side * side - 2) + "G"


def test_only_json_from_loopback_names_is_read(server: Running) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert server.code("POST", "/v1/solve", b"{}", {"content-type": kind}) == (415, "not_json")
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8000", ""):
        assert server.code("GET", "/v1/models", headers={"host": host}) == (421, "wrong_host")
    for host in ("localhost", "LOCALHOST:80", "[::1]:8000", "127.0.0.1"):
        assert server.ask("GET", "/v1/models", headers={"host": host})[0] == 200


def test_the_token_is_needed_on_every_route_but_health(launch: Callable[..., Running]) -> None:
    server = launch(token=TOKEN)
    document = server.ask("GET", "/openapi.json", headers={"authorization": f"Bearer {TOKEN}"})[2]
    routes = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    for method, path in [*routes, ("GET", "/openapi.json"), ("GET", "/nope"), ("PUT", "/v1/solve")]:
        for wrong in ({}, {"authorization": TOKEN}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": "Bearer"}):
            if path != "/healthz":
                assert server.code(method, path, headers=wrong) == (401, "unauthorized")
    assert server.ask("GET", "/healthz", headers={"host": "anything.example"})[0] == 200
    right = {"authorization": f"bearer  {TOKEN}", "host": "anything.example"}
    assert server.ask("POST", "/v1/solve", {"puzzles": ["1000"]}, right)[0] == 200


def test_a_full_queue_refuses_a_request_as_a_whole(launch: Callable[..., Running]) -> None:
    server = launch(queued=32)
    server.hold()
    first = server.post("/v1/solve", ["1000"] * 20)
    until(lambda: server.service.running == SLOTS and server.service.queued == 4)
    second = server.post("/v1/solve", ["1000"] * 28)
    until(lambda: server.service.queued == 32)
    status, headers, answer = server.ask("POST", "/v1/solve", {"puzzles": ["1000"] * 10})
    assert (status, headers["retry-after"], answer["error"]["code"]) == (503, "1", "overloaded")
    assert server.service.queued == 32
    server.open()
    for connection, count in ((first, 20), (second, 28)):
        answers = [s["answer"] for s in json.loads(connection.getresponse().read())["solutions"]]
        assert answers == ["0001"] * count


def test_running_requests_are_bounded_but_health_is_answered(launch: Callable[..., Running]) -> None:
    server = launch(requests=3)
    server.hold()
    busy = [server.post("/v1/solve", ["1000"]) for _ in range(3)]
    until(lambda: server.service.queued + server.service.running == 3)
    status, headers, answer = server.ask("POST", "/v1/solve", {"puzzles": ["1000"]})
    assert (status, headers["retry-after"], answer["error"]["code"]) == (503, "1", "overloaded")
    server.open()
    assert server.ask("GET", "/healthz")[0] == 200
    assert [connection.getresponse().status for connection in busy] == [200] * 3


@pytest.mark.parametrize("path", ["/v1/solve", "/v1/stream"])
def test_a_client_that_disconnects_frees_its_slots(server: Running, path: str) -> None:
    server.hold()
    gone = server.post(path, ["7000"] * 64)
    until(lambda: server.service.running == SLOTS)
    gone.close()
    until(lambda: server.service.queued == server.service.running == 0)
    server.open()
    assert server.solve("1000")[0]["answer"] == "0001"
    page = server.ask("GET", "/metrics")[2]
    assert metric(page, f'rtm_requests_total{{code="client_gone",route="{path}"') >= 1


def test_draining_answers_what_it_can_and_refuses_the_rest(launch: Callable[..., Running]) -> None:
    server = launch(drain=2.0)
    server.hold()
    soon, never = server.post("/v1/solve", ["1000"]), server.post("/v1/solve", ["7000"])
    streamed = server.post("/v1/stream", ["7000"]).getresponse()
    until(lambda: server.service.queued + server.service.running == 3)
    server.server.should_exit = True
    server.open(2)
    assert json.loads(soon.getresponse().read())["solutions"][0]["answer"] == "0001"
    refused = never.getresponse()
    answer = json.loads(refused.read())
    assert (refused.status, refused.getheader("retry-after"), answer["error"]["code"]) == (503, "5", "stopping")
    assert events(streamed.read().decode())[-1][1]["code"] == "stopping"
    server.end()
    with pytest.raises(OSError):
        server.solve("1000")


def test_a_failing_solver_ends_the_server(launch: Callable[..., Running]) -> None:
    server = launch()

    def broken(**_: Any) -> Any:
        raise RuntimeError("device lost")

    server.executor.gate.acquire = broken  # type: ignore[method-assign]
    assert server.code("POST", "/v1/solve", {"puzzles": ["1000"]}) == (503, "stopping")
    server.thread.join(WAIT)
    assert not server.thread.is_alive() and server.service.failure == "the service failed: device lost"


HEAD = b"POST /v1/solve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
LARGE = b" " * (8 << 20)
CHUNKS = (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 128 + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + b"Content-Length: 8388608\r\n\r\n" + LARGE, 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, 413),
        ((HEAD + b"Content-Length: 8388608\r\n\r\n" + LARGE).replace(b"localhost", b"evil.example"), 421),
        ((HEAD + b"Content-Length: 8388608\r\n\r\n" + LARGE).replace(b"HTTP/1.1", b"HTTP/1.0"), 413),
    ],
    ids=["length", "chunked", "host", "http_1_0"],
)
def test_a_client_that_sends_all_before_it_reads_sees_the_refusal(server: Running, data: bytes, status: int) -> None:
    """A socket closed with bytes unread would be reset: the client could not send on, and might lose the answer."""
    head, _, body = server.raw(data).partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert int(head.split()[1]) == status and headers["connection"] == "close"
    check_refusal(headers, json.loads(body))


def test_slow_and_endless_bodies_are_cut(launch: Callable[..., Running]) -> None:
    server = launch(read=0.2, dropped=1 << 20)
    answer = server.raw(HEAD + b"Content-Length: 10\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408") and b"read_timeout" in answer
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as connection:
        connection.sendall(HEAD + b"Content-Length: 99999999999\r\n\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(20):
                connection.sendall(LARGE)
