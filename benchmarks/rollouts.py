"""python -m benchmarks.rollouts FILE: how many puzzles are confirmed under more steps, and under more rollouts.

Depth: one plain run with a cap of `--depth` steps, read off at every power of two. Rollouts: under the model's own cap,
with every power of two of them, for each of `--kinds`. Steps are counted, not seconds, so that a busy machine changes
nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import machine
from rtm_kernels.data.task import Task
from rtm_kernels.engine import Rollouts, Solver
from rtm_kernels.engine.rollouts import KINDS
from rtm_kernels.engine.samples import Sample
from rtm_kernels.pretrained import from_pretrained
from rtm_kernels.trace.recorder import model_sha256


def samples(path: Path, task: Task, limit: int) -> list[Sample]:
    """The first puzzles of a file."""
    with path.open(encoding="utf-8-sig") as file:
        texts = [puzzle.text for _, puzzle in zip(range(limit), task.parse(file), strict=False)]
    return [Sample(i, task.encode(text)) for i, text in enumerate(texts)]


def counts(most: int) -> list[int]:
    """The powers of two up to `most`, and that."""
    return sorted({2**i for i in range(16) if 2**i <= most} | {most})


def by_depth(solver: Solver, puzzles: Sequence[Sample]) -> dict[int, dict[str, float]]:
    """Cap -> how many are confirmed under it and the mean steps per puzzle."""
    done = list(solver.run(puzzles))
    cap, found = solver.policy.max_steps, {}
    for limit in counts(cap):
        confirmed = sum(d.verified and d.steps <= limit for d in done)
        found[limit] = {"verified": confirmed, "steps": sum(min(d.steps, limit) for d in done) / len(done)}
    return found


def by_rollouts(solver: Solver, puzzles: Sequence[Sample], rollouts: Rollouts) -> dict[int, dict[str, float]]:
    """Number of rollouts -> how many are confirmed with as many, and the mean steps of all per puzzle."""
    found = {}
    for count in counts(rollouts.count):
        solver.rollouts = replace(rollouts, count=count)
        done = list(solver.run(puzzles))
        steps = sum(d.total_steps for d in done) / len(done)
        found[count] = {"verified": sum(d.verified for d in done), "steps": steps}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollouts", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="sudoku")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--depth", type=int, default=256)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS[1:], default=KINDS[1:])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    model = from_pretrained(args.model)
    solver, deep = Solver(model), Solver(model, max_steps=args.depth)
    puzzles = samples(args.file, solver.task, args.limit)
    report = {
        "data": args.file.name, "n": len(puzzles), "model": args.model, **model_sha256(model),
        "machine": machine.device_name("cpu"), "commit": machine.commit(), "versions": machine.versions(),
        "executor": solver.executor.name, "max_steps": solver.policy.max_steps, "noise": args.noise,
        "rollouts": {k: by_rollouts(solver, puzzles, Rollouts(args.rollouts, args.noise, kind=k)) for k in args.kinds},
        "depth": by_depth(deep, puzzles),
    }  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    for name, found in {"depth": report["depth"], **report["rollouts"]}.items():
        rows = {k: v for k, v in found.items() if k & (k - 1) == 0}
        print(name, *(f"{k}: {v['verified']} in {v['steps']:.1f} steps" for k, v in rows.items()), sep="\n  ")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
