"""Sockets: what HTTP itself refuses, how many there may be, how long each has, and how one ends."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

import pytest

from rtm_kernels.serve.limits import Limits
from tests.serve.support import WAIT, Running, Workers, metric, post, until

HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"


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
LARGE = b" " * (8 << 20)
CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"


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
    answer = server.raw(head(b"Transfer-Encoding: chunked\r\n", CHUNK * 4 + b"1\r\n "))
    assert refusal(answer) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (head(b"Content-Length: 8388608\r\n", LARGE), (413, "body_too_large")),
        (head(b"Transfer-Encoding: chunked\r\n", CHUNK * 128 + b"0\r\n\r\n"), (413, "body_too_large")),
        (head(b"Content-Length: 8388608\r\n", LARGE).replace(b"localhost", b"evil.example"), (421, "wrong_host")),
        (head(b"Content-Length: 8388608\r\n", LARGE).replace(b"HTTP/1.1", b"HTTP/1.0"), (413, "body_too_large")),
        (head(b"Transfer-Encoding: gzip\r\n", LARGE), NO_HTTP),
    ],
    ids=["length", "chunked", "host", "http_1_0", "no_http"],
)
def test_a_client_that_sends_all_before_it_reads_sees_the_refusal(
    launch: Callable[..., Running], data: bytes, expected: tuple[int, str]
) -> None:
    """A socket closed with bytes unread would be reset: the client could not send on, and might lose the answer."""
    server = launch(linger=WAIT)
    assert refusal(server.raw(data)) == expected
    until(lambda: server.run(lambda: len(server.server.server_state.connections)) == 0)


def test_a_connection_goes_on_after_a_body_that_was_refused(launch: Callable[..., Running]) -> None:
    server = launch(read=WAIT)
    large = head(b"Content-Length: 8388608\r\n", LARGE).replace(b"Connection: close\r\n", b"")
    first, _, second = server.raw(large + head(b"Content-Length: 2\r\n", b"{}")).partition(b"}}")
    assert first.startswith(b"HTTP/1.1 413") and second.startswith(b"HTTP/1.1 422")


@pytest.mark.parametrize("ending", [b"Connection: close\r\n", b""], ids=["closed", "kept"])
def test_what_is_dropped_after_a_refusal_is_bounded(launch: Callable[..., Running], ending: bytes) -> None:
    server, most = launch(linger=WAIT, read=WAIT), Limits().dropped
    start = head(b"Content-Length: 9999999999\r\n").replace(b"Connection: close\r\n", ending)
    sent, buffers = 0, 32 << 20
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as connection:
        connection.sendall(start)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while sent <= most + buffers:
                sent += connection.send(LARGE)
    assert sent >= most


def test_a_client_that_was_refused_cannot_stay(launch: Callable[..., Running]) -> None:
    server = launch(linger=0.2, read=WAIT)
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as connection:
        connection.sendall(head(b"Content-Length: 9999999999\r\n"))
        assert refusal(b"".join(iter(lambda: connection.recv(1 << 16), b""))) == (413, "body_too_large")
        began = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while time.monotonic() - began < WAIT / 2:
                connection.sendall(b" ")
                time.sleep(0.02)


def test_clients_that_were_refused_keep_nobody_out(launch: Callable[..., Running]) -> None:
    """As many as there may be connections are read on beside them; one more cuts the oldest."""
    server = launch(connections=3, linger=WAIT)
    staying = []
    for _ in range(8):
        staying.append(socket.create_connection(("127.0.0.1", server.port), timeout=WAIT))
        staying[-1].sendall(head(b"Content-Length: 9999999999\r\n"))
        assert staying[-1].recv(12) == b"HTTP/1.1 413"
    assert [server.solve("1000")[0] for _ in range(4)] == [200] * 4
    for connection in staying[:5]:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            end = time.monotonic() + WAIT / 2
            while time.monotonic() < end:
                connection.sendall(b" ")
                time.sleep(0.01)
    for connection in staying[5:]:
        connection.sendall(LARGE)
    for connection in staying:
        connection.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="no TCP_QUICKACK here")
def test_an_answer_does_not_wait_until_the_client_acknowledges_its_head(server: Running) -> None:
    """A client may wait 40 ms before it does; head and body of an answer are two segments."""
    data, seconds = b"GET /nope HTTP/1.1\r\n" + HOST + b"\r\n", []
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as connection:
        for _ in range(50):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            began, answer = time.perf_counter(), b""
            connection.sendall(data)
            while not answer.endswith(b"}}"):
                answer += connection.recv(1 << 12)
            seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.03


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
    server = launch(connections=3, linger=WAIT)
    workers[0].hold()
    busy = [post(server, "/v1/solve", {"puzzles": ["1000"]}) for _ in range(3)]
    workers[0].executors["reverse"].wait()
    until(lambda: server.run(lambda: server.server.pool._queues["reverse"].running) == 3)
    status, headers, answer = server.ask("POST", "/v1/solve", {"puzzles": ["1000"]})
    assert (status, headers["retry-after"], answer["error"]["code"]) == (503, "1", "too_many_connections")
    assert answer["error"]["request_id"] == headers["x-request-id"]
    assert refusal(server.raw(head(b"Content-Length: 8388608\r\n", LARGE))) == (503, "too_many_connections")
    workers[0].gate(100)
    assert [connection.getresponse().status for connection in busy] == [200] * 3
