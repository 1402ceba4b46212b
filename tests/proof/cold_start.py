"""Processes that start cold at the same time on one empty folder of compiled kernels, round after round.

    python -m tests.proof.cold_start FOLDER ROUNDS PROCESSES

They compile one kernel for GPUs that are not here, half of them for sm_90 and half for sm_80. In every other round one
is killed once a random number of files is there. Then one more per architecture starts on what was left. Each line is
a round: the hashes of every stage that each process got. The first line is what each architecture gets alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from triton import knobs
from triton.runtime.jit import JITFunction

from tests.cases.optimisers import launch_sparse
from tests.gates.compile_gate import _install_target

ARCHITECTURES = (90, 80)
STAGES = ("ttir", "ttgir", "llir", "ptx", "cubin")
fork = multiprocessing.get_context("fork")


def compiled(arch: int, folder: Path, begin: Any, report: Connection) -> None:
    """Send a hash of every stage of the kernel for `arch`, with `folder` as the place where kernels are kept."""
    begin.wait()
    _install_target(arch)
    knobs.cache.dir = str(folder)
    found: dict[str, str] = {"arch": str(arch)}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **options: Any) -> None:
        kernel = run(self, *args, **{**options, "grid": (1,), "warmup": True})
        for stage in STAGES:
            text = kernel.asm[stage]
            found[stage] = hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()

    JITFunction.run = compile_only  # type: ignore[method-assign]
    launch_sparse(4, 1000, 512)
    report.send(found)


def together(folder: Path, architectures: tuple[int, ...], kill_at: int | None = None) -> list[dict[str, str]]:
    """What processes that began at once got; the last one is killed when `folder` holds `kill_at` files."""
    begin, pipes, processes = fork.Event(), [], []
    for arch in architectures:
        receive, send = fork.Pipe(duplex=False)
        processes.append(fork.Process(target=compiled, args=(arch, folder, begin, send)))
        processes[-1].start()
        send.close()
        pipes.append(receive)
    begin.set()
    if kill_at is not None:
        while len(files(folder)) < kill_at and processes[-1].is_alive():
            time.sleep(0.001)
        processes[-1].kill()
    found = []
    for pipe, process in zip(pipes, processes, strict=True):
        with contextlib.suppress(EOFError):
            found.append(pipe.recv())
        process.join()
    if len(found) < len(processes) - (kill_at is not None):
        raise SystemExit("a process that was not killed got no kernel")
    return found


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of everything that is kept in `folder`, without what is still being written."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names if "tmp.pid" not in place else ():
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(Path(place) / name)
                found[f"{place}/{name}"] = status.st_ino, status.st_mtime_ns
    return found


def main(folder: str, rounds: str, processes: str) -> int:
    draw, root = random.Random(0), Path(folder)
    print(json.dumps([together(root / f"alone{arch}", (arch,))[0] for arch in ARCHITECTURES]))
    most = len(files(root / f"alone{ARCHITECTURES[0]}")) * len(ARCHITECTURES)
    for number in range(int(rounds)):
        place = root / f"round{number}"
        many = tuple(ARCHITECTURES[i % len(ARCHITECTURES)] for i in range(int(processes)))
        found = together(place, many, draw.randrange(most) if number % 2 else None)
        kept = files(place)
        found += together(place, ARCHITECTURES)
        if files(place) != kept:
            raise SystemExit(f"round {number}: a process that came later compiled again")
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
