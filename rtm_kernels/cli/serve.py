"""`rtm serve`: the solver over HTTP."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from rtm_kernels.cli.options import Device, Executor, Halt, Host, Port, TokenFile, default_device

PACKAGES = ("fastapi", "pydantic", "uvicorn", "prometheus_client")


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="Bundled name, folder or hub id; NAME=FOLDER names it. Repeatable.", metavar="MODEL",
            show_default="sudoku",
        ),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token_file: TokenFile = None,
    slots: Annotated[int, typer.Option(help="Puzzles in the batch of each model.", metavar="N")] = 16,
    device: Device = None,
    executor: Executor = "auto",
    halt: Halt = "verified",
    batch_invariant: Annotated[bool, typer.Option(help="Results do not depend on what else is in the batch.")] = True,
    json_lines: Annotated[bool, typer.Option("--json", help="Log as JSON lines on standard error.")] = False,
) -> None:  # fmt: skip
    """Serve models over HTTP: solve, stream, models, health, metrics.

    On SIGTERM the server finishes the requests it has and takes no more. If the
    solver fails, the process exits, so that its supervisor can start it again.

    Exit code: 0 after SIGTERM or Ctrl-C, 2 when it cannot start or fails.

    Examples:

      rtm serve
      rtm serve --port 9000 --slots 64 --json
      rtm serve --model sudoku --model maze=runs/maze/model
      rtm serve --host 0.0.0.0 --token-file token.txt
      curl -s localhost:8000/v1/solve -H 'content-type: application/json' \\
        -d '{"puzzles": ["53..7....6..195....98....6.(and so on, 81 in all)"]}'
    """  # fmt: skip
    from rtm_kernels.errors import BackendUnavailable, require

    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendUnavailable(f"rtm serve needs {', '.join(missing)}: pip install 'rtm-kernels[serve]'")
    from rtm_kernels.access import Token
    from rtm_kernels.serve.app import build_app
    from rtm_kernels.serve.front import Front, names
    from rtm_kernels.serve.schema import Limits
    from rtm_kernels.serve.server import Server, bind, configure_log

    configure_log(json_lines)
    require(1 <= slots <= 4096, "slots", slots, "1 to 4096")
    sources, token = names(model or ["sudoku"]), Token.find(token_file)
    with bind(host, port, token) as bound:
        front = Front.load(
            sources, Limits(), policy=halt, batch_size=slots, executor=executor, batch_invariant=batch_invariant,
            device=device or default_device(),
        )  # fmt: skip
        Server(build_app(front, token), front.limits, front.service, lifespan="off").run_on(bound)
