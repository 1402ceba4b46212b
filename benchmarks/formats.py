"""python -m benchmarks.formats [FILES]: do bfloat16 and int8 on a CPU give the answers of float32?

Puzzles are generated, or the first of each file. `agree` counts equal answers among those that float32 solves, with
Wilson's 95% interval. A format may become the default of the solver when it agrees on 99.9 % of at least 1,000 of them
under every policy. `python -m benchmarks.run --peers` measures speed. Writes profiles/<machine>/formats.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, report
from benchmarks.evaluation.report import wilson
from benchmarks.rows import replace
from rtm_kernels.data.sudoku import generate
from rtm_kernels.engine.solver import Solver
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.recursion import native

POLICIES = ("verified", "q", "fixed")


def puzzle_lists(files: Sequence[Path], generated: int, limit: int) -> Iterator[tuple[str, list[str]]]:
    """(name, puzzles) of every list: `generated` new ones, and the first `limit` of each file."""
    if generated:
        inputs, _ = generate(generated, seed=1001, difficulty="singles", clues=(30, 36))
        yield "generated_easy", ["".join(map(str, row)) for row in inputs.tolist()]
    for file in files:
        lines = [line.split(",")[0] for line in file.read_text().splitlines()]
        yield file.stem, [line for line in lines if len(line) == 81 and line[0] in "0123456789."][:limit]


def compare(model: RecursiveReasoner, data: str, puzzles: Sequence[str], policy: str) -> Iterator[dict[str, Any]]:
    """How each format that runs here answers a list, float32 first."""
    formats = [name for name in native.PRECISIONS if native.why_not_precision(name) is None]
    answers = {name: list(Solver(model, precision=name, policy=policy).solve(puzzles)) for name in formats}
    for name, mine in answers.items():
        pairs = [(a, b) for a, b in zip(answers["float32"], mine, strict=True) if a.status == "verified"]
        agree = sum(a.answer == b.answer for a, b in pairs)
        yield {
            "case": data, "impl": f"native_{name}", "policy": policy, "n": len(mine),
            "solved": sum(s.status == "verified" for s in mine), "solved_float32": len(pairs), "agree_of_solved": agree,
            "interval_of_solved": wilson(agree / len(pairs), len(pairs)) if pairs else (0.0, 1.0),
            "mean_steps": statistics.mean(s.steps for s in mine),
        }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="csv files of puzzles")
    parser.add_argument("--generated", type=int, default=1500, help="puzzles to generate, 0 for none")
    parser.add_argument("--limit", type=int, default=300, help="puzzles of each file")
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<machine>)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = RecursiveReasoner.from_pretrained("sudoku")
    found: list[dict[str, Any]] = []
    for data, puzzles in puzzle_lists(args.files, args.generated, args.limit):
        for policy in POLICIES:
            for row in compare(model, data, puzzles, policy):
                found.append(row)
                print(f"{data:26} {policy:9} {row['impl']:16} solved {row['solved']:5} of {row['n']}, agrees on "
                      f"{row['agree_of_solved']} of {row['solved_float32']}", flush=True)  # fmt: skip
    facts = machine.facts("cpu") | {"versions": machine.versions(), "rows": found}
    target = (args.folder or report.default_folder("cpu")) / "formats.json"
    replace(target, json.dumps(facts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
