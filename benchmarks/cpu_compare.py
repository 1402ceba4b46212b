"""Compare the native CPU executor with its peers: `python -m benchmarks.cpu_compare --case sudoku_b1 --rounds 15`.

All candidates and an sgemm run in turns in one process with the same number of threads, so that what else the machine
does falls on all of them. A ratio is the median over the rounds of (peer's time / native time) within a round; `best`
is each candidate's fastest round, which says more on a machine that others load.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.cpu_peers import CASES, PEERS, Case, Run, missing, native_run

GEMM = 1536
PAUSE = 0.02
"""Seconds between two candidates: threads of some spin on for a while after their call, on the next one's cores."""
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def sgemm() -> Run:
    a, b, out = (torch.randn(GEMM, GEMM) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def candidates(case: Case, peers: list[str]) -> tuple[dict[str, Run], dict[str, float]]:
    """Runnable candidates by name, and the FLOPs of one run of each."""
    runs: dict[str, Run] = {"sgemm": sgemm(), "native": native_run(case)}
    for name in peers:
        reason = missing(name)
        if reason is not None:
            print(f"{case.name}: {name} left out: {reason}")
            continue
        runs[name] = PEERS[name](case)
    flops = {name: float(case.flops) for name in runs}
    flops["sgemm"] = 2.0 * GEMM**3
    return runs, flops


def agree(runs: dict[str, Run]) -> None:
    """Refuse to time candidates that compute something else."""
    expected = runs["native"]()
    assert isinstance(expected, torch.Tensor)
    for name, run in runs.items():
        if name in ("sgemm", "native"):
            continue
        value = run()
        assert isinstance(value, torch.Tensor)
        error = float(torch.linalg.vector_norm(value.float() - expected) / torch.linalg.vector_norm(expected))
        allowed = 0.1 if "bfloat16" in name or "int8" in name else 1e-4
        if not error < allowed:
            raise SystemExit(f"{name} differs from native by {error:.1e}; a speed of a wrong answer is not reported")


def measure(runs: dict[str, Run], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; the order turns by one place every round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for round_number in range(rounds):
        shift = round_number % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(PAUSE)
            start = clock()
            runs[name]()
            seconds[name].append(clock() - start)
    return seconds


def rows(case: Case, seconds: dict[str, list[float]], flops: dict[str, float], clock: str) -> list[dict[str, object]]:
    """One row per candidate: median and quartiles in GFLOP/s, and the median of the ratios round by round."""
    result = []
    for name, times in seconds.items():
        rates = [flops[name] / t / 1e9 for t in times]
        ratio = [(t / flops[name]) / (n / flops["native"]) for t, n in zip(times, seconds["native"], strict=True)]
        quartiles = statistics.quantiles(rates, n=4)
        best = max(rates)
        best_native = flops["native"] / min(seconds["native"]) / 1e9
        result.append(
            {
                "case": case.name, "impl": name, "metric": "useful_rate", "unit": "GFLOP/s", "clock": clock,
                "value": round(quartiles[1], 1), "quartiles": [round(quartiles[0], 1), round(quartiles[2], 1)],
                "native_over_this": round(statistics.median(ratio), 3), "rounds": len(times),
                "best": round(best, 1), "native_over_this_best": round(best_native / best, 3),
                "threads": torch.get_num_threads(), "torch": torch.__version__,
                "machine": machine.device_name("cpu"), "commit": machine.commit(),
            }
        )  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=[c.name for c in CASES], help="default: all")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="default: all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: process time, for one thread")
    parser.add_argument("--json", type=Path, help="append one JSON object per row to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for case in CASES:
        if arguments.case and case.name not in arguments.case:
            continue
        with torch.no_grad():
            runs, flops = candidates(case, arguments.peer or list(PEERS))
            agree(runs)
            seconds = measure(runs, arguments.rounds, CLOCKS[arguments.clock])
        for row in rows(case, seconds, flops, arguments.clock):
            low, high = row["quartiles"]  # type: ignore[misc]
            print(f"{row['case']:18} {row['impl']:28} {row['value']:8} GFLOP/s [{low}, {high}]  "
                  f"native is {row['native_over_this']:.2f} x, best {row['best']:8}, "
                  f"{row['native_over_this_best']:.2f} x", flush=True)  # fmt: skip
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
