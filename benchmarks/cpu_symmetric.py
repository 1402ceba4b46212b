"""python -m benchmarks.cpu_symmetric: what symmetric weights cost on a CPU when they are computed from what they are.

CPU time on one thread, in turns: an ACT step of the bundled Sudoku model by every executor of a CPU in float32, and a
whole optimiser step of a recipe in C++ (`recursion/symmetric.py`) and on whole matrices, whose gradients and weights
are averaged over their orbits, eagerly and compiled.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import cpu_compare
from benchmarks.cpu_train import compared, recipe, write
from rtm_kernels.engine.executor import PREFERRED, executor
from rtm_kernels.model import RecursiveReasoner
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
    model = RecursiveReasoner.from_pretrained("sudoku")
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
    """CPU time of each run, and the ratios to the first."""
    seconds = cpu_compare.measure(runs, warm + rounds, time.process_time)
    return compared({name: times[warm:] for name, times in seconds.items()}, next(iter(seconds)))


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
    write(args.out, found, preset=args.preset, rounds=args.rounds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
