"""python -m benchmarks.profile [MODEL] [--batch N]: where the time of one ACT step goes, operator by operator.

By PyTorch's profiler, in self times, so that the rows add up; on a GPU the kernels too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import machine, report, rows
from benchmarks.cases import MODELS, Case, dtype_on
from benchmarks.harness import caller
from benchmarks.problem import make
from benchmarks.providers import BASELINE, PROVIDERS
from benchmarks.timing import Call, Clock, interleave, median_interval
from rtm_kernels.errors import RTMError, one_of

OUTSIDE = "outside of PyTorch operators (native code, Python)"
TOOL = "torch.profiler"


@dataclass(frozen=True)
class OpRow:
    """One row of an ACT step: microseconds by itself, calls, share of its level.

    `level` is `op` (an operator; on a GPU the time of the kernels that it launched) or `kernel`.
    """

    impl: str
    level: str
    op: str
    calls: float
    microseconds: float
    share: float


def operators(call: Call, impl: str, gpu: bool, repeats: int) -> list[OpRow]:
    """Rows of one call, the mean of `repeats`: operators, and on a GPU the kernels too."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        for i in range(repeats):
            with record_function(OUTSIDE):
                call(i)
        if gpu:
            torch.cuda.synchronize()
    found: dict[str, dict[str, tuple[float, float]]] = {"op": {}, "kernel": {}}
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if gpu else event.self_cpu_time_total
        level = "kernel" if event.device_type == DeviceType.CUDA else "op"
        if microseconds > 0:
            found[level][event.key] = event.count / repeats, microseconds / repeats
    made = []
    for level, times in found.items():
        total = sum(microseconds for _, microseconds in times.values())
        ordered = sorted(times.items(), key=lambda item: -item[1][1])
        made += [OpRow(impl, level, op, calls, time, time / total) for op, (calls, time) in ordered]
    return made


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
    args = parser.parse_args(argv)
    device = "cuda" if gpu else "cpu"
    torch.set_num_threads(args.threads)
    try:
        one_of("model", args.model, MODELS)
        case = Case(args.model, "act_step", args.batch, dtype_on(device), device)
        problem = make(case)
        runnable = {p.name: p for p in PROVIDERS if p.why_not(problem) is None}
        ours = [name for name in runnable if name.startswith("rtm_") or name == "official_compiled_graph"]
        chosen = args.impl or list(dict.fromkeys([BASELINE.name, *ours]))
        for name in chosen:
            one_of("impl", name, runnable)
    except RTMError as error:
        parser.error(str(error))
    path = (args.folder or report.default_folder(device)) / f"act_step_{case.name}.json"
    facts = machine.facts(device) | {"case": case.name, "tool": TOOL, "versions": machine.versions()}
    found: list[dict[str, object]] = []
    whole: dict[str, float] = {}
    for name in chosen:
        call = caller(runnable[name], problem)
        timed = interleave({name: call}, Clock(device), seconds=0, min_rounds=max(3, args.repeats))
        whole[name] = 1e6 * median_interval(timed[name])[0]
        mine = operators(call, name, gpu, args.repeats)
        for level in dict.fromkeys(row.level for row in mine):
            print(f"\n{case.name}, {name}: one ACT step in {whole[name]:.1f} us; by {level}, {TOOL}")
            print(table([row for row in mine if row.level == level], args.top))
        found += [asdict(row) for row in mine]
        rows.replace(path, json.dumps({**facts, "iteration_us": whole, "rows": found}, indent=1) + "\n")
    report.refresh(path.parent)
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
