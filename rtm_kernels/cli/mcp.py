"""`rtm mcp`: the solver as tools that an agent can call."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from rtm_kernels.cli.options import BatchSize, Device, Executor, MaxSteps, Noise, Rollouts, Seed


def mcp(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", metavar="[TASK=]MODEL", show_default=False,
            help="Bundled name, folder, or hub id, once per task. Default: the bundled models.",
        ),
    ] = None,
    transport: Annotated[str, typer.Option(help="stdio or http.", metavar="NAME")] = "stdio",
    host: Annotated[
        str, typer.Option(help="Address of http; any but loopback needs a token.", metavar="HOST")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of http; 0 takes a free one.", metavar="PORT")] = 8765,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File that holds the token of http; else the variable RTM_TOKEN.", metavar="FILE"),
    ] = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = 16,
    device: Device = None,
    executor: Executor = "auto",
    rollouts: Rollouts = 8,
    noise: Noise = 0.3,
    seed: Seed = 0,
) -> None:  # fmt: skip
    """Serve the solver to an agent over MCP: solve_sudoku, solve_maze, solve_arc_candidates, list_models.

    `verified` means that a rule checker confirmed the answer. Standard output
    carries only the protocol.

    Exit code: 0 the client ended, 2 bad input.

    Examples:

      rtm mcp
      rtm mcp --model sudoku --model maze=runs/maze --rollouts 8
      rtm mcp --transport http --port 8765
      rtm mcp --transport http --host 0.0.0.0 --token-file token.txt

    For a client that starts it: {"command": "rtm", "args": ["mcp"]}.
    """
    from rtm_kernels.errors import BackendUnavailable, one_of

    one_of("transport", transport, ("stdio", "http"))
    if importlib.util.find_spec("mcp") is None:
        raise BackendUnavailable("rtm mcp needs the package mcp: pip install 'rtm-kernels[mcp]'")
    import torch

    from rtm_kernels.access import Token
    from rtm_kernels.agent import server
    from rtm_kernels.agent.solvers import Solvers
    from rtm_kernels.engine import Rollouts as Runs
    from rtm_kernels.serve.server import bind

    token = Token.find(token_file)
    bound = bind(host, port, token) if transport == "http" else None
    options = {
        "max_steps": max_steps,
        "batch_size": batch_size,
        "executor": executor,
        "rollouts": Runs(rollouts, noise, seed),
    }
    with Solvers(model or (), device=device or ("cuda" if torch.cuda.is_available() else "cpu"), **options) as solvers:
        built = server.build(solvers)
        if bound is None:
            built.run("stdio")
        else:
            server.serve_http(built, bound, token)
