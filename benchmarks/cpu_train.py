"""python -m benchmarks.cpu_train: which way of training is the fastest on a CPU, for a recipe.

CPU time of a whole optimiser step on one thread, in turns, so that a busy machine changes little: PyTorch as it is,
and compiled (`compile`), each in float32 and in bfloat16. Weights are without symmetry (those with:
`benchmarks.cpu_symmetric`). The first rounds, in which compilers work and samples begin, are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import cpu_compare, machine
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.recipe import PRESETS
from rtm_kernels.train.schema import Recipe, Source, Stage

WAYS: dict[str, dict[str, Any]] = {
    "eager, float32": {"dtype": "float32", "compile": False},
    "compiled, float32": {"dtype": "float32", "compile": True},
    "eager, bfloat16": {"dtype": "bfloat16", "compile": False},
    "compiled, bfloat16": {"dtype": "bfloat16", "compile": True},
}
BASELINE = "eager, float32"


def recipe(preset: str, batch: int, steps: int, dtype: str, **ways: Any) -> Recipe:
    """The preset's model and optimiser on one bank of generated puzzles."""
    base = PRESETS[preset]
    return replace(
        base, model=replace(base.model, forward_dtype=dtype), sources={"all": Source(count=500, seed=1)},
        stages=(Stage(steps=steps, batch_size=batch, mix={"all": 1.0}),), threads=1, **{"symmetric": False, **ways},
    )  # fmt: skip


def measure(preset: str, batch: int, rounds: int, warm: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each round."""
    trainers = {name: Trainer(recipe(preset, batch, warm + rounds, **way)) for name, way in WAYS.items()}
    steps = {name: trainer.step for name, trainer in trainers.items()}
    seconds = cpu_compare.measure(steps, warm + rounds, time.process_time)
    return {name: times[warm:] for name, times in seconds.items()}


def compared(seconds: dict[str, list[float]], baseline: str) -> list[dict[str, Any]]:
    """A row for each way, printed too: the median of its CPU time, and its ratios to `baseline`, round by round."""
    rows = []
    for name, times in seconds.items():
        ratios = [b / t for b, t in zip(seconds[baseline], times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append({"way": name, "cpu_ms": round(1e3 * statistics.median(times), 1), "speedup": round(middle, 3),
                     "quartiles": [round(low, 3), round(high, 3)]})  # fmt: skip
        print(f"{name:50} {rows[-1]['cpu_ms']:8.1f} ms, {middle:.2f} times {baseline} ({low:.2f} to {high:.2f})")
    return rows


def write(path: Path | None, rows: list[dict[str, Any]], **what: Any) -> None:
    """The report of `rows` to a file, if there is one."""
    report = {
        **what, "threads": 1, "clock": "cpu", "machine": machine.device_name("cpu"), "commit": machine.commit(),
        "versions": machine.versions(), "rows": rows,
    }  # fmt: skip
    if path:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_train", description=__doc__)
    parser.add_argument("--preset", default="sudoku-small")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = compared(measure(args.preset, args.batch, args.rounds, args.warm), BASELINE)
    write(args.out, rows, preset=args.preset, batch=args.batch, rounds=args.rounds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
