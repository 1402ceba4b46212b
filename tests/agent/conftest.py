"""Models of random weights for every task, and an MCP client of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.oracle import oracle, saved

pytest.importorskip(
    "mcp", reason="no package mcp here: the agent's tools stay unproven (pip install 'rtm-kernels[mcp]')"
)

__all__ = ["oracle"]
Found = TypeVar("Found")


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model of random weights per task."""
    folder = tmp_path_factory.mktemp("agents")
    return {task: saved(task, folder) for task in ("sudoku", "maze", "arc")}


@pytest.fixture(scope="session")
def solvers(model_folders: dict[str, Path], oracle: None) -> Iterator[Any]:
    """All three tasks, played by the oracle."""
    from rtm_kernels.agent.solvers import Solvers

    with Solvers([f"{task}={folder}" for task, folder in model_folders.items()], executor="oracle") as found:
        yield found


def with_client(target: Any, use: Callable[[Any], Awaitable[Found]]) -> Found:
    """What `use` returns, given an MCP client that is connected to `target`."""
    from mcp import Client

    async def main() -> Found:
        async with Client(target, read_timeout_seconds=60) as client:
            return await use(client)

    return asyncio.run(main())


@pytest.fixture
def ask(solvers: Any) -> Callable[..., list[Any]]:
    """Calls tools of an in-process server, each given as (name, arguments)."""
    from rtm_kernels.agent.server import build

    async def use(client: Any, calls: Any) -> list[Any]:
        return [await client.call_tool(name, arguments) for name, arguments in calls]

    return lambda *calls: with_client(build(solvers), lambda client: use(client, calls))


@pytest.fixture
def call(ask: Callable[..., list[Any]]) -> Callable[..., Any]:
    """Calls one tool."""
    return lambda name, **arguments: ask((name, arguments))[0]
