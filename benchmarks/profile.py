"""python -m benchmarks.profile [MODEL] [--batch N]: where the time of one ACT step goes, operator by operator.

By nsys where it is installed and there is a GPU, where the rows are the NVTX ranges of `rtm_kernels.ranges`, else by
PyTorch's profiler, where they are operators. Self times, so that the rows add up.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import machine, nsys, report, rows
from benchmarks.cases import MODELS, Case, dtype_on
from benchmarks.harness import caller
from benchmarks.problem import make
from benchmarks.providers import BASELINE, PROVIDERS
from benchmarks.timing import Call
from rtm_kernels.errors import RTMError, one_of

WARMUP = 3
OUTSIDE = "outside of PyTorch operators (native code, Python)"


@dataclass(frozen=True)
class OpRow:
    """One row of an ACT step: microseconds by itself, calls, share of its level.

    `level` is `op` (an operator or NVTX range; on a GPU the time of the kernels that it launched) or `kernel`.
    """

    impl: str
    level: str
    op: str
    calls: float
    microseconds: float
    share: float


def by_torch(case: Case, impl: str, repeats: int) -> list[OpRow]:
    """Rows of `impl` by PyTorch's profiler: operators, and on a GPU the kernels too."""
    call = _caller(case, impl)
    for i in range(WARMUP):
        call(i)
    gpu = case.device == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        for i in range(repeats):
            with record_function(OUTSIDE):
                call(i)
        if gpu:
            torch.cuda.synchronize()
    ops: nsys.Times = {}
    kernels: nsys.Times = {}
    for event in profiler.key_averages():
        on_gpu = event.device_type == DeviceType.CUDA
        time = event.self_device_time_total if gpu else event.self_cpu_time_total
        (kernels if on_gpu else ops)[event.key] = [event.count / repeats, time / repeats]
    return [*_rows(impl, "op", ops), *_rows(impl, "kernel", kernels)]


def by_nsys(case: Case, impl: str, repeats: int) -> list[OpRow]:
    """Rows of `impl` by nsys: a run of this program below it, of which the marked part is recorded."""
    child = [sys.executable, "-m", "benchmarks.profile", case.model, "--batch", str(case.batch), "--impl", impl,
             "--repeats", str(repeats), "--mark"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        kernels, ops = nsys.read(nsys.record(child, Path(folder), machine.ROOT), repeats)
    return [*_rows(impl, "op", ops), *_rows(impl, "kernel", kernels)]


def latency(case: Case, impl: str, repeats: int) -> float:
    """Microseconds of one iteration without a profiler, the host's work included: the median of `repeats`."""
    call = _caller(case, impl)
    for i in range(WARMUP):
        call(i)
    samples = []
    for i in range(max(repeats, 3)):
        if case.device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call(i)
        if case.device == "cuda":
            torch.cuda.synchronize()
        samples.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(samples)


def _caller(case: Case, impl: str) -> Call:
    return caller(next(p for p in PROVIDERS if p.name == impl), make(case))


def _rows(impl: str, level: str, found: nsys.Times) -> list[OpRow]:
    total = sum(time for _, time in found.values()) or 1.0
    ordered = sorted(found.items(), key=lambda item: -item[1][1])
    return [OpRow(impl, level, op, calls, time, time / total) for op, (calls, time) in ordered if time > 0]


def mark(case: Case, impl: str, repeats: int) -> None:
    """What nsys records: warmed up first, then `repeats` calls between the profiler's start and stop."""
    call = _caller(case, impl)
    for i in range(WARMUP):
        call(i)
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    for i in range(repeats):
        with torch.cuda.nvtx.range(f"act_step {i}"):
            call(i)
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


def table(found: Sequence[OpRow], top: int) -> str:
    """The largest rows as text, and what remains."""
    lines = [f"{'op or kernel':<60} {'calls':>8} {'us':>10} {'share':>7}"]
    for row in found[:top]:
        lines.append(f"{row.op[:60]:<60} {row.calls:>8.1f} {row.microseconds:>10.1f} {row.share:>6.1%}")
    rest, total = sum(r.microseconds for r in found[top:]), sum(r.microseconds for r in found)
    lines.append(f"{f'{len(found[top:])} more':<60} {'':>8} {rest:>10.1f}")
    return "\n".join([*lines, f"{'sum':<60} {sum(r.calls for r in found):>8.1f} {total:>10.1f}"])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; writes profiles/<machine>/act_step_<case>.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("model", nargs="?", default="sudoku" if gpu else "small", help=", ".join(MODELS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--impl", action="append", help="providers, by name (default: the baseline and all of ours)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU")
    parser.add_argument("--top", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<machine>)")
    parser.add_argument("--mark", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    device = "cuda" if gpu else "cpu"
    torch.set_num_threads(args.threads)
    try:
        one_of("model", args.model, MODELS)
        case = Case(args.model, "act_step", args.batch, dtype_on(device), device)
        problem = make(case)
        runnable = [p.name for p in PROVIDERS if p.why_not(problem) is None]
        ours = [name for name in runnable if name.startswith("rtm_") or name == "official_compiled_graph"]
        chosen = args.impl or list(dict.fromkeys([BASELINE.name, *ours]))
        for name in chosen:
            one_of("impl", name, runnable)
    except RTMError as error:
        parser.error(str(error))
    if args.mark:
        mark(case, chosen[0], args.repeats)
        return 0
    measure, tool = (by_nsys, "nsys") if gpu and shutil.which("nsys") else (by_torch, "torch.profiler")
    path = (args.folder or machine.ROOT / "profiles" / machine.slug(device)) / f"act_step_{case.name}.json"
    facts = machine.facts(device) | {"case": case.name, "tool": tool, "versions": machine.versions()}
    found: list[dict[str, object]] = []
    whole: dict[str, float] = {}
    for name in chosen:
        whole[name], mine = latency(case, name, args.repeats), measure(case, name, args.repeats)
        for level in dict.fromkeys(row.level for row in mine):
            print(f"\n{case.name}, {name}: one ACT step in {whole[name]:.1f} us; by {level}, {tool}")
            print(table([row for row in mine if row.level == level], args.top))
        found += [asdict(row) for row in mine]
        rows.replace(path, json.dumps({**facts, "iteration_us": whole, "rows": found}, indent=1) + "\n")
    report.refresh(path.parent)
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
