from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from tests.serve.support import Running


@pytest.fixture
def launch() -> Iterator[Callable[..., Running]]:
    """Starts servers with other limits or a token; they end with the test."""
    servers: list[Running] = []

    def start(token: str | None = None, **limits: float) -> Running:
        servers.append(Running(token, **limits))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture(scope="session")
def shared() -> Iterator[Running]:
    """A server with the limits as they ship."""
    server = Running()
    yield server
    server.end()


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    """The shared server, whose gate is open again after the test."""
    yield shared
    shared.open()
