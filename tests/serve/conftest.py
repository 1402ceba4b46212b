from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from rtm_kernels.engine import Solver
from tests.serve.support import Running


@pytest.fixture
def launch() -> Iterator[Callable[..., Running]]:
    """Starts servers with other limits or a token; they end with the test."""
    servers: list[Running] = []

    def start(token: str | None = None, solver: Solver | None = None, **limits: float) -> Running:
        servers.append(Running(token, solver, **limits))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """A server with the default limits; a test that closes its gate opens it again."""
    found = Running()
    yield found
    found.end()
