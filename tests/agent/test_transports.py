"""The real client over standard input and output, and over HTTP on loopback."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtm_kernels.access import Token
from tests.agent.conftest import with_client

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
TOKEN = "0123456789abcdef"


def test_over_stdio_with_the_bundled_model_and_a_folder(model_folders: dict[str, Path]) -> None:
    from mcp import StdioServerParameters

    arguments = ["-m", "rtm_kernels.cli.main", "mcp", "--model", "sudoku", "--model", f"maze={model_folders['maze']}"]
    env = {"OMP_NUM_THREADS": "1"}

    async def use(client: Any) -> list[Any]:
        return [
            await client.call_tool("solve_sudoku", {"puzzle": PUZZLE}),
            await client.call_tool("solve_maze", {"maze": "S" + "." * 898 + "G", "max_steps": 1}),
            await client.call_tool("solve_arc_candidates", {"test_input": [[1]]}),
            await client.call_tool("list_models", {}),
        ]

    found = with_client(StdioServerParameters(command=sys.executable, args=arguments, env=env), use)
    sudoku, maze, arc, models = found
    assert sudoku.structured_content["answer"] == ANSWER and sudoku.structured_content["verified"]
    assert not maze.is_error and maze.structured_content["shortest_steps"] == 58
    assert arc.is_error and "no model for arc is loaded (there are: sudoku, maze)" in arc.content[0].text
    assert models.structured_content["tasks_without_model"] == ["arc"]


@pytest.fixture
def address(solvers: Any) -> Iterator[str]:
    """A server behind a token, in a thread of this process."""
    from rtm_kernels.agent.server import LIMITS, build, http_app
    from rtm_kernels.serve.server import Server, bind

    token = Token(TOKEN)
    server = Server(http_app(build(solvers), "127.0.0.1", token), LIMITS, solvers.service, lifespan="on")
    with bind("127.0.0.1", 0, token) as bound:
        bound.listen()  # so that a client that comes before the thread runs waits for it
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/mcp"
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


def test_over_http_with_a_token(address: str) -> None:
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    async def use(client: Any) -> Any:
        return await client.call_tool("solve_sudoku", {"puzzle": PUZZLE})

    client = httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
    found = with_client(streamable_http_client(address, http_client=client), use)
    assert found.structured_content["answer"] == ANSWER
    for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": TOKEN}):
        refused = httpx2.post(address, json={}, headers=headers, timeout=30)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (401, "unauthorized") and error["request_id"]
    token = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/json, text/event-stream"}
    assert httpx2.post(address, content=b"{}", headers=token, timeout=30).status_code == 415
    large = token | {"Content-Type": "application/json", "Connection": "close"}
    assert httpx2.post(address, content=b" " * (4 << 20), headers=large, timeout=30).status_code == 413
    foreign = httpx2.post(address, json={}, headers=token | {"Host": "evil.example"}, timeout=30)
    assert foreign.status_code in (403, 421)
