"""Do bfloat16 and int8 give the answers of float32, and how fast? `python -m benchmarks.cpu_int8 --json FILE`.

Without FILES: 1,000 generated puzzles, the ones of the bundled model's card. The precisions take the same chunks of
puzzles in turns, so that what else the machine does falls on all of them. Agreement counts equal answers, cell by
cell; `agree_of_solved` counts only puzzles that float32 solves. An interval is Wilson's at 95 %.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.cpu_compare import CLOCKS
from rtm_kernels import RecursiveReasoner, Solver
from rtm_kernels.data.sudoku import generate
from rtm_kernels.engine import Solution
from rtm_kernels.recursion import native


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share of `hits` in `n`."""
    share, scale = hits / n, 1 + z * z / n
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / scale, (middle + half) / scale


def puzzles_of(files: Sequence[Path], limit: int) -> Iterator[tuple[str, list[str]]]:
    """(name, puzzles) of every list."""
    if not files:
        inputs, _ = generate(limit, seed=1001, difficulty="singles", clues=(30, 36))
        yield "generated_easy", ["".join(map(str, row)) for row in inputs.tolist()]
    for file in files:
        lines = [line.split(",")[0] for line in file.read_text().splitlines()]
        yield file.stem, [line for line in lines if len(line) == 81 and line[0] in "0123456789."][:limit]


def measure(
    solvers: dict[str, Solver], puzzles: list[str], chunk: int, clock: str
) -> tuple[dict[str, list[Solution]], dict[str, list[float]]]:
    """Solutions, and seconds of each chunk, by precision."""
    solutions: dict[str, list[Solution]] = {name: [] for name in solvers}
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    names = list(solvers)
    for turn, start in enumerate(range(0, len(puzzles), chunk)):
        part = puzzles[start : start + chunk]
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            before = CLOCKS[clock]()
            solutions[name] += solvers[name].solve(part)
            seconds[name].append(CLOCKS[clock]() - before)
    return solutions, seconds


def row(
    name: str, data: str, policy: str, solutions: dict[str, list[Solution]], seconds: dict[str, list[float]], clock: str
) -> dict[str, object]:
    """How one precision compares with float32 on one list."""
    base, mine = solutions["float32"], solutions[name]
    pairs = list(zip(base, mine, strict=True))
    solved = [(a, b) for a, b in pairs if a.status == "verified"]
    same = sum(a.answer == b.answer for a, b in pairs)
    same_of_solved = sum(a.answer == b.answer for a, b in solved)
    low, high = wilson(same_of_solved, len(solved)) if solved else (0.0, 1.0)
    ratios = [b / a for a, b in zip(seconds[name], seconds["float32"], strict=True)]
    return {
        "case": data, "impl": f"native_{name}", "policy": policy, "n": len(mine), "clock": clock,
        "solved": sum(s.status == "verified" for s in mine), "solved_float32": len(solved),
        "agree": same, "agree_of_solved": same_of_solved, "interval_of_solved": [round(low, 5), round(high, 5)],
        "mean_steps": round(statistics.mean(s.steps for s in mine), 3),
        "puzzles_per_second": round(len(mine) / sum(seconds[name]), 1), "speedup": round(statistics.median(ratios), 3),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "machine": machine.device_name("cpu"),
        "commit": machine.commit(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="csv files of puzzles")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--policy", action="append", help="default: verified and fixed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: process time, for one thread")
    parser.add_argument("--json", type=Path, help="append one JSON object per row to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = RecursiveReasoner.from_pretrained("sudoku")
    runnable = [p for p in native.PRECISIONS if native.why_not_precision(p) is None]
    for data, puzzles in puzzles_of(arguments.files, arguments.limit):
        for policy in arguments.policy or ["verified", "fixed"]:
            solvers = {p: Solver(model, precision=p, policy=policy) for p in runnable}
            solutions, seconds = measure(solvers, puzzles, arguments.chunk, arguments.clock)
            for name in runnable:
                found = row(name, data, policy, solutions, seconds, arguments.clock)
                print(f"{data:20} {policy:9} {found['impl']:16} solved {found['solved']:5} of {found['n']}, "
                      f"agrees on {found['agree_of_solved']} of {found['solved_float32']} solved by float32, "
                      f"{found['puzzles_per_second']:7} puzzles/s, {found['speedup']:.2f} x", flush=True)  # fmt: skip
                if arguments.json:
                    with arguments.json.open("a") as file:
                        file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
