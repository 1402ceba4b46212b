"""A whole server in this process: real sockets and all of the front, its worker a thread whose steps a test opens."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from rtm_kernels.engine import Service, Solver
from rtm_kernels.serve import pool as pool_module
from rtm_kernels.serve import worker
from rtm_kernels.serve.child import Setup
from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.server import Options, Server, serve
from tests.engine.fakes import TASK, model
from tests.engine.test_service import GatedExecutor

WAIT = 180.0
SLOTS = 16
SETUP = Setup((("reverse", "unused"),), slots=SLOTS)


class ThreadWorker:
    """What `child.start` gives, but a thread: `kill` cuts its socket and drops its work, as the end of a process."""

    def __init__(self, setup: Setup, max_steps: int, held: bool) -> None:
        self.pid = 0
        self.solvers: dict[str, Solver] = {}
        self.executors: dict[str, GatedExecutor] = {}
        for name, _ in setup.models:
            solver = Solver(model(), task=TASK, batch_size=setup.slots, max_steps=max_steps)
            self.executors[name] = solver.executor = GatedExecutor(solver)
            self.solvers[name] = solver
        self.gate(0 if held else 10_000)
        self.service: Service | None = None
        self.ours, self.theirs = socket.socketpair()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def gate(self, steps: int) -> None:
        for executor in self.executors.values():
            executor.open(steps)

    def hold(self) -> None:
        """Let no further step run until `gate` is called."""
        for executor in self.executors.values():
            while executor.gate.acquire(blocking=False):
                pass

    @property
    def held(self) -> int:
        """Puzzles that have arrived and are not solved."""
        stats = self.service.stats() if self.service else None
        return stats.queued + stats.running if stats else 0

    def _work(self) -> None:
        described = [worker.describe(name, solver) for name, solver in self.solvers.items()]
        worker.send_line(self.theirs, {"ready": described})
        self.service = service = Service(self.solvers, max_queued=1 << 16)
        worker.serve(self.theirs, service)
        self.gate(10_000)
        service.close(drain=False)

    def kill(self) -> None:
        self.theirs.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        self.gate(10_000)
        self.thread.join(WAIT)

    def close(self) -> None:
        self.theirs.close()


class Workers(list[ThreadWorker]):
    """Every worker started so far; those started while `held` is set run no step before their gate opens."""

    held = False

    def start(self, setup: Setup, limits: Limits) -> tuple[ThreadWorker, socket.socket]:
        found = ThreadWorker(setup, limits.steps, self.held)
        self.append(found)
        return found, found.ours


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Workers that the pools of this test start."""
    found = Workers()
    monkeypatch.setattr(pool_module, "start", found.start)
    return found


class Running:
    """A server on a free port of loopback, in a thread."""

    def __init__(self, options: Options) -> None:
        self.options, self.ready = options, threading.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.ready.wait(WAIT)

    def _run(self) -> None:
        asyncio.run(serve(self.options, self.listening, self._on_ready))

    def _on_ready(self, address: str, server: Server) -> None:
        self.server, self.loop = server, asyncio.get_running_loop()
        self.ready.set()

    def stop(self) -> None:
        self.server.should_exit = True

    def end(self) -> None:
        self.stop()
        self.thread.join(WAIT)
        assert not self.thread.is_alive()

    def run(self, function: Callable[[], Any]) -> Any:
        """`function` on the loop of the server."""

        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(WAIT)

    def raw(self, data: bytes, timeout: float = WAIT) -> bytes:
        """Everything that the server sends in answer to `data`, until it closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))

    def raw_refusal(self, data: bytes) -> int:
        """The status of the answer to `data`, sent while the answer may already be there."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
            return int(connection.recv(1 << 12).split(b" ", 2)[1])

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers, body); the body read as JSON where it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        try:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before the body was sent
                connection.request(method, path, data, {"content-type": "application/json"} | (headers or {}))
            response = connection.getresponse()
            content, found = response.read(), {k.lower(): v for k, v in response.getheaders()}
        finally:
            connection.close()
        is_json = found.get("content-type", "").startswith("application/json")
        return response.status, found, json.loads(content) if is_json else content.decode()

    def solve(self, *puzzles: str, **options: Any) -> tuple[int, Any]:
        status, _, body = self.ask("POST", "/v1/solve", {"puzzles": list(puzzles), **options})
        return status, body

    def code(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """(status, error code) of a request that is refused in the promised form."""
        status, found, answer = self.ask(method, path, body, headers)
        assert set(answer) == {"error"} and set(answer["error"]) == {"code", "message", "request_id"}, answer
        assert answer["error"]["request_id"] == found["x-request-id"]
        assert not any(word in answer["error"]["message"] for word in ("Traceback", ".py", "site-packages"))
        return status, answer["error"]["code"]


def metric(page: str, start: str) -> float:
    """The value of the line of a metrics page that starts so."""
    return float(next(line for line in page.splitlines() if line.startswith(start)).split()[-1])


def post(server: Running, path: str, body: Any) -> http.client.HTTPConnection:
    """A request whose answer is still to be read."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    return connection


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that has to come true."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
