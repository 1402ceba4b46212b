from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from rtm_kernels.access import Token
from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.server import Options
from tests.serve.support import SETUP, Running, Workers, workers

__all__ = ["workers"]


@pytest.fixture
def launch(workers: Workers) -> Iterator[Callable[..., Running]]:
    """Starts servers with other limits or a token; they end with the test."""
    servers: list[Running] = []

    def start(token: str | None = None, **limits: float) -> Running:
        servers.append(
            Running(Options(SETUP, port=0, token=None if token is None else Token.of(token), limits=Limits(**limits)))
        )  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for worker in workers:
        worker.gate(10_000)
    for server in servers:
        server.end()


@pytest.fixture
def server(launch: Callable[..., Running]) -> Running:
    """A server with the limits as they ship."""
    return launch()
