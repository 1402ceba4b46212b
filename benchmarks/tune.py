"""python -m benchmarks.tune: better launch rows for this GPU, found offline and held to the error budget first.

One row is changed at a time: warps, stages, or one block size doubled or halved. A candidate is compiled, compared with
the reference, and timed against the row of the table in turns, by graph replay. `tuned.json` lists the winners; they
enter a `launch.py` by hand, after the compile gate has seen them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, rows
from benchmarks.cases import Case
from benchmarks.gate import refusal
from benchmarks.harness import capture
from benchmarks.problem import Problem, make
from benchmarks.providers import PERSISTENT, TRITON, Provider, run_of
from benchmarks.timing import Call, Clock, interleave, speedup
from rtm_kernels.ops.launch import LaunchRow

MARGIN = 1.02
"""The lower end of a winner's interval must be above this ratio."""

USES: tuple[tuple[Case, Provider], ...] = (
    (Case("sudoku", "mixer", 768, "bfloat16", "cuda"), TRITON),
    (Case("sudoku", "channel", 768, "bfloat16", "cuda"), TRITON),
    (Case("sudoku", "block", 1, "bfloat16", "cuda"), PERSISTENT),
    (Case("arc1", "mixer", 64, "bfloat16", "cuda"), TRITON),
)
"""What is tuned for: forward passes at the published sizes, the widest batches for throughput, one for latency."""


@dataclass(frozen=True)
class Found:
    """A candidate and what became of it; ratio is the table's time over its time."""

    case: str
    row: str
    candidate: str
    status: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


def candidates(row: LaunchRow) -> Iterator[LaunchRow]:
    """Rows that differ from `row` in one number."""
    for warps in (4, 8):
        if warps != row.num_warps:
            yield replace(row, num_warps=warps)
    for stages in (2, 3, 4):
        if stages != row.num_stages:
            yield replace(row, num_stages=stages)
    for name, size in row.blocks.items():
        for other in (size // 2, size * 2):
            if 16 <= other <= 512 and name.startswith(("BLOCK_", "MIX_", "UP_", "DOWN_")) and name != "BLOCK_L":
                yield replace(row, blocks={**row.blocks, name: other})


@contextlib.contextmanager
def replaced(old: LaunchRow, new: LaunchRow) -> Iterator[None]:
    """Every module of the package sees `new` in place of `old` in the table that holds it."""
    changed: list[tuple[Any, tuple[LaunchRow, ...]]] = []
    for name, module in list(sys.modules.items()):
        table = getattr(module, "TABLE", None) if name.startswith("rtm_kernels.") else None
        if isinstance(table, tuple) and any(row is old for row in table):
            changed.append((module, table))
            module.TABLE = tuple(new if row is old else row for row in table)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, table in changed:
            module.TABLE = table


def rows_used(provider: Provider, problem: Problem) -> list[LaunchRow]:
    """The rows that one call launches, wherever they were chosen."""
    from rtm_kernels.ops.launch import launch

    used: list[LaunchRow] = []

    def noting(kernel: Any, row: LaunchRow, *args: Any, **constants: Any) -> None:
        if all(row is not seen for seen in used):
            used.append(row)
        launch(kernel, row, *args, **constants)

    run = run_of(provider, problem)
    run(problem.inputs[0])  # imports the kernels
    holders = [m for name, m in list(sys.modules.items()) if name.startswith("rtm_kernels.")]
    holders = [module for module in holders if getattr(module, "launch", None) is launch]
    try:
        for module in holders:
            module.launch = noting  # type: ignore[attr-defined]
        run(problem.inputs[0])
    finally:
        for module in holders:
            module.launch = launch  # type: ignore[attr-defined]
    return used


def tune(case: Case, provider: Provider, until: float) -> Iterator[Found]:
    """Try the candidates of every row that the case uses, until that time."""
    problem = make(case, copies=1)
    for row in rows_used(provider, problem):
        table = _call(provider, problem)
        for candidate in candidates(row):
            if time.monotonic() > until:
                return
            with replaced(row, candidate):
                reason = refusal(provider, problem)
                call = None if reason else _call(provider, problem)
            if call is None:
                yield Found(case.name, str(row), str(candidate), f"refused: {reason}")
                continue
            timed = interleave({"table": table, "candidate": call}, Clock("cuda", flush=True), seconds=0.3)
            ratio = speedup(timed["table"], timed["candidate"])
            yield Found(case.name, str(row), str(candidate), "faster" if ratio[1] > MARGIN else "not faster", *ratio)


def _call(provider: Provider, problem: Problem) -> Call:
    replay = capture(run_of(provider, problem), problem.inputs[0])
    return lambda i: replay()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; writes tuned.json, the negative results included."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds")
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<gpu>)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here")
    begin, found = time.monotonic(), []
    for i, (case, provider) in enumerate(USES):
        found += list(tune(case, provider, begin + args.limit * (i + 1) / len(USES)))
    path = (args.folder or machine.ROOT / "profiles" / machine.slug("cuda")) / "tuned.json"
    facts = {"machine": machine.device_name("cuda"), "commit": machine.commit(), "versions": machine.versions()}
    rows.replace(path, json.dumps({**facts, "found": [asdict(f) for f in found]}, indent=1) + "\n")
    faster = [f for f in found if f.status == "faster"]
    for f in faster:
        print(f"{f.case}: {f.ratio:.3f} with {f.candidate} instead of {f.row}")
    print(f"{len(found)} candidates, {len(faster)} faster, written to {path}")
    return int(not found)


if __name__ == "__main__":
    raise SystemExit(main())
