"""python -m benchmarks.training {ways,symmetric}: what an optimiser step costs on one thread of a CPU.

`ways` compares eager and compiled steps in float32 and bfloat16, on whole matrices. `symmetric` compares symmetric
weights on whole matrices, eager and compiled, with the C++ layers that compute from their distinct numbers alone.
Processor time is counted and the contestants take turns, so that a busy machine changes little.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import machine, report, rows
from benchmarks.timing import Call, Clock, interleave, median_interval, speedup
from rtm_kernels.recursion import symmetric
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.recipe import PRESETS
from rtm_kernels.train.schema import Source, Stage

STEPS = 1 << 16
"""Optimiser steps of a recipe here: more than are ever timed."""
WAYS: dict[str, dict[str, Any]] = {
    "eager, float32": {"dtype": "float32"},
    "compiled, float32": {"dtype": "float32", "compile": True},
    "eager, bfloat16": {"dtype": "bfloat16"},
    "compiled, bfloat16": {"dtype": "bfloat16", "compile": True},
}
SYMMETRIC: dict[str, dict[str, Any]] = {
    "whole matrices, eager": {},
    "whole matrices, compiled": {"compile": True},
    "symmetric": {},
}


def trainer(preset: str, batch: int, dtype: str = "float32", compile: bool = False, symmetric: bool = False) -> Trainer:
    """A trainer of the preset's model on one pool of generated puzzles."""
    base = PRESETS[preset]
    model, stage = replace(base.model, forward_dtype=dtype), Stage(steps=STEPS, batch_size=batch, mix={"all": 1.0})
    recipe = replace(base, model=model, sources={"all": Source(count=500, seed=1)}, stages=(stage,), threads=1)
    return Trainer(replace(recipe, compile=compile, symmetric=symmetric))


def ways(preset: str, batch: int) -> dict[str, Call]:
    """An optimiser step in each of `WAYS`."""
    return {name: _step(trainer(preset, batch, **way)) for name, way in WAYS.items()}


def symmetric_ways(preset: str, batch: int) -> dict[str, Call]:
    """An optimiser step of symmetric weights in each way of `SYMMETRIC`."""
    found = {}
    for name, way in SYMMETRIC.items():
        unable = {"wraps": symmetric.why_not_structure} if name == "symmetric" else {"return_value": "not wanted"}
        with mock.patch.object(symmetric, "why_not_structure", **unable):
            made = trainer(preset, batch, symmetric=True, **way)
        assert isinstance(made.model.run, symmetric.TrainingRun) == (name == "symmetric")
        found[name] = _step(made)
    return found


def _step(made: Trainer) -> Call:
    return lambda i: made.step()


def compare(calls: Mapping[str, Call], seconds: float) -> list[dict[str, Any]]:
    """A row per way: the median of its processor time, and its ratio to the first way, round by round."""
    timed = interleave(calls, Clock("cpu", process=True), seconds=seconds)
    base = next(iter(timed.values()))
    found = []
    for name, samples in timed.items():
        ratio, low, high = speedup(base, samples)
        row = {"way": name, "cpu_ms": 1e3 * median_interval(samples)[0], "ratio": ratio, "interval": [low, high]}
        found.append(row | {"rounds": len(samples)})
        print(f"{name:40} {row['cpu_ms']:9.3f} ms, ratio {ratio:.2f} ({low:.2f} to {high:.2f})", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; writes profiles/<machine>/training_<what>.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("what", choices=("ways", "symmetric"))
    parser.add_argument("--preset", help="recipe (default: sudoku-small, for symmetric sudoku-small-hard)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of timed rounds")
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<machine>)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    preset = args.preset or {"ways": "sudoku-small", "symmetric": "sudoku-small-hard"}[args.what]
    calls = ways(preset, args.batch) if args.what == "ways" else symmetric_ways(preset, args.batch)
    facts = machine.facts("cpu") | {"clock": "cpu", "versions": machine.versions()}
    facts |= {"preset": preset, "batch": args.batch, "rows": compare(calls, args.seconds)}
    target = (args.folder or report.default_folder("cpu")) / f"training_{args.what}.json"
    rows.replace(target, json.dumps(facts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
