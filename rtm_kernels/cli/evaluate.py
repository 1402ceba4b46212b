"""`rtm eval`: accuracy, depth and speed on puzzles whose solutions are known."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rtm_kernels.cli.group import INTERRUPTED
from rtm_kernels.cli.options import Json, Limit, SolverOptions, load_solver, output, with_solver_options

if TYPE_CHECKING:
    from rtm_kernels.cli.labelled import Labelled
    from rtm_kernels.data.arc import Votes
    from rtm_kernels.engine import Measurement, Solver
    from rtm_kernels.engine.samples import Finished


@with_solver_options()
def evaluate(
    options: SolverOptions,
    data: Annotated[
        list[Path] | None,
        typer.Argument(help="csv files with puzzle and solution, or a folder in the official layout.", metavar="DATA"),
    ] = None,
    generate: Annotated[
        list[str] | None,
        typer.Option(
            help="Generate puzzles instead of DATA, by a field of a training source, e.g. count=1000. Repeatable.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    limit: Limit = None,
    fixed: Annotated[bool, typer.Option("--fixed/--no-fixed", help="Measure the official protocol as well.")] = True,
    rounds: Annotated[
        int | None,
        typer.Option(
            help="Compare speed: both protocols take turns over N parts of the puzzles, and steps are not recorded.",
            metavar="N",
        ),
    ] = None,
    submission: Annotated[Path | None, output(help="Write the two best answers to each ARC test input here.")] = None,
    json_object: Json = False,
) -> None:
    """Measure accuracy, steps and speed, and compare with the official protocol.

    The official protocol spends the same number of steps on every puzzle. Both
    run on the same weights and puzzles.

    --json prints the figures of this policy at the top, those of the official
    protocol under "fixed", and their ratios under "comparison": the speed ratio
    is the median over the rounds. accuracy_by_step and steps_by_step are
    accuracy against compute, "sources" are the figures per file, part of a data
    set or source column. ARC data sets also get "pass_at", by voting over the
    augmented versions of each test input.

    If MODEL is the folder of a training run, the final model is measured, and
    the best one under "best".

    Progress goes to standard error. Ctrl-C stops and prints the figures of the
    puzzles that have finished.

    Exit code: 0 measured, 2 bad input, 130 interrupted.

    Examples:

      rtm eval puzzles.csv
      rtm eval puzzles.csv --rounds 7 --json
      rtm eval easy.csv hard.csv --max-steps 64 --rollouts 8 --no-fixed
      rtm eval data/sudoku-extreme-1k --model runs/best --limit 1000 --json
      rtm eval runs/sudoku-4x4/unseen.csv --model runs/sudoku-4x4
      rtm eval --generate count=1000 --generate clues=[30,36] --generate seed=1001
      rtm eval data/arc1 --model runs/arc/model --submission submission.json
    """
    from rtm_kernels.cli.labelled import generated, read_labelled, solver_of_data
    from rtm_kernels.cli.source import model_for
    from rtm_kernels.errors import require

    require(bool(data) != bool(generate), "DATA", data or None, "either files to read or puzzles to --generate")
    if options.model == "auto":
        options = replace(
            options, model=model_for(list(map(str, data or [])), "maze" if "task=maze" in (generate or []) else None)
        )
    solvers = {
        name: solver_of_data(load_solver(options, model=source), data or [], generate or [])
        for name, source in sources_of(options.model).items()
    }
    first = next(iter(solvers.values()))
    puzzles = generated(generate, first.task) if generate else read_labelled(data or [], first.task, limit)
    report: dict[str, Any] = {"model": options.model, "data": ", ".join(map(str, data or generate or []))}
    whole, done = True, 0
    for name, solver in solvers.items():
        votes = start_votes(solver, puzzles)
        require(submission is None or votes is not None, "--submission", str(submission), "only for an ARC data set")
        protocols = [solver, fixed_solver(solver)] if fixed else [solver]
        try:
            measurements, whole = measure(protocols, puzzles, votes, rounds)
        except KeyboardInterrupt:  # before a puzzle has finished
            if solver is first:
                raise
            whole, done = False, 0
            break
        done = int(measurements[-1].done.sum())
        found = figures(measurements, votes)
        report |= found if solver is first else {name: found}
        if submission is not None and votes is not None and solver is first:
            submission.write_text(json.dumps(votes.submission()), encoding="utf-8")
        if not json_object:
            title = f"{options.model}{f' ({name})' if name != 'model' else ''} on {report['data']}"
            print_report(f"{title}, executor {solver.executor.name}", found)
        if not whole:
            break
    if json_object:
        typer.echo(json.dumps(report))
    if not whole:
        of = f" for {name}" if len(solvers) > 1 else ""
        typer.echo(f"interrupted: these are the figures of {done} of {len(puzzles.inputs)} puzzles{of}", err=True)
        raise typer.Exit(INTERRUPTED)


def sources_of(model: str) -> dict[str, str]:
    """What `model` names: a saved model, or those in the folder of a run, `final` (if it has ended), then `best`."""
    run = {name: Path(model) / folder for name, folder in (("final", "model"), ("best", "best"))}
    found = {name: str(path) for name, path in run.items() if (path / "config.json").is_file()}
    return found if found and not (Path(model) / "config.json").exists() else {"model": model}


def fixed_solver(solver: Solver) -> Solver:
    """The same solver under the official protocol: all steps for every puzzle, one run."""
    fixed = copy.copy(solver)
    fixed.policy, fixed.rollouts = replace(solver.policy, on=()), replace(solver.rollouts, count=1)
    return fixed


def start_votes(solver: Solver, puzzles: Labelled) -> Votes | None:
    """The count of votes for an ARC data set, which knows the solutions; None for another one."""
    from rtm_kernels.data.arc import Votes

    if solver.task.name != "arc" or puzzles.names is None:
        return None
    votes = Votes(puzzles.names)
    for identifier, tokens, labels in zip(puzzles.identifiers.tolist(), puzzles.inputs, puzzles.labels, strict=True):
        votes.expect(identifier, tokens, labels)
    return votes


def measure(
    solvers: list[Solver], puzzles: Labelled, votes: Votes | None, rounds: int | None
) -> tuple[list[Measurement], bool]:
    """The measurements of solvers that finished a puzzle, and whether all ended; `votes` gets the first's answers."""
    from rtm_kernels.cli.report import Progress
    from rtm_kernels.engine import Measurement, take_turns

    progress = Progress("eval", len(solvers) * len(puzzles.inputs), lines=10 * len(solvers))
    measurements = [
        Measurement(solver, puzzles.inputs, puzzles.labels, puzzles.identifiers, puzzles.sources,
                    by_step=rounds is None) for solver in solvers
    ]  # fmt: skip

    def watch(measurement: Measurement, done: Finished) -> None:
        share = measurement.exact.sum() / measurement.done.sum()
        progress.show(progress.done + 1, f"{measurement.solver.policy}, exact so far {100 * share:.1f} %")
        if votes is not None and measurement is measurements[0]:
            identifier, tokens = int(puzzles.identifiers[done.key]), puzzles.inputs[done.key]
            votes.add(identifier, tokens, done.answer, done.halt_probability or 0.0)

    for measurement in measurements:
        measurement.on_finished = partial(watch, measurement)
    with progress:
        whole = take_turns(measurements, 1 if rounds is None else rounds)
    return [measurement for measurement in measurements if measurement.done.any()], whole


