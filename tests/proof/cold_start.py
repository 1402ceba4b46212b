"""Processes that start cold at the same time on one empty folder of compiled kernels, round after round.

    python -m tests.proof.cold_start FOLDER ROUNDS PROCESSES

They compile one kernel for GPUs that are not here, as the compile gate does, half of them for sm_90 and half for sm_80.
In every other round one of them is killed once a random number of files is there. Then one more per architecture starts
on what was left.
The first two lines of JSON are what each architecture compiles alone, the others what every process got.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from triton import knobs
from triton.runtime.jit import JITFunction

from tests.gates.compile_gate import _install_target
from tests.proof import uses

ARCHITECTURES = (90, 80)
STAGES = ("ttir", "ttgir", "llir", "ptx", "cubin")


def compiled(arch: int, folder: Path) -> dict[str, str]:
    """A hash of every stage of the kernel for `arch`, with `folder` as the place where kernels are kept."""
    _install_target(arch)
    knobs.cache.dir = str(folder)
    found: dict[str, str] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **options: Any) -> None:
        kernel = run(self, *args, **{**options, "grid": (1,), "warmup": True})
        for stage in STAGES:
            text = kernel.asm[stage]
            found[stage] = hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()

    JITFunction.run = compile_only  # type: ignore[method-assign]
    uses.sparse(4, 1000, 512)
    return found


def start(arch: int, folder: Path, report: Path, gate: tuple[int, int]) -> int:
    """A process that waits until nobody holds the write end of `gate`, compiles, and reports."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.close(gate[1])
        os.read(gate[0], 1)
        report.write_text(json.dumps({"arch": arch, **compiled(arch, folder)}))
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def together(folder: Path, architectures: tuple[int, ...], kill_at: int | None = None) -> list[dict[str, Any]]:
    """What processes of these architectures got that began at once; `{}` for the last one if it was killed.

    It is killed as soon as `folder` holds `kill_at` files.
    """
    gate = os.pipe()
    reports = [folder.with_suffix(f".{i}") for i in range(len(architectures))]
    processes = [start(arch, folder, report, gate) for arch, report in zip(architectures, reports, strict=True)]
    for end in gate[::-1]:
        os.close(end)
    if kill_at is not None:
        while len(files(folder)) < kill_at and not any(report.exists() for report in reports):
            time.sleep(0.001)
        os.kill(processes[-1], signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    expected = {0} if kill_at is None else {0, -signal.SIGKILL}
    if any(code != 0 for code in codes[:-1]) or codes[-1] not in expected:
        raise SystemExit(f"exit codes {codes}")
    found = [json.loads(r.read_text()) if code == 0 else {} for r, code in zip(reports, codes, strict=True)]
    for report in reports:
        report.unlink(missing_ok=True)
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
    alone = [together(root / f"alone{arch}", (arch,))[0] for arch in ARCHITECTURES]
    most = len(files(root / f"alone{ARCHITECTURES[0]}")) * len(ARCHITECTURES)
    lines: list[list[dict[str, Any]]] = [[found] for found in alone]
    for number in range(int(rounds)):
        place = root / f"round{number}"
        many = tuple(ARCHITECTURES[i % len(ARCHITECTURES)] for i in range(int(processes)))
        lines.append(together(place, many, draw.randrange(most) if number % 2 else None))
        kept = files(place)
        lines[-1] += together(place, ARCHITECTURES)
        if files(place) != kept:
            raise SystemExit(f"round {number}: a process that came later compiled again")
    for line in lines:
        print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
