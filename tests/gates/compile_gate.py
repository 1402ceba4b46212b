"""Compile gate: every kernel of every launch row becomes an sm_90 cubin, without a GPU, and the cubin is read.

    python -m tests.gates.compile_gate [--arch 90|all] [--jobs 2] [--table] [FILTER ...]

`--arch all` compiles for every architecture of the committed table and writes it again; `--table` compares with it.

The uses are `launched` in `tests/cases`: functions that call an op's launchers with tensors on `device="meta"`. While
one runs, every launch of a Triton kernel is compiled instead, with the signature, specialisation and options that the
real launch has, and becomes a row of the table. Launchers must not read tensor values.

A row fails when it needs more shared memory than the GPU has, spills (unless its `LaunchRow.waiver` says why),
has an atomic other than an arrival (at the grid barrier of a cooperative launch, or at a counter that tells the last
program), has a dot on 16-bit operands but no wgmma on Hopper, touches registers of a wgmma that still runs
(`hazards.py`), or multiplies or sums less exactly than it should (`precision.py`). The gate also fails when no use
reaches a launch row for this GPU family.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # this gate compiles

import argparse
import multiprocessing
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.cases import OPS
from tests.compiled.ptx import parse
from tests.gates import compile_table
from tests.gates.hazards import hazards
from tests.gates.precision import imprecise

SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}
"""Compute capability -> shared memory of one program, in KiB."""

BARRIER = re.compile(r"\batom\.global\.gpu\.release\.add\.u64\b")
"""Arrival at a grid barrier, which a cooperative launch may have; a sum of floats is another instruction."""
COUNTER = re.compile(r"\batom\.global\.gpu\.acq_rel\.add\.u32\b")
"""Arrival at a counter, by which the last program knows that it is the last: any launch may have it, nobody waits."""


@dataclass
class Compiled:
    """One compiled kernel: what the cubin says, and why it fails the gate (empty: it passes)."""

    case: str
    kernel: str
    options: str
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    wgmma: int = 0
    atomics: int = 0
    row: str = ""
    failures: list[str] = field(default_factory=list)


def read_cubin(cubin: bytes) -> dict[str, int]:
    """Registers, stack bytes, spill stores, wgmma and global atomics of a cubin, by the bundled cuobjdump."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True)
        sass = subprocess.run([tool, "-sass", file.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout)
    assert found, usage.stdout
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "spills": len(re.findall(r"\bSTL\b", sass)),
        "wgmma": len(re.findall(r"\b[HIQB]?GMMA\b", sass)),
        "atomics": len(re.findall(r"\b(?:ATOM|ATOMG|RED|REDG)\b", sass)),
    }


def _install_target(arch: int) -> None:
    """Make Triton believe that the current device is an idle GPU of compute capability `arch`."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    offline = {
        "get_current_target": lambda: GPUTarget("cuda", arch, 32),
        "get_current_device": lambda: arch,  # kernels in memory are kept for each device
        "get_current_stream": lambda device: 0,
    }
    driver.set_active(SimpleNamespace(**offline))


def table_rows(op: str) -> Iterator[tuple[str, Any]]:
    """Text and row of every launch row of an op."""
    for name, table in OPS[op].tables.items():
        yield from ((f"{name}: {row}", row) for row in table)


def _row_of(op: str, name: str, kwargs: dict[str, Any], bits: int) -> tuple[str, Any] | None:
    """The launch row that a launch counted under `name` used, with its text for the coverage check."""
    from rtm_kernels.ops.launch import FALLBACKS, family

    found = []
    for text, row in table_rows(op):
        if row.family not in FALLBACKS[family()]:
            continue
        same = {**row.blocks, "num_warps": row.num_warps, "num_stages": row.num_stages}.items() <= kwargs.items()
        if row.kernel == name and row.bits in (0, bits) and same:
            found.append((text, row))
    order = FALLBACKS[family()].index  # a variant has blocks of its own besides
    return max(found, key=lambda pair: (len(pair[1].blocks), -order(pair[1].family)), default=None)


def _compile(case: str, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], arch: int) -> Compiled:
    """Compile one launch as `kernel(*args, **kwargs)` would, and check what the cubin says."""
    blocks = " ".join(f"{k.removeprefix('BLOCK_')}{v}" for k, v in kwargs.items() if k.startswith("BLOCK_"))
    options = f"{blocks} w{kwargs.get('num_warps', 4)} s{kwargs.get('num_stages', 3)}"
    result = Compiled(case, kernel.__name__, options)
    try:
        binary = kernel.run(*args, **{**kwargs, "grid": (1,), "warmup": True})
        facts = read_cubin(binary.asm["cubin"])
    except Exception as error:
        result.failures.append("does not compile: " + " ".join(str(error).split())[-300:])
        return result
    for name, value in facts.items():
        setattr(result, name, value)
    result.shared = binary.metadata.shared
    if result.shared > SHARED_LIMIT[arch] * 1024:
        result.failures.append(f"shared memory above {SHARED_LIMIT[arch]} KiB")
    if result.stack or result.spills:
        result.failures.append(f"spills: stack {result.stack} B, {result.spills} stores")
    arrivals = len(COUNTER.findall(binary.asm["ptx"]))
    if kwargs.get("launch_cooperative_grid"):
        arrivals += len(BARRIER.findall(binary.asm["ptx"]))
    if result.atomics > arrivals:
        result.failures.append(f"{result.atomics - arrivals} atomics")
    if arch == 90 and "tt.dot" in binary.asm["ttir"] and _bits(args) == 16 and not result.wgmma:
        result.failures.append("a 16-bit dot without wgmma")
    if bool(kwargs.get("launch_pdl")) != ("griddepcontrol.wait" in binary.asm["ptx"]):
        result.failures.append("only a launch that overlaps waits for the one before")
    result.failures += imprecise(binary.asm["ttir"])[:1]
    if re.search("wgmma|griddepcontrol", binary.asm["ptx"]) and (found := hazards(parse(binary.asm["ptx"]))):
        result.failures.append(f"{len(found)} accesses are too early: {found[0]}")
    return result


def _bits(args: tuple[Any, ...]) -> int:
    """Element size of the first tensor argument that is a floating-point tensor of the op's dtype (the narrowest)."""
    return min((a.dtype.itemsize * 8 for a in args if hasattr(a, "dtype") and a.dtype.is_floating_point), default=0)


