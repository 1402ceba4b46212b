"""`rtm mcp`: the solver as tools that an agent can call."""

from __future__ import annotations

import importlib.util
import sys
from typing import Annotated

import typer

from rtm_kernels.cli.options import Host, Port, SolverOptions, TokenFile, solver_arguments, with_solver_options


@with_solver_options(
    model=..., batch_size=16, precision=..., min_steps=..., halt=..., rollouts=8, rollout_kind=..., agree=...
)  # fmt: skip
def mcp(
    options: SolverOptions,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", metavar="[TASK=]MODEL", show_default=False,
            help="Bundled name, folder, or hub id, once per task. Default: the bundled models.",
        ),
    ] = None,
    transport: Annotated[str, typer.Option(help="stdio or http.", metavar="NAME")] = "stdio",
    host: Host = "127.0.0.1",
    port: Port = 8765,
    token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Serve the solver to an agent over MCP: solve_sudoku, solve_maze, solve_arc_candidates, list_models.

    `verified` means that a rule checker confirmed the answer. Over stdio only
    protocol messages go to standard output.

    Exit code: 0 the client disconnected, 2 bad input.

    Examples:

      rtm mcp
      rtm mcp --model sudoku --model maze=runs/maze --rollouts 8
      rtm mcp --transport http --port 8765
      rtm mcp --transport http --host 0.0.0.0 --token-file token.txt

    To let a client start it: {"command": "rtm", "args": ["mcp"]}.
    """
    from rtm_kernels.errors import BackendUnavailable, one_of, require

    one_of("transport", transport, ("stdio", "http"))
    closed = transport == "stdio" and None in (sys.stdin, sys.stdout)
    require(not closed, "transport", "stdio", "http, because standard input or output is closed")
    if importlib.util.find_spec("mcp") is None:
        raise BackendUnavailable("rtm mcp needs the package mcp: pip install 'rtm-kernels[mcp]'")
    from rtm_kernels.access import Token
    from rtm_kernels.agent import server
    from rtm_kernels.agent.solvers import Solvers
    from rtm_kernels.serve.server import Server, bind, configure_log

    token = Token.find(token_file)
    bound = bind(host, port, token) if transport == "http" else None
    with Solvers(model or (), **solver_arguments(options)) as solvers:
        built = server.build(solvers)
        if bound is None:
            built.run("stdio")
        else:
            configure_log(as_json=False)
            app = server.http_app(built, host, token)
            Server(app, server.LIMITS, solvers.service, lifespan="on").run_on(bound)
