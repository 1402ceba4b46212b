"""Starts worker processes; the front itself never imports torch."""

from __future__ import annotations

import multiprocessing
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

from rtm_kernels.serve.limits import Limits


@dataclass(frozen=True)
class Setup:
    """What a worker loads: models as (name, source) with `source` what `from_pretrained` takes, and how they run."""

    models: tuple[tuple[str, str], ...]
    slots: int = 16
    executor: str = "auto"
    device: str | None = None
    halt: str = "verified"
    batch_invariant: bool = True


def start(setup: Setup, limits: Limits) -> tuple[BaseProcess, socket.socket]:
    """A worker process and the socket to it; blocks until the process runs, not until it has loaded its models.

    Where processes fork, they fork from one that has imported torch and done nothing else, so that a worker that
    crashed is replaced in a fraction of the time that imports take.
    """
    if sys.platform == "linux":
        multiprocessing.set_forkserver_preload(["rtm_kernels.serve.worker"])
        new_process: Callable[..., BaseProcess] = multiprocessing.get_context("forkserver").Process
    else:
        new_process = multiprocessing.get_context("spawn").Process
    ours, theirs = socket.socketpair()
    try:
        process = new_process(target=run, args=(setup, limits, theirs), name="rtm-worker", daemon=True)
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


def run(setup: Setup, limits: Limits, connection: socket.socket) -> None:
    """The whole life of a worker process."""
    from rtm_kernels.serve.worker import main

    main(setup, limits, connection)
