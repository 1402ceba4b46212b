"""`rtm solve`: puzzles in, checked answers out."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from rtm_kernels.cli.group import ALL_VERIFIED, BAD_INPUT, NOT_ALL_VERIFIED, complain
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
    from rich.console import Console

    from rtm_kernels.data.task import Puzzle
    from rtm_kernels.engine import Solution, Solver

MAX_COMPLAINTS = 10


def solve(
    puzzles: Annotated[
        list[str] | None,
        typer.Argument(
            help="Puzzles, files, or - for standard input. Without any: the bundled examples.",
            metavar="PUZZLES",
            show_default=False,
        ),
    ] = None,
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
    show: Annotated[int, typer.Option(help="Grids to print, of the first puzzles.", metavar="N")] = 3,
    json_lines: Json = False,
) -> None:
    """Solve puzzles and check every answer by the rules of the task.

    A puzzle is 81 characters with . 0 or * for blanks, or a grid of nine lines.
    A file holds one puzzle per line, grids, or csv with a header:
    puzzle[,solution].

    Exit code: 0 all answers verified, 1 some are not, 2 bad input.

    Examples:

      rtm solve
      rtm solve puzzles.csv --limit 1000 --max-steps 32 --json
      rtm solve 53..7....6..195....98....6.(and so on, 81 in all)
      rtm solve hard.csv --max-steps 256 --rollouts 16
      cat grids.txt | rtm solve - --show 1
    """
    from rtm_kernels.cli.load import load_solver
    from rtm_kernels.cli.source import read_all

    solver = load_solver(
        model, max_steps=max_steps, batch_size=batch_size, device=device, executor=executor, halt=halt,
        rollouts=rollouts, noise=noise, seed=seed,
    )  # fmt: skip
    read = read_all(puzzles or [], solver.task, limit)
    start = time.perf_counter()
    if json_lines:
        solutions = []
        for solution in in_order(solver, read):
            typer.echo(json.dumps(solution.to_dict()))
            solutions.append(solution)
    else:
        solutions = list(with_progress(solver, read))
        print_report(solver, model, solutions, time.perf_counter() - start, show)
    complain_about(solutions)
    raise typer.Exit(exit_code(solutions))


def in_order(solver: Solver, puzzles: list[Puzzle]) -> Iterator[Solution]:
    """Solutions in the order of the puzzles, each as soon as those before it are there."""
    waiting: dict[int, Solution] = {}
    following = 0
    for index, solution in solver.stream(puzzles):
        waiting[index] = solution
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def with_progress(solver: Solver, puzzles: list[Puzzle]) -> Iterator[Solution]:
    """`in_order` behind a progress bar on standard error, which only a terminal shows."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    solutions: dict[int, Solution] = {}
    stream = solver.stream(puzzles)
    for index, solution in track(
        stream, "solving", total=len(puzzles), console=console, transient=True, disable=not console.is_terminal
    ):
        solutions[index] = solution
    return (solutions[index] for index in range(len(puzzles)))


def exit_code(solutions: list[Solution]) -> int:
    """0 when all are verified, 2 when one could not be read, else 1."""
    statuses = {solution.status for solution in solutions}
    if "invalid" in statuses:
        return BAD_INPUT
    return ALL_VERIFIED if statuses <= {"verified"} else NOT_ALL_VERIFIED


def complain_about(solutions: list[Solution]) -> None:
    """One line for each puzzle that could not be read, and one for the rest of many."""
    errors = [solution.error for solution in solutions if solution.error is not None]
    for error in errors[:MAX_COMPLAINTS]:
        complain(error)
    if len(errors) > MAX_COMPLAINTS:
        complain(f"{len(errors) - MAX_COMPLAINTS} more puzzles could not be read")


def print_report(solver: Solver, model: str, solutions: list[Solution], seconds: float, show: int) -> None:
    """The first grids, then the summary, on standard output."""
    from rich.console import Console

    from rtm_kernels.cli.report import print_grid

    console = Console(highlight=False)
    readable = [(i, s) for i, s in enumerate(solutions, start=1) if s.status != "invalid"]
    for i, solution in readable[: max(0, show)]:
        print_grid(console, solver.task, solution, f"puzzle {i} of {len(solutions)}")
    if readable:
        print_summary(console, solver, model, solutions, seconds)


def print_summary(console: Console, solver: Solver, model: str, solutions: list[Solution], seconds: float) -> None:
    """Counts, depth and speed."""
    from rtm_kernels.cli.report import bars, depth_histogram, print_table, solid

    counts = Counter(s.status for s in solutions)
    steps = [s.steps for s in solutions if s.status != "invalid"]
    others = {status: str(n) for status, n in sorted(counts.items()) if status != "verified"}
    rows = {
        "puzzles": str(len(solutions)),
        "verified": f"{counts['verified']} ({100 * counts['verified'] / len(solutions):.1f} %)",
        **{status.replace("_", " "): n for status, n in others.items()},
        "steps, mean": f"{sum(steps) / len(steps):.2f}",
        "depth": "\n".join(["steps and how many puzzles took them", *bars(depth_histogram(steps), solid(console))]),
        "time": f"{seconds:.2f} s, {len(steps) / seconds:.1f} puzzles/s",
        "model": f"{model}, {sum(p.numel() for p in solver.model.parameters()):,} parameters",
        "halting": f"{solver.policy}, at most {solver.policy.max_steps} steps",
        "executor": f"{solver.executor.name} on {solver.model.device}",
    }
    print_table(console, rows)
