"""The process that solves: puzzles in, solutions out, one JSON object a line over a socket; it ends with the socket.

Messages to it: `{"solve": id, "model", "text", "max_steps", "deadline", "priority"}`, `{"cancel": id}`. From it, first
`{"ready": [model, ...]}` or `{"failed": message}`, then `{"solved": id, "solution": {...}}`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import torch

from rtm_kernels.engine import Closed, Service, Solution, Solver
from rtm_kernels.errors import RTMError, require
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.serve.child import Setup
from rtm_kernels.serve.limits import Limits

FAILED = 3
"""Exit code of a worker whose service failed; it is replaced like one that crashed."""


def main(setup: Setup, limits: Limits, connection: socket.socket) -> None:
    """Serve `connection` until the front closes it. The front decides when to stop, so signals of a terminal do not."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr, flush=True)
    try:
        solvers = {name: load(name, source, setup, limits) for name, source in setup.models}
    except (RTMError, OSError) as error:
        send_line(connection, {"failed": " ".join(str(error).splitlines())})
        return
    send_line(connection, {"ready": [describe(name, solver) for name, solver in solvers.items()]})
    serve(connection, Service(solvers, max_queued=1 << 16))
    os._exit(0)  # not waiting for an ACT step whose answer nobody reads any more


def load(name: str, source: str, setup: Setup, limits: Limits) -> Solver:
    """The solver of one model, within the limits. A step cap of a request lowers the cap of its policy."""
    model = RecursiveReasoner.from_pretrained(source)
    cells = model.config.seq_len
    require(cells <= limits.cells, f"model {name}", f"{cells} cells", f"at most {limits.cells} are served")
    solver = Solver(
        model,
        policy=setup.halt,
        max_steps=limits.steps,
        batch_size=setup.slots,
        device=setup.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        executor=setup.executor,
        batch_invariant=setup.batch_invariant,
    )
    return solver


def describe(name: str, solver: Solver) -> dict[str, Any]:
    """What GET /v1/models says of a model, and its golden puzzle."""
    from rtm_kernels.data.examples import example_names, example_puzzles

    model, task = solver.model, solver.task
    golden = example_puzzles(task.name)[0].text if task.name in example_names() else task.vocabulary[0] * task.seq_len
    return {
        "name": name,
        "task": task.name,
        "arch": model.config.arch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "cells": task.seq_len,
        "vocabulary": task.vocabulary,
        "default_max_steps": min(model.config.halt_max_steps, solver.policy.max_steps),
        "executor": solver.executor.name,
        "device": str(model.device),
        "halting": str(solver.policy),
        "weights_sha256": digest(model.state_dict()),
        "golden": golden,
    }


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the names and bytes of the weights."""
    import hashlib

    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def serve(connection: socket.socket, service: Service) -> None:
    """Pass messages between the front and the service until the front closes the connection."""
    lock, running = threading.Lock(), dict[int, Future[Solution]]()

    def reply(number: int) -> Callable[[Future[Solution]], None]:
        def done(future: Future[Solution]) -> None:
            running.pop(number, None)
            if future.cancelled():
                return
            if isinstance(future.exception(), Closed):
                os._exit(FAILED)  # the service failed: a lost device or a bug; a fresh process takes over
            with lock:
                send_line(connection, {"solved": number, "solution": future.result().to_dict()})

        return done

    with connection.makefile("rb") as lines:
        for line in lines:
            message = json.loads(line)
            if "cancel" in message:
                future = running.pop(message["cancel"], None)
                if future is not None:
                    future.cancel()
                continue
            number = message["solve"]
            try:
                future = service.submit(
                    message["text"], solver=message["model"], max_steps=message["max_steps"],
                    deadline=message["deadline"], priority=message["priority"],
                )  # fmt: skip
            except Closed:
                os._exit(FAILED)
            running[number] = future
            future.add_done_callback(reply(number))


def send_line(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Write one message; a front that is gone ends the process through the reading side."""
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return