def figures(measurements: list[Measurement], votes: Votes | None) -> dict[str, Any]:
    """What --json prints of one model."""
    adaptive, *others = (measurement.evaluation() for measurement in measurements)
    found = asdict(adaptive)
    found |= {} if votes is None else {"pass_at": votes.pass_at(tried=not adaptive.complete)}
    for fixed in others:
        found["fixed"] = asdict(fixed)
        if fixed.complete:
            ratios = [b / a for a, b in zip(*(m.seconds for m in measurements), strict=True)]
            found["comparison"] = {
                "steps_ratio": fixed.mean_steps / adaptive.mean_total_steps,
                "speed_ratio": median(ratios),
                "speed_ratios": ratios,
            }
    return found


def rows_of(e: dict[str, Any]) -> dict[str, str]:
    return {
        "puzzles": str(e["n"]),
        "exact accuracy": percent(e["exact_accuracy"]),
        "token accuracy": percent(e["token_accuracy"]),
        "verified": percent(e["verified"]),
        "halting head right": percent(e["halting_accuracy"]),
        "steps, mean": f"{e['mean_steps']:.2f}",
        "with all runs; most": f"{e['mean_total_steps']:.2f}, {e['max_total_steps']}",
        "puzzles/s": f"{e['puzzles_per_second']:.1f}",
        "seconds": f"{e['seconds']:.1f}",
        **{f"pass@{k}, voted": percent(share) for k, share in e.get("pass_at", {}).items()},
    }


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def print_report(title: str, found: dict[str, Any]) -> None:
    """Both protocols side by side, the sources, accuracy against compute, and how deep the puzzles went."""
    from rich.console import Console
    from rich.table import Table

    from rtm_kernels.cli.report import bars, solid

    console = Console(highlight=False)
    console.print(title, markup=False)
    both = {f"halting ({found['policy']})": found}
    both |= {"fixed steps (official)": found["fixed"]} if "fixed" in found else {}
    table, columns = Table("", *both), [rows_of(side) for side in both.values()]
    for name in columns[0]:
        table.add_row(name, *(column.get(name, "-") for column in columns))
    console.print(table)
    if len(found["sources"]) > 1:
        rows = Table("source", "puzzles", "exact", "verified", "steps", "fixed: exact")
        for name, row in found["sources"].items():
            other = found.get("fixed", {}).get("sources", {}).get(name, {}).get("exact_accuracy")
            rows.add_row(name, f"{row['n']}", percent(row["exact_accuracy"]), percent(row["verified"]),
                         f"{row['mean_steps']:.2f}", percent(other))  # fmt: skip
        console.print(rows)
    if "comparison" in found:
        ratio, every = found["comparison"], found["comparison"]["speed_ratios"]
        spread = f" ({min(every):.2f} to {max(every):.2f} over {len(every)} rounds)" if len(every) > 1 else ""
        console.print(f"halting: {ratio['steps_ratio']:.2f} times fewer steps, {ratio['speed_ratio']:.2f} times the "
                      f"puzzles/s{spread}", markup=False, soft_wrap=True)  # fmt: skip
    for name, side in zip(("halting", "fixed"), both.values(), strict=False):
        exact, steps = side["accuracy_by_step"], side["steps_by_step"]
        marks = sorted({2**i for i in range(15) if 2**i <= len(exact)} | {len(exact)} - {0})
        if marks:
            points = ", ".join(f"{100 * exact[d - 1]:.1f} % in {steps[d - 1]:.1f}" for d in marks)
            console.print(f"{name}, exact accuracy in mean steps, as the cap grows: {points}", markup=False)
    lines = ["steps and how many puzzles took them", *bars(found["depth_histogram"], solid(console))]
    console.print("\n".join(lines), markup=False)
