"""`rtm compare`: what halting per puzzle saves against the official fixed protocol, measured in turns."""

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
    Kind,
    Limit,
    MaxSteps,
    MinSteps,
    Model,
    Noise,
    Rollouts,
    Seed,
)

if TYPE_CHECKING:
    from rtm_kernels.engine.comparison import Comparison


def compare(
    data: Annotated[
        list[Path],
        typer.Argument(help="csv files with puzzle and solution, or a folder in the official layout.", metavar="DATA"),
    ],
    model: Model = "sudoku",
    max_steps: MaxSteps = None,
    min_steps: MinSteps = 1,
    batch_size: BatchSize = 64,
    device: Device = None,
    executor: Executor = "auto",
    halt: Halt = "verified",
    rollouts: Rollouts = 1,
    rollout_kind: Kind = "auto",
    noise: Noise = 0.3,
    seed: Seed = 0,
    limit: Limit = None,
    rounds: Annotated[int, typer.Option(help="Turns that the two protocols take.", metavar="N")] = 5,
    json_object: Json = False,
) -> None:
    """Halting per puzzle against the official fixed number of steps: same weights, same puzzles, in turns.

    Prints exact accuracy, the ratio of steps and the ratio of puzzles/s: its
    median over the rounds, with the smallest and the largest. The steps of the
    adaptive side count all rollouts. `rtm eval` has the details of accuracy.

    Exit code: 0 halting is at least as accurate, 1 it is not, 2 bad input.

    Examples:

      rtm compare puzzles.csv
      rtm compare puzzles.csv --halt q --limit 1000 --rounds 10 --json
    """
    from rtm_kernels.cli.labelled import read_labelled
    from rtm_kernels.cli.load import load_solver
    from rtm_kernels.engine.comparison import compare as run

    solver = load_solver(
        model, max_steps=max_steps, min_steps=min_steps, batch_size=batch_size, device=device, executor=executor,
        halt=halt, rollouts=rollouts, noise=noise, seed=seed, kind=rollout_kind,
    )  # fmt: skip
    found = read_labelled(data, solver.task, limit)
    total = len(found.inputs)
    measured = run(
        solver, found.inputs, found.labels, rounds=min(rounds, total), identifiers=found.identifiers,
        on_round=None if json_object else lambda done: typer.echo(f"{done}/{total} puzzles, both ways", err=True),
    )  # fmt: skip
    if json_object:
        typer.echo(json.dumps({"model": model, "data": ", ".join(map(str, data)), **asdict(measured)}))
    else:
        print_comparison(measured, f"{model} on {', '.join(map(str, data))}, executor {solver.executor.name}")
    raise typer.Exit(int(measured.adaptive.exact_accuracy < measured.fixed.exact_accuracy))


def print_comparison(measured: Comparison, title: str) -> None:
    """Both protocols side by side, then the ratios."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(title, markup=False)
    table = Table("", f"halting ({measured.adaptive.policy})", "fixed steps (official)")
    for name, field, form in (
        ("exact accuracy", "exact_accuracy", "{:.2%}"),
        ("steps, mean", "mean_steps", "{:.2f}"),
        ("puzzles/s", "puzzles_per_second", "{:.1f}"),
        ("seconds", "seconds", "{:.1f}"),
    ):
        table.add_row(name, *(form.format(getattr(side, field)) for side in (measured.adaptive, measured.fixed)))
    console.print(table)
    low, high = min(measured.speed_ratios), max(measured.speed_ratios)
    console.print(
        f"{measured.n} puzzles: {measured.steps_ratio:.2f} times fewer steps, {measured.speed_ratio:.2f} times the "
        f"puzzles/s ({low:.2f} to {high:.2f} over {len(measured.speed_ratios)} rounds)",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    console.print(
        f"right in one way alone: halting {measured.only_adaptive}, fixed {measured.only_fixed}", markup=False
    )
