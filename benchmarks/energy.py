"""python -m benchmarks.energy: joules per ACT step, per puzzle and per verified puzzle, in windows of 30 s.

The counter is that of the GPU board (NVML) or of the processor packages (RAPL); where neither can be read the file says
`null`, and nothing is estimated. Figures are gross; the power of the idle machine is reported beside them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.cases import Case, dtype_on
from benchmarks.harness import run_case
from benchmarks.providers import BASELINE, PROVIDERS
from benchmarks.run import UNFINISHED
from rtm_kernels.data.examples import example_puzzles
from rtm_kernels.data.task import Puzzle
from rtm_kernels.engine.solver import Solver
from rtm_kernels.model import RecursiveReasoner

WINDOW = 30.0
"""Seconds of one window, long against the counter's refresh."""


def measure(case: Case, impls: Sequence[str], window: float) -> Iterator[dict[str, object]]:
    """Gross joules per call, per sample and ACT step, and per puzzle of `halt_max_steps` ACT steps."""
    providers = [provider for provider in PROVIDERS if provider.name in impls]
    for row in run_case(case, providers, seconds=0.0, energy_seconds=window):
        energy = row.facts.get("energy")
        found = {"case": case.name, "impl": row.impl, "reason": row.reason or None, "energy": energy}
        if energy is not None:
            each = energy["joules_per_call"] / case.batch
            found |= {"joules_per_act_step": each, "joules_per_puzzle": each * case.config.halt_max_steps}
        yield found


def measure_solver(solver: Solver, puzzles: Sequence[str | Puzzle], window: float) -> dict[str, object]:
    """Gross joules per puzzle, verified puzzle and ACT step of `solver`, each puzzle halting by the solver's policy."""
    first = solver.solve(puzzles)
    verified = sum(solution.status == "verified" for solution in first)
    steps = sum(solution.steps or 0 for solution in first)
    device = solver.model.device.type
    energy = machine.energy(lambda i: solver.solve(puzzles), device, window)
    name = f"{solver.task.name}, {len(puzzles)} puzzles, {solver.policy}"
    row: dict[str, object] = {"case": name, "impl": "solver", "reason": None, "energy": energy, "verified": verified}
    if energy is not None:
        total = float(energy["joules_per_call"])
        row |= {
            "joules_per_act_step": total / max(1, steps), "joules_per_puzzle": total / len(puzzles),
            "joules_per_verified": total / verified if verified else None,
        }  # fmt: skip
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where no counter can be read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.energy", description=__doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("--model", default="sudoku" if gpu else "small")
    parser.add_argument("--batch", type=int, default=768 if gpu else 1)
    parser.add_argument("--impl", action="append", help="providers (default: the baseline and the best of ours)")
    parser.add_argument("--window", type=float, default=WINDOW)
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which no window begins")
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<machine>)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device = "cuda" if gpu else "cpu"
    case = Case(args.model, "act_step", args.batch, dtype_on(device), device, args.threads)
    path, begin = (args.folder or report.default_folder(device)) / "energy.json", time.monotonic()
    idle = machine.idle_watts(device)
    found = [row for row in (report.earlier(path) or {"rows": ()})["rows"] if row["energy"] is not None]
    counter, left = machine.energy_counter(device), 0
    for impl in (*(args.impl or [BASELINE.name, "rtm_triton_graph" if gpu else "rtm_native"]), "solver"):
        if counter is None or any(row["impl"] == impl for row in found):
            continue
        if time.monotonic() - begin > args.limit:
            left += 1
        elif impl == "solver":
            solver = Solver(RecursiveReasoner.from_pretrained("sudoku"), device=device)
            found.append(measure_solver(solver, example_puzzles(), args.window))
        else:
            found += measure(case, [impl], args.window)
        report.save(path, device, idle_watts=idle, rows=found)
    if not found:
        report.save(path, device, idle_watts=idle, rows=found)
    read = [row for row in found if row["energy"] is not None]
    covers = counter.covers if counter else "none can be read"
    print(f"{len(read)} of {len(found)} measured, {left} left, idle {idle} W, counter: {covers}")
    return UNFINISHED if left else int(not read or len(read) < len(found))


if __name__ == "__main__":
    raise SystemExit(main())
