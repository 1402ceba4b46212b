"""`rtm serve`: the solver over HTTP."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rtm_kernels.cli.options import Device, Executor, Halt, Host, Port, TokenFile

if TYPE_CHECKING:
    from rtm_kernels.serve.front import Front

PACKAGES = ("fastapi", "pydantic", "uvicorn", "prometheus_client")


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Bundled name, folder or hub id; NAME=FOLDER names it. Repeatable.",
            metavar="MODEL",
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
) -> None:
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
    from rtm_kernels.serve.logs import configure, log

    configure(json_lines)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendUnavailable(f"rtm serve needs {', '.join(missing)}: pip install 'rtm-kernels[serve]'")
    from rtm_kernels.access import Token
    from rtm_kernels.serve.limits import Limits
    from rtm_kernels.serve.server import Server, address_of, bind, end_at_once

    require(1 <= slots <= 4096, "slots", slots, "1 to 4096")
    named = [split_name(text) for text in model or ["sudoku"]]
    names = [name for name, _ in named]
    require(len(set(names)) == len(names), "model", names, "each name once (NAME=FOLDER gives another one)")
    limits, token = Limits(), Token.find(token_file)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, end_at_once)
    with bind(host, port, token) as bound:
        from rtm_kernels.cli.load import default_device
        from rtm_kernels.engine import Solver
        from rtm_kernels.model import RecursiveReasoner
        from rtm_kernels.serve.front import Front

        solvers = {}
        for name, source in named:
            found = RecursiveReasoner.from_pretrained(source)
            cells = found.config.seq_len
            require(cells <= limits.cells, f"model {name}", f"{cells} cells", f"at most {limits.cells} are served")
            solvers[name] = Solver(
                found, policy=halt, max_steps=limits.steps, batch_size=slots, executor=executor,
                device=device or default_device(), batch_invariant=batch_invariant,
            )  # fmt: skip
        front = Front(solvers, limits)
        bound.listen()
        if json_lines:
            log.info("listening", extra={"address": address_of(bound)})
        else:
            print_start(address_of(bound), front, token is not None)
        Server(front, token).run_on(bound)


def split_name(text: str) -> tuple[str, str]:
    """(name, source) of one --model: `sudoku`, `runs/x/model`, `maze=runs/maze/model`. A folder is named by its end."""
    from rtm_kernels.errors import require

    name, equals, source = text.partition("=")
    if not equals:
        name, source = Path(text).name, text
    valid = 0 < len(name) <= 64 and all(c.isalnum() or c in "._-" for c in name) and name.isascii()
    require(valid and bool(source), "model", text, "a name of letters, digits, . _ and -, or NAME=FOLDER")
    return name, source


def print_start(address: str, front: Front, guarded: bool) -> None:
    from rich.console import Console

    from rtm_kernels.cli.report import print_table

    limits = front.limits
    rows = {"address": address, "token": "needed on every route but /healthz" if guarded else "none: loopback"}
    for name, found in front.models.items():
        rows[f"model {name}"] = (
            f"{found.task}, {found.arch}, {found.parameters:,} parameters, {found.executor} on {found.device}, "
            f"halting {found.halting}, {found.default_max_steps} steps"
        )
    rows["limits"] = (
        f"{limits.puzzles} puzzles and {limits.body >> 10} KiB a request, {limits.queued} puzzles may wait, "
        f"{limits.requests} requests at a time, {limits.request:g} s each"
    )
    rows["routes"] = "POST /v1/solve /v1/stream   GET /v1/models /healthz /metrics /openapi.json"
    print_table(Console(stderr=True, highlight=False), rows)
