"""python -m benchmarks.training {ways,symmetric,batches}: what training costs on one thread of a CPU.

`ways` compares an optimiser step of a recipe, eager and compiled, in float32 and bfloat16, with whole matrices.
`symmetric` compares symmetric weights on whole matrices, eager and compiled, with the C++ layers that compute from the
numbers they are made of. `batches` gives the cost of drawing a batch from every kind of stream. Processor time is
counted and the contestants take turns, so that a busy machine changes little.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import machine, rows
from benchmarks.timing import Call, Clock, interleave, median_interval, speedup
from rtm_kernels.data import maze, sudoku
from rtm_kernels.data.build import build_maze, build_sudoku
from rtm_kernels.recursion import symmetric
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.recipe import PRESETS
from rtm_kernels.train.schema import Source, Stage
from rtm_kernels.train.stream import BankStream, DatasetStream, Stream

MIX = {"all": 1.0}
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
    recipe = replace(
        base, model=replace(base.model, forward_dtype=dtype), sources={"all": Source(count=500, seed=1)},
        stages=(Stage(steps=STEPS, batch_size=batch, mix=MIX),), threads=1, compile=compile, symmetric=symmetric,
    )  # fmt: skip
    return Trainer(recipe)


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


def batches(folder: Path, batch: int, count: int) -> dict[str, Call]:
    """A batch of each stream: a pool of generated puzzles, and data sets of `count` puzzles with and without twins."""
    build_sudoku(folder / "sudoku", sudoku.generate(count + 50, seed=1), test=50)
    build_maze(folder / "maze", maze.generate(count + 50, seed=1, path_cells=60), test=50)
    streams: dict[str, Stream] = {"bank, twins": BankStream({"all": Source(count=count, seed=1)}, 0)}
    for task in ("sudoku", "maze"):
        streams[f"data set of {task}"] = DatasetStream(str(folder / task), 0, batch, False)
        streams[f"data set of {task}, twins"] = DatasetStream(str(folder / task), 0, batch, True)
    return {name: (lambda i, stream=stream: stream.batch(batch, MIX)) for name, stream in streams.items()}


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
    parser.add_argument("what", choices=("ways", "symmetric", "batches"))
    parser.add_argument("--preset", help="recipe (default: sudoku-small, for symmetric sudoku-small-hard)")
    parser.add_argument("--batch", type=int, help="batch size (default: 64, of batches 768)")
    parser.add_argument("--count", type=int, default=1000, help="puzzles of each data set of `batches`")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of timed rounds")
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<machine>)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    batch = args.batch or (768 if args.what == "batches" else 64)
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "batches":
            calls = batches(Path(folder), batch, args.count)
        elif args.what == "ways":
            calls = ways(args.preset or "sudoku-small", batch)
        else:
            calls = symmetric_ways(args.preset or "sudoku-small-hard", batch)
        found = compare(calls, args.seconds)
    facts = machine.facts("cpu") | {"clock": "cpu", "versions": machine.versions(), "preset": args.preset, "batch": batch}
    target = (args.folder or machine.ROOT / "profiles" / machine.slug("cpu")) / f"training_{args.what}.json"
    rows.replace(target, json.dumps(facts | {"rows": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