def compile_case(job: tuple[str, str, int]) -> list[Compiled]:
    """Run one use (op, name, arch) with every kernel launch compiled instead; one row per launch."""
    op, case, arch = job
    from triton.runtime.jit import JITFunction

    from rtm_kernels.impl import launches

    _install_target(arch)
    compiled: list[Compiled] = []
    real_run = JITFunction.run
    launches.clear()
    counted: dict[str, int] = {}

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = SimpleNamespace(__name__=self.__name__, run=partial(real_run, self))
        result = _compile(case, kernel, args, kwargs, arch)
        names = [name for name, count in launches.items() if count > counted.get(name, 0)]
        counted.update(launches)
        if len(names) != 1:
            result.failures.append("the launch is not counted in impl.launches")
        elif found := _row_of(op, names[0], kwargs, _bits(args)):
            result.row, row = found
            result.failures = [f for f in result.failures if not (row.waiver and f.startswith("spills"))]
        compiled.append(result)

    JITFunction.run = compile_only  # type: ignore[method-assign]
    try:
        OPS[op].launched[case]()
    except Exception:
        last_line = traceback.format_exc().strip().splitlines()[-1]
        compiled.append(Compiled(case, "-", "", failures=[last_line]))
    finally:
        JITFunction.run = real_run  # type: ignore[method-assign]
    return compiled


def unreached_rows(compiled: list[Compiled], arch: int) -> list[str]:
    """Launch rows for this GPU family that no use launched."""
    from rtm_kernels.ops.launch import family

    _install_target(arch)
    reached = {result.row for result in compiled}
    rows = {text: row for op in OPS for text, row in table_rows(op)}
    return [text for text, row in rows.items() if row.family == family() and text not in reached]


def print_table(compiled: list[Compiled]) -> None:
    """One line per distinct compiled kernel, failures in the last column."""
    print(f"{'case':70} {'kernel':24} {'launch':28} regs stack  KiB wgmma atomics result")
    for c in compiled:
        figures = f"{c.registers:4} {c.stack:5} {c.shared // 1024:4} {c.wgmma:5} {c.atomics:7}"
        print(f"{c.case:70} {c.kernel:24} {c.options:28} {figures} {'; '.join(c.failures) or 'ok'}")


def compile_all(arch: int, filters: list[str], pool: ProcessPoolExecutor) -> tuple[list[Compiled], list[str]]:
    """Every distinct kernel of the chosen uses, and, without filters, the launch rows that no use reaches."""
    uses = [(name, case) for name, op in OPS.items() for case in op.launched]
    jobs = [(op, case, arch) for op, case in uses if not filters or any(f in op or f in case for f in filters)]
    compiled = [row for rows in pool.map(compile_case, jobs) for row in rows]
    worst_last = sorted(compiled, key=lambda c: bool(c.failures))  # of like launches keep one that fails
    distinct = {(c.kernel, c.options, c.case): c for c in worst_last}
    unreached = [] if filters else unreached_rows(compiled, arch)
    return list(distinct.values()), unreached


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="compile every launch row without a GPU and read the cubins")
    parser.add_argument("filters", nargs="*", help="keep uses whose op or name contains one of these")
    parser.add_argument("--arch", default="90", choices=["all", *map(str, sorted(SHARED_LIMIT))])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="fail where the committed table says something else")
    options = parser.parse_args(argv)
    bad = 0
    for arch in compile_table.ARCHITECTURES if options.arch == "all" else (int(options.arch),):
        with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            compiled, unreached = compile_all(arch, options.filters, pool)
        rows = [compile_table.row(c) for c in compiled]
        print_table(compiled)
        stale = compile_table.differences(arch, rows) if options.table and not options.filters else []
        for text in (*(f"no use reaches launch row {row}" for row in unreached), *stale):
            print(text)
        failed = sum(bool(c.failures) for c in compiled)
        print(f"sm_{arch}: {len(compiled)} kernels, {failed} failed, {len(unreached)} rows unreached", flush=True)
        bad += failed + len(unreached) + len(stale) + (not compiled)
        if options.arch == "all" and not options.filters:
            compile_table.write(arch, rows)
            compile_table.summarise()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
