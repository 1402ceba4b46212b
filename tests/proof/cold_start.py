"""Processes that start cold at the same time on one empty folder of compiled kernels, round after round.

    python -m tests.proof.cold_start FOLDER ROUNDS PROCESSES

They compile one kernel for GPUs that are not here, half of them for sm_90 and half for sm_80. In every other round one
is killed once a random number of files is there. Then one more per architecture starts on what was left. Each line is
a round: the hashes of every stage that each process got. The first line is what each architecture gets alone.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import multiprocessing
import os
import random
import sys
import time
from typing import Any

from triton import knobs
from triton.runtime.jit import JITFunction

from tests.cases.optimisers import launch_sparse
from tests.gates.compile_gate import _install_target

ARCHITECTURES = (90, 80)
fork = multiprocessing.get_context("fork")


def compiled(arch: int, folder: str, begin: Any, report: Any) -> None:
    """Send a hash of every stage of the kernel for `arch`, with `folder` as the place where kernels are kept."""
    begin.wait()
    _install_target(arch)
    knobs.cache.dir, run, found = folder, JITFunction.run, {"arch": str(arch)}

    def compile_only(self: Any, *args: Any, **options: Any) -> None:
        kernel = run(self, *args, **{**options, "grid": (1,), "warmup": True})
        for stage in ("ttir", "ttgir", "llir", "ptx", "cubin"):
            text = kernel.asm[stage]
            found[stage] = hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()

    JITFunction.run = compile_only  # type: ignore[method-assign]
    launch_sparse(4, 1000, 512)
    report.put(found)


def together(folder: str, architectures: tuple[int, ...], kill_at: int | None = None) -> list[dict[str, str]]:
    """What processes that began at once got; the last one is killed when `folder` holds `kill_at` files."""
    begin, reports = fork.Event(), [fork.SimpleQueue() for _ in architectures]
    processes = [fork.Process(target=compiled, args=(a, folder, begin, r))
                 for a, r in zip(architectures, reports, strict=True)]  # fmt: skip
    for process in processes:
        process.start()
    begin.set()
    while kill_at is not None and len(files(folder)) < kill_at and processes[-1].is_alive():
        time.sleep(0.001)
    if kill_at is not None:
        processes[-1].kill()
    for process in processes:
        process.join()
    found = [report.get() for report in reports if not report.empty()]
    if len(found) < len(processes) - (kill_at is not None):
        raise SystemExit("a process that was not killed got no kernel")
    return found


def files(folder: str) -> dict[str, int]:
    """Time of change of everything that is kept in `folder`, without what is still being written."""
    found = {}
    for path in glob.glob(f"{folder}/**/*", recursive=True):
        with contextlib.suppress(FileNotFoundError):
            found |= {} if "tmp.pid" in path or os.path.isdir(path) else {path: os.stat(path).st_mtime_ns}
    return found


def main(folder: str, rounds: str, processes: str) -> None:
    draw = random.Random(0)
    print(json.dumps([together(f"{folder}/alone{arch}", (arch,))[0] for arch in ARCHITECTURES]))
    most = len(files(f"{folder}/alone{ARCHITECTURES[0]}")) * len(ARCHITECTURES)
    for number in range(int(rounds)):
        place, many = f"{folder}/round{number}", (ARCHITECTURES * int(processes))[: int(processes)]
        found = together(place, many, draw.randrange(most) if number % 2 else None)
        kept = files(place)
        found += together(place, ARCHITECTURES)
        if files(place) != kept:
            raise SystemExit(f"round {number}: a process that came later compiled again")
        print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
