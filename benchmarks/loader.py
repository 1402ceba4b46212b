"""python -m benchmarks.loader: what drawing a training batch costs, beside what one GPU would take of them.

CPU time of one thread is counted, not seconds, so that a busy machine changes little. The demand is a model, no
measurement: 768 samples over the least time of a training step of the official Sudoku model (`benchmarks.roofline`),
and for longer sequences in proportion to the FLOPs of their model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import machine, roofline
from rtm_kernels.config import ModelConfig
from rtm_kernels.data import maze, sudoku
from rtm_kernels.data.build import build_maze, build_sudoku
from rtm_kernels.flops import act_step_flops
from rtm_kernels.train.recipe import PRESETS
from rtm_kernels.train.schema import Source
from rtm_kernels.train.stream import DatasetStream, PoolStream, Stream

BATCH = 768
MIX = {"all": 1.0}
MODELS = {"sudoku": "trm-sudoku-repo", "maze": "trm-maze-repo"}
"""Task -> the preset whose model sets the demand."""


def streams(folder: Path, count: int) -> dict[str, tuple[str, Callable[[], Stream]]]:
    """Name -> task and a stream of batches, from banks and from data sets of `count` training puzzles."""
    build_sudoku(folder / "sudoku", sudoku.generate(count + 50, seed=1), test=50)
    build_maze(folder / "maze", maze.generate(count + 50, seed=1, path_cells=60), test=50)
    found: dict[str, tuple[str, Callable[[], Stream]]] = {
        "bank, twins": ("sudoku", lambda: PoolStream({"all": Source(count=count, seed=1)}, 0))
    }
    for task in ("sudoku", "maze"):
        for augmented in (False, True):
            name = f"data set of {task}{', twins' if augmented else ''}"
            path = str(folder / task)
            found[name] = (task, lambda path=path, augmented=augmented: DatasetStream(path, 0, BATCH, augmented))
    return found


def milliseconds(stream: Stream, batches: int) -> float:
    """CPU milliseconds of one batch, the mean of `batches`; the first one is not counted."""
    stream.batch(BATCH, MIX)
    start = time.process_time()
    for _ in range(batches):
        stream.batch(BATCH, MIX)
    return 1e3 * (time.process_time() - start) / batches


def step_milliseconds(config: ModelConfig) -> float:
    """The least time of a training step at batch 768 on the modelled GPU."""
    lines = roofline.training_step(BATCH)
    official = PRESETS[MODELS["sudoku"]].model
    return roofline.modelled_milliseconds(lines) * act_step_flops(config, True) / act_step_flops(official, True)


def measure(count: int, batches: int) -> dict[str, object]:
    """The report: for each stream the cost of a batch and how many such streams' worth of a thread a GPU takes."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (task, make) in streams(Path(folder), count).items():
            cost, step = milliseconds(make(), batches), step_milliseconds(PRESETS[MODELS[task]].model)
            rows.append({
                "stream": name, "batch": BATCH, "cpu_ms_per_batch": round(cost, 3),
                "samples_per_cpu_second": round(1e3 * BATCH / cost),
                "modelled_step_ms": round(step, 3), "share_of_step": round(cost / step, 4),
            })  # fmt: skip
    return {"machine": machine.device_name("cpu"), "commit": machine.commit(), "versions": machine.versions(),
            "threads": 1, "batches": batches, "rows": rows}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="puzzles in each data set (default 1000)")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    report = measure(args.count, args.batches)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for row in report["rows"]:  # type: ignore[attr-defined]
        print(f"{row['stream']:24} {row['cpu_ms_per_batch']:8.3f} ms a batch, {100 * row['share_of_step']:.1f} % of a "
              f"modelled step of {row['modelled_step_ms']:.1f} ms")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
