"""A whole server in this process: real sockets, and an executor whose steps a test opens one by one."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from rtm_kernels.access import Token
from rtm_kernels.engine import Solver
from rtm_kernels.serve.app import build_app
from rtm_kernels.serve.front import Front
from rtm_kernels.serve.schema import Limits
from rtm_kernels.serve.server import Server, bind
from tests.engine.fakes import TASK, model
from tests.engine.test_service import GatedExecutor

WAIT = 180.0
SLOTS = 16
MANY = 20_000


def gated_solver() -> tuple[Solver, GatedExecutor]:
    """A solver of the task `reverse` and its executor, whose gate is open."""
    solver = Solver(model(), task=TASK, batch_size=SLOTS, max_steps=64)
    solver.executor = executor = GatedExecutor(solver)
    executor.open(MANY)
    return solver, executor


class Client:
    """Sends requests to a server on loopback."""

    port: int

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers, body); the body read as JSON where it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before the body was sent
                connection.request(method, path, data, {"content-type": "application/json"} | (headers or {}))
            response = connection.getresponse()
            content, found = response.read(), {k.lower(): v for k, v in response.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return response.status, found, json.loads(content) if is_json else content.decode()

    def post(self, path: str, puzzles: list[str], **options: Any) -> http.client.HTTPConnection:
        """A request whose answer is still to be read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        body = json.dumps({"puzzles": puzzles, **options})
        connection.request("POST", path, body, {"content-type": "application/json"})
        return connection

    def solve(self, *puzzles: str, **options: Any) -> list[dict[str, Any]]:
        status, _, answer = self.ask("POST", "/v1/solve", {"puzzles": list(puzzles), **options})
        assert status == 200, answer
        return list(answer["solutions"])

    def code(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """(status, error code) of a request that is refused in the promised form."""
        status, found, answer = self.ask(method, path, body, headers)
        check_refusal(found, answer)
        return status, answer["error"]["code"]


class Running(Client):
    """A server on a free port of loopback, in a thread."""

    held = False

    def __init__(self, token: str | None = None, solver: Solver | None = None, **limits: Any) -> None:
        if solver is None:
            solver, self.executor = gated_solver()
        found = None if token is None else Token(token)
        self.front = Front({"reverse": solver}, Limits(**limits))
        self.service = self.front.service
        self.server = Server(build_app(self.front, found), self.front.limits, self.service, lifespan="off")
        bound = bind("127.0.0.1", 0, found)
        bound.listen()
        self.port = bound.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [bound]}, daemon=True)
        self.thread.start()

    def hold(self) -> None:
        """Let no further step run until `open`."""
        self.held = True
        while self.executor.gate.acquire(blocking=False):
            pass

    def open(self, steps: int | None = None) -> None:
        """Let so many steps run, or all."""
        if self.held:
            self.held = steps is not None
            self.executor.open(steps or MANY)

    def end(self) -> None:
        self.server.should_exit = True
        self.open()
        self.thread.join(WAIT)
        assert not self.thread.is_alive()

    def raw(self, data: bytes) -> bytes:
        """Everything that the server sends in answer to `data`, until it closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT) as connection:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def check_refusal(headers: dict[str, str], answer: Any) -> None:
    assert set(answer) == {"error"} and set(answer["error"]) == {"code", "message", "request_id"}, answer
    assert answer["error"]["request_id"] == headers["x-request-id"] and headers["cache-control"] == "no-store"
    message = answer["error"]["message"]
    assert message.isprintable() and not any(word in message for word in ("Traceback", ".py", "site-packages"))


def metric(page: str, start: str) -> float:
    """The value of the line of a metrics page that starts so."""
    return float(next(line for line in page.splitlines() if line.startswith(start)).split()[-1])


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that has to come true."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
