"""`rtm eval`: accuracy, depth and speed on puzzles whose solutions are known."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rtm_kernels.cli.options import (
    BatchSize,
    Device,
    Executor,
    Halt,
    Json,
    Limit,
    MaxSteps,
    Model,
    Noise,
    Rollouts,
    Seed,
)

if TYPE_CHECKING:
    import numpy as np

    from rtm_kernels.data.task import Task
    from rtm_kernels.engine import Evaluation, Solver


def evaluate(
    data: Annotated[Path, typer.Argument(help="csv with puzzle and solution, or a folder in the official layout.")],
    model: Model = "sudoku",
    max_steps: MaxSteps = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    executor: Executor = "auto",
    halt: Halt = "verified",
    rollouts: Rollouts = 1,
    noise: Noise = 0.3,
    seed: Seed = 0,
    limit: Limit = None,
    json_object: Json = False,
) -> None:
    """Compare halting per puzzle with the official fixed number of steps, on the same weights and puzzles.

    With --json the figures of the halting policy stand at the top, those of the fixed protocol under "fixed".

    Examples:

      rtm eval puzzles.csv
      rtm eval data/sudoku-extreme-1k --model runs/best --limit 1000 --json
    """
    from dataclasses import replace

    from rtm_kernels.cli.load import load_solver

    solver = load_solver(
        model, max_steps=max_steps, batch_size=batch_size, device=device, executor=executor, halt=halt,
        rollouts=rollouts, noise=noise, seed=seed,
    )  # fmt: skip
    inputs, labels, identifiers = read_labelled(data, solver.task, limit)
    adaptive = measure(solver, inputs, labels, identifiers, str(solver.policy))
    solver.policy, solver.rollouts = replace(solver.policy, on=()), replace(solver.rollouts, count=1)
    fixed = measure(solver, inputs, labels, identifiers, "fixed")
    if json_object:
        report = {"model": model, "data": str(data), **asdict(adaptive), "fixed": asdict(fixed)}
        typer.echo(json.dumps(report))
    else:
        print_comparison(adaptive, fixed, f"{model} on {data}, executor {solver.executor.name}")


def read_labelled(path: Path, task: Task, limit: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs and labels [N, seq_len], -100 where a label does not count, and puzzle identifiers [N].

    `path` is a file of puzzles with solutions, or a data set folder in the official layout (its split `test`), or
    one of its splits.

    Errors: `InputError` for data that cannot be read, and for a puzzle without a solution.
    """
    import numpy as np

    from rtm_kernels.cli.source import read_all
    from rtm_kernels.errors import InputError, require

    require(limit is None or limit >= 1, "--limit", limit, "at least 1")
    if path.is_dir():
        return read_folder(path, limit)
    puzzles = read_all([str(path)], task, limit)
    for puzzle in puzzles:
        if puzzle.error is not None or puzzle.solution is None:
            raise InputError(puzzle.error or f"{path}: line {puzzle.line}: no solution to compare with")
    inputs = np.stack([task.encode(puzzle.text) for puzzle in puzzles])
    labels = np.stack([task.encode(str(puzzle.solution)) for puzzle in puzzles])
    return inputs, labels.astype(np.int32), np.zeros(len(puzzles), dtype=np.int32)


def read_folder(path: Path, limit: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`read_labelled` for a data set in the official layout; its sets one after the other."""
    import numpy as np

    from rtm_kernels.data.dataset import IGNORE_LABEL, PuzzleDataset

    split = (path, "test") if not (path / "dataset.json").exists() else (path.parent, path.name)
    dataset = PuzzleDataset.open(*split)
    parts = []
    for name, examples in dataset.sets.items():
        rows = np.arange(len(examples.inputs))[:limit]
        examples.check_tokens(dataset.metadata, f"{dataset.name}/{name}", rows)
        owners = np.repeat(examples.puzzle_identifiers, np.diff(examples.puzzle_indices))
        parts.append((examples.inputs[rows], examples.labels[rows].astype(np.int32), owners[rows]))
    inputs, labels, identifiers = (np.concatenate(arrays)[:limit] for arrays in zip(*parts, strict=True))
    if dataset.metadata.ignore_label_id is not None:
        labels[labels == dataset.metadata.ignore_label_id] = IGNORE_LABEL
    return inputs, labels, identifiers


def measure(solver: Solver, inputs: np.ndarray, labels: np.ndarray, identifiers: np.ndarray, name: str) -> Evaluation:
    """`evaluate` of the engine behind a progress bar on standard error, which only a terminal shows."""
    from rich.console import Console
    from rich.progress import Progress

    from rtm_kernels.engine import evaluate as run

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=len(inputs))
        return run(solver, inputs, labels, identifiers, lambda done: progress.advance(task))


def print_comparison(adaptive: Evaluation, fixed: Evaluation, title: str) -> None:
    """Both protocols side by side, and how much less the halting one computed."""
    from rich.console import Console
    from rich.table import Table

    from rtm_kernels.cli.report import bars, solid

    console = Console(highlight=False)
    console.print(title, markup=False)
    table = Table("", f"halting ({adaptive.policy})", "fixed steps (official)")
    for name, show in (
        ("puzzles", lambda e: str(e.n)),
        ("exact accuracy", lambda e: f"{100 * e.exact_accuracy:.2f} %"),
        ("token accuracy", lambda e: f"{100 * e.token_accuracy:.2f} %"),
        ("verified", lambda e: f"{100 * e.verified:.2f} %"),
        ("steps, mean", lambda e: f"{e.mean_steps:.2f}"),
        ("puzzles/s", lambda e: f"{e.puzzles_per_second:.1f}"),
        ("seconds", lambda e: f"{e.seconds:.1f}"),
    ):
        table.add_row(name, show(adaptive), show(fixed))
    console.print(table)
    steps, speed = fixed.mean_steps / adaptive.mean_steps, adaptive.puzzles_per_second / fixed.puzzles_per_second
    console.print(f"halting: {steps:.2f} times fewer steps, {speed:.2f} times the puzzles/s", markup=False)
    for line in ["steps and how many puzzles took them", *bars(adaptive.depth_histogram, solid(console))]:
        console.print(line, markup=False)
