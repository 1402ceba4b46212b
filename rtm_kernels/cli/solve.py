"""`rtm solve`: puzzles in, checked answers out."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rtm_kernels.cli.group import ALL_VERIFIED, BAD_INPUT, NOT_ALL_VERIFIED, complain
from rtm_kernels.cli.options import Json, Limit, Puzzles, SolverOptions, load_solver, output, with_solver_options

if TYPE_CHECKING:
    from rtm_kernels.data.task import Puzzle
    from rtm_kernels.engine import Solution, Solver

MAX_COMPLAINTS = 10


@with_solver_options(rollouts=8)
def solve(
    options: SolverOptions,
    puzzles: Puzzles = None,
    limit: Limit = None,
    example: Annotated[
        str | None, typer.Option(help="Solve the bundled examples of sudoku or maze.", metavar="TASK")
    ] = None,
    show: Annotated[int, typer.Option(help="How many grids to print.", metavar="N")] = 3,
    stats: Annotated[
        Path | None, output(help="Also write counts, steps, puzzles/s and joules per puzzle here, as JSON.")
    ] = None,
    json_lines: Json = False,
) -> None:
    """Solve puzzles and check every answer by the rules of the task.

    A puzzle is 81 characters with . 0 or * for blanks, or a grid of nine lines.
    A maze is a square of # for walls, . or space, S and G, of side 5 to 64.
    A file holds one puzzle per line, grids, or csv with the header
    puzzle[,solution].

    A puzzle whose answer is not confirmed is tried again in up to --rollouts
    runs. --rollouts 1 tries once. --max-steps bounds the steps of all its runs
    together.

    --json prints one object per puzzle: task, input, answer, status (verified,
    unverified, non_finite or invalid), steps, halt_probability, confidence, ...

    Exit code: 0 all answers verified, 1 some are not, 2 bad input.

    Examples:

      rtm solve
      rtm solve --example maze
      rtm solve maze.txt
      rtm solve puzzles.csv --limit 1000 --max-steps 32 --json
      rtm solve 53..7....6..195....98....6.(and so on, 81 in all)
      rtm solve hard.csv --rollouts 32 --stats stats.json
      rtm solve hard.csv --rollouts 1 --max-steps 256 --halt verified+settle=8
      rtm solve puzzles.csv --precision int8
      cat grids.txt | rtm solve - --show 1
    """
    from rtm_kernels.cli.source import model_for, read_all
    from rtm_kernels.data.examples import example_names
    from rtm_kernels.energy import energy_counter
    from rtm_kernels.errors import one_of, require

    if example is not None:
        one_of("--example", example, example_names())
        require(not puzzles, "--example", example, "no puzzles beside it")
    if options.model == "auto":
        options = replace(options, model=model_for(puzzles or [], example))
    solver = load_solver(options)
    read = read_all(puzzles or [], solver.reader, limit)
    energy, start = energy_counter(solver.model.device.type), time.perf_counter()
    solutions = []
    for solution in in_order(solver, read, quiet=json_lines):
        solutions.append(solution)
        if json_lines:
            typer.echo(json.dumps(solution.to_dict()))
    seconds = time.perf_counter() - start
    figures = summary(solver, options.model, solutions, seconds, energy.joules() if energy else None)
    if not json_lines:
        print_report(solver, solutions, figures, show)
    if stats is not None:
        stats.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    complain_about(solutions)
    statuses = {solution.status for solution in solutions}
    verified = ALL_VERIFIED if statuses <= {"verified"} else NOT_ALL_VERIFIED
    raise typer.Exit(BAD_INPUT if "invalid" in statuses else verified)


def in_order(solver: Solver, puzzles: list[Puzzle], quiet: bool) -> Iterator[Solution]:
    """Solutions in the order of the puzzles, each as soon as those before it are there.

    A terminal shows progress unless `quiet`.
    """
    from rtm_kernels.cli.report import Progress

    waiting: dict[int, Solution] = {}
    following = verified = 0
    with Progress("solving", len(puzzles), quiet=quiet) as progress:
        for index, solution in solver.stream(puzzles):
            waiting[index] = solution
            verified += solution.status == "verified"
            progress.show(progress.done + 1, f"{verified} verified")
            while following in waiting:
                yield waiting.pop(following)
                following += 1


def summary(
    solver: Solver, model: str, solutions: list[Solution], seconds: float, joules: float | None
) -> dict[str, Any]:
    """Counts, depth, speed and energy as JSON types; `joules_per_puzzle` is None where there is no counter."""
    steps = [s.steps for s in solutions if s.status != "invalid"]
    count = len(steps)
    return {
        "model": model,
        "task": solver.task.name,
        "policy": str(solver.policy),
        "max_steps": solver.policy.max_steps,
        "rollouts": solver.rollouts.count,
        "executor": solver.executor.name,
        "device": str(solver.model.device),
        "puzzles": count,
        "statuses": dict(sorted(Counter(s.status for s in solutions).items())),
        "by_further_rollouts": sum(s.status == "verified" and s.rollout > 0 for s in solutions),
        "mean_steps": sum(steps) / count if count else None,
        "mean_total_steps": sum(s.total_steps for s in solutions) / count if count else None,
        "depth_histogram": dict(sorted(Counter(steps).items())),
        "seconds": seconds,
        "puzzles_per_second": count / seconds,
        "joules_per_puzzle": None if joules is None or not count else joules / count,
    }


def complain_about(solutions: list[Solution]) -> None:
    """One line for each puzzle that could not be read, and one for the rest of many."""
    errors = [solution.error for solution in solutions if solution.error is not None]
    for error in errors[:MAX_COMPLAINTS]:
        complain(error)
    if len(errors) > MAX_COMPLAINTS:
        complain(f"{len(errors) - MAX_COMPLAINTS} more puzzles could not be read")


def print_report(solver: Solver, solutions: list[Solution], figures: dict[str, Any], show: int) -> None:
    """The first grids, then counts, depth and speed, on standard output."""
    from rich.console import Console

    from rtm_kernels.cli.report import bars, print_grid, print_table, solid
    from rtm_kernels.data.task import get_task

    console, count = Console(highlight=False), len(solutions)
    readable = [(i, s) for i, s in enumerate(solutions, start=1) if s.status != "invalid"]
    for i, solution in readable[: max(0, show)]:
        print_grid(console, get_task(solution.task), solution, f"puzzle {i} of {count}")
    if not readable:
        return
    statuses: dict[str, int] = figures["statuses"]
    verified, joules = statuses.get("verified", 0), figures["joules_per_puzzle"]
    further = f", {n} of them by further runs" if (n := figures["by_further_rollouts"]) else ""
    histogram = bars(figures["depth_histogram"], solid(console))
    rows = {
        "puzzles": str(count),
        "verified": f"{verified} ({100 * verified / count:.1f} %){further}",
        **{status.replace("_", " "): str(n) for status, n in statuses.items() if status != "verified"},
        "steps, mean": f"{figures['mean_steps']:.2f}, with all runs {figures['mean_total_steps']:.2f}",
        "depth": "\n".join(["steps and how many puzzles took them", *histogram]),
        "time": f"{figures['seconds']:.2f} s, {figures['puzzles_per_second']:.1f} puzzles/s",
        "energy": "not counted on this machine" if joules is None else f"{joules:.3g} J/puzzle",
        "model": f"{figures['model']}, {sum(p.numel() for p in solver.model.parameters()):,} parameters",
        "halting": f"{solver.policy}, at most {solver.policy.max_steps} steps and {solver.rollouts.count} runs",
        "executor": f"{figures['executor']} on {figures['device']}",
    }
    print_table(console, rows)
