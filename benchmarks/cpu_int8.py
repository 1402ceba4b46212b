"""Do bfloat16 and int8 give the answers of float32, and how fast? `python -m benchmarks.cpu_int8` writes the profile.

The lists: generated puzzles, and the test lists of harder ones that lie beside the checkout or are named. The
precisions take the same chunks of puzzles in turns on one thread, timed by the processor's clock. Agreement counts
equal answers, cell by cell; `agree_of_solved` counts only puzzles that float32 solves. An interval is Wilson's at 95 %.
A format may become the default when it agrees on `NEEDED` of them under every policy (`may_be_default`).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.rows import replace
from rtm_kernels import RecursiveReasoner, Solver
from rtm_kernels.data.sudoku import generate
from rtm_kernels.engine import Solution
from rtm_kernels.recursion import native
from rtm_kernels.trace.recorder import model_sha256

NEEDED = 0.999
POLICIES = ("verified", "q", "fixed")
LISTS = machine.ROOT.parent / "shared" / "data" / "sudoku"


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share of `hits` in `n`."""
    share, scale = hits / n, 1 + z * z / n
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / scale, (middle + half) / scale


def puzzles_of(files: Sequence[Path], generated: int, limit: int) -> Iterator[tuple[str, list[str]]]:
    """(name, puzzles) of every list: `generated` new ones, and the first `limit` of each file."""
    if generated:
        inputs, _ = generate(generated, seed=1001, difficulty="singles", clues=(30, 36))
        yield "generated_easy", ["".join(map(str, row)) for row in inputs.tolist()]
    for file in files:
        lines = [line.split(",")[0] for line in file.read_text().splitlines()]
        yield file.stem, [line for line in lines if len(line) == 81 and line[0] in "0123456789."][:limit]


def measure(
    solvers: dict[str, Solver], puzzles: list[str], chunk: int
) -> tuple[dict[str, list[Solution]], dict[str, list[float]]]:
    """Solutions, and seconds of each chunk, by precision."""
    solutions: dict[str, list[Solution]] = {name: [] for name in solvers}
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    names = list(solvers)
    for turn, start in enumerate(range(0, len(puzzles), chunk)):
        part = puzzles[start : start + chunk]
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            before = time.process_time()
            solutions[name] += solvers[name].solve(part)
            seconds[name].append(time.process_time() - before)
    return solutions, seconds


def row(
    name: str, data: str, policy: str, solutions: dict[str, list[Solution]], seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """How one precision compares with float32 on one list."""
    base, mine = solutions["float32"], solutions[name]
    pairs = list(zip(base, mine, strict=True))
    solved = [(a, b) for a, b in pairs if a.status == "verified"]
    same = sum(a.answer == b.answer for a, b in pairs)
    same_of_solved = sum(a.answer == b.answer for a, b in solved)
    low, high = wilson(same_of_solved, len(solved)) if solved else (0.0, 1.0)
    ratios = [b / a for a, b in zip(seconds[name], seconds["float32"], strict=True)]
    return {
        "case": data, "impl": f"native_{name}", "policy": policy, "n": len(mine), "clock": "cpu",
        "solved": sum(s.status == "verified" for s in mine), "solved_float32": len(solved),
        "agree": same, "agree_of_solved": same_of_solved, "interval_of_solved": [round(low, 5), round(high, 5)],
        "mean_steps": round(statistics.mean(s.steps for s in mine), 3),
        "puzzles_per_second": round(len(mine) / sum(seconds[name]), 1), "speedup": round(statistics.median(ratios), 3),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "machine": machine.device_name("cpu"),
        "commit": machine.commit(),
    }  # fmt: skip


def may_be_default(found: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether `name` agrees with float32 on `NEEDED` of at least 1,000 puzzles that float32 solves, in every policy."""
    for policy in sorted({row["policy"] for row in found}):
        mine = [row for row in found if (row["impl"], row["policy"]) == (f"native_{name}", policy)]
        solved, agree = (sum(row[key] for row in mine) for key in ("solved_float32", "agree_of_solved"))
        if solved < 1000 or agree < NEEDED * solved:
            return False
    return bool(found)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", type=Path, help=f"csv files of puzzles; default: {LISTS}/*_test.csv, if any"
    )
    parser.add_argument("--generated", type=int, default=1500, help="puzzles to generate, 0 for none")
    parser.add_argument("--limit", type=int, default=300, help="puzzles of each file, 0 for none")
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--policy", action="append", help=f"default: {', '.join(POLICIES)}")
    parser.add_argument(
        "--json", type=Path, help="file to write; default: cpu_int8.jsonl in the profile of this machine"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = RecursiveReasoner.from_pretrained("sudoku")
    out = arguments.json or machine.ROOT / "profiles" / machine.slug("cpu") / "cpu_int8.jsonl"
    weights = model_sha256(model)["weights_sha256"]
    runnable = [p for p in native.PRECISIONS if native.why_not_precision(p) is None]
    found: list[dict[str, Any]] = []
    for data, puzzles in puzzles_of(
        arguments.files or sorted(LISTS.glob("*_test.csv")), arguments.generated, arguments.limit
    ):
        for policy in (arguments.policy or POLICIES) if puzzles else ():
            solvers = {p: Solver(model, precision=p, policy=policy) for p in runnable}
            solutions, seconds = measure(solvers, puzzles, arguments.chunk)
            for name in runnable:
                new = row(name, data, policy, solutions, seconds) | {"weights_sha256": weights}
                found.append(new)
                print(f"{data:26} {policy:9} {new['impl']:16} solved {new['solved']:5} of {new['n']}, agrees on "
                      f"{new['agree_of_solved']} of {new['solved_float32']} solved by float32, "
                      f"{new['puzzles_per_second']:7} puzzles/s, {new['speedup']:.2f} x", flush=True)  # fmt: skip
            replace(out, "".join(json.dumps(one) + "\n" for one in found))
    for name in runnable[1:]:
        print(f"{name} {'agrees often enough' if may_be_default(found, name) else 'does not agree often enough'} for a "
              f"default ({100 * NEEDED:g} % of 1,000 solved puzzles or more, under each policy)")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
