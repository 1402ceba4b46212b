"""python -m benchmarks.profile [MODEL] [--batch N]: where the time of one ACT step goes, operator by operator.

By nsys where it is installed and there is a GPU, else by PyTorch's profiler. Self times, so that the rows add up.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import machine, report, rows
from benchmarks.cases import MODELS, Case
from benchmarks.harness import caller
from benchmarks.problem import make
from benchmarks.providers import BASELINE, PROVIDERS
from rtm_kernels.errors import RTMError, one_of

WARMUP = 3
OUTSIDE = "outside of PyTorch operators (native code, Python)"


@dataclass(frozen=True)
class OpRow:
    """One operator (CPU) or kernel (GPU) in one ACT step: microseconds by itself, calls, share of the step."""

    impl: str
    op: str
    calls: float
    microseconds: float
    share: float


def by_torch(case: Case, impl: str, repeats: int) -> list[OpRow]:
    """Rows of `impl` by PyTorch's profiler: kernels on a GPU, operators on the CPU."""
    call = caller(next(p for p in PROVIDERS if p.name == impl), make(case))
    for i in range(WARMUP):
        call(i)
    gpu = case.device == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        for i in range(repeats):
            with record_function(OUTSIDE):
                call(i)
        if gpu:
            torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    for event in profiler.key_averages():
        if gpu and event.device_type != DeviceType.CUDA:
            continue
        time = event.self_device_time_total if gpu else event.self_cpu_time_total
        found[event.key] = [event.count / repeats, time / repeats]
    return _rows(impl, found)


def by_nsys(case: Case, impl: str, repeats: int) -> list[OpRow]:
    """Rows of `impl` by nsys: a run of this program below it, of which the marked part is recorded."""
    with tempfile.TemporaryDirectory() as folder:
        report = str(Path(folder) / "report")
        child = [sys.executable, "-m", "benchmarks.profile", case.model, "--batch", str(case.batch), "--impl", impl,
                 "--repeats", str(repeats), "--mark"]  # fmt: skip
        record = ["nsys", "profile", "--capture-range=cudaProfilerApi", "--cuda-graph-trace=node", "-o", report]
        subprocess.run([*record, *child], cwd=machine.ROOT, check=True, capture_output=True)
        stats = ["nsys", "stats", "--report", "cuda_gpu_kern_sum", "--format", "csv", "--force-export=true"]
        text = subprocess.run([*stats, f"{report}.nsys-rep"], check=True, capture_output=True, text=True).stdout
    return _rows(impl, read_nsys(text, repeats))


def read_nsys(text: str, repeats: int) -> dict[str, list[float]]:
    """Kernel -> [launches, microseconds] per call, from the csv that `nsys stats` prints."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if "Total Time (ns)" in line)
    table = csv.DictReader(io.StringIO("\n".join(lines[start:])))
    return {
        row["Name"]: [float(row["Instances"]) / repeats, float(row["Total Time (ns)"]) / 1e3 / repeats] for row in table
    }


def _rows(impl: str, found: dict[str, list[float]]) -> list[OpRow]:
    total = sum(time for _, time in found.values()) or 1.0
    ordered = sorted(found.items(), key=lambda item: -item[1][1])
    return [OpRow(impl, op, calls, time, time / total) for op, (calls, time) in ordered if time > 0]


def mark(case: Case, impl: str, repeats: int) -> None:
    """What nsys records: warmed up first, then `repeats` calls between the profiler's start and stop."""
    call = caller(next(p for p in PROVIDERS if p.name == impl), make(case))
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
        case = Case(args.model, "act_step", args.batch, "bfloat16" if gpu else "float32", device)
        runnable = [p.name for p in PROVIDERS if p.why_not(case) is None]
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
    found = []
    for name in chosen:
        mine = measure(case, name, args.repeats)
        print(f"\n{case.name}, {name}, one ACT step, by {tool}\n{table(mine, args.top)}")
        found += [asdict(row) for row in mine]
    facts = {"case": case.name, "tool": tool, "machine": machine.device_name(device), "commit": machine.commit()}
    path = (args.folder or machine.ROOT / "profiles" / machine.slug(device)) / f"act_step_{case.name}.json"
    rows.replace(path, json.dumps({**facts, "versions": machine.versions(), "rows": found}, indent=1) + "\n")
    report.refresh(path.parent)
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
