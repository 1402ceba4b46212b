"""python -m benchmarks.cpu_symmetric: what symmetric weights cost on a CPU when they are computed from what they are.

CPU time on one thread, in turns: an ACT step of the bundled Sudoku model by every executor of a CPU in float32, and a
whole optimiser step of a recipe in C++ (`recursion/symmetric.py`) and on whole matrices, whose gradients and weights
are averaged over their orbits, eagerly and compiled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import cpu_compare, machine
from benchmarks.cpu_train import recipe
from rtm_kernels.engine.executor import PREFERRED, executor
from rtm_kernels.pretrained import from_pretrained
from rtm_kernels.recursion import symmetric
from rtm_kernels.train.loop import Trainer

WAYS: dict[str, dict[str, Any]] = {
    "whole matrices, eager": {"compile": False},
    "whole matrices, compiled": {"compile": True},
    "symmetric": {"compile": False},
}
WHOLE = "whole matrices are asked for"


def act_steps(batch: int) -> dict[str, Callable[[], object]]:
    """An ACT step of the bundled model on `batch` puzzles for each executor, the reference first."""
    model = from_pretrained("sudoku")
    tokens = torch.randint(1, 11, (batch, 81), generator=torch.Generator().manual_seed(0))
    x = model.embed(tokens, torch.zeros(batch, dtype=torch.int32)).detach()
    latents = model.initial_latents(batch)

    def step(name: str) -> Callable[[], object]:
        own = executor(name, model)

        @torch.inference_mode()
        def run() -> object:
            return own.step(latents, x)

        return run

    return {f"ACT step, batch {batch}, {name}": step(name) for name in reversed(PREFERRED["cpu"])}


def optimiser_steps(preset: str, batch: int, steps: int) -> dict[str, Callable[[], object]]:
    """An optimiser step of the preset's model for each way."""
    found = {}
    for name, way in WAYS.items():
        reason = {} if name == "symmetric" else {"return_value": WHOLE}
        with mock.patch.object(symmetric, "why_not_structure", **({"wraps": symmetric.why_not_structure} | reason)):
            trainer = Trainer(recipe(preset, batch, steps, "float32", symmetric=True, **way))
        assert isinstance(trainer.model.run, symmetric.TrainingRun) == (name == "symmetric")
        found[f"training step, batch {batch}, {name}"] = trainer.step
    return found


def rows(runs: dict[str, Callable[[], object]], rounds: int, warm: int) -> list[dict[str, Any]]:
    """CPU time of each run, and the ratios to the first, round by round."""
    seconds = {n: t[warm:] for n, t in cpu_compare.measure(runs, warm + rounds, time.process_time).items()}
    first, found = next(iter(seconds)), []
    for name, times in seconds.items():
        ratios = [b / t for b, t in zip(seconds[first], times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found.append({"way": name, "cpu_ms": round(1e3 * statistics.median(times), 1), "speedup": round(middle, 3),
                      "quartiles": [round(low, 3), round(high, 3)]})  # fmt: skip
        print(f"{name:50} {found[-1]['cpu_ms']:8.1f} ms, {middle:.2f} times {first} ({low:.2f} to {high:.2f})")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_symmetric", description=__doc__)
    parser.add_argument("--preset", default="sudoku-small-hard")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 64], help="of the ACT steps")
    parser.add_argument("--batch", type=int, default=64, help="of the optimiser steps")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = [row for batch in args.batches for row in rows(act_steps(batch), args.rounds, args.warm)]
    found += rows(optimiser_steps(args.preset, args.batch, args.rounds + args.warm), args.rounds, args.warm)
    if args.out:
        report = {
            "preset": args.preset, "rounds": args.rounds, "threads": 1, "clock": "cpu",
            "machine": machine.device_name("cpu"), "commit": machine.commit(), "versions": machine.versions(),
            "rows": found,
        }  # fmt: skip
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
