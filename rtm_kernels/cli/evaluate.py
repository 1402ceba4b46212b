"""`rtm eval`: accuracy, depth and speed on puzzles whose solutions are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Model,
    Noise,
    Precision,
    Rollouts,
    Seed,
)

if TYPE_CHECKING:
    from rtm_kernels.cli.labelled import Labelled
    from rtm_kernels.data.arc_vote import Votes
    from rtm_kernels.engine import Evaluation, Solver
    from rtm_kernels.engine.samples import Finished

INTERRUPTED = 130


def evaluate(
    data: Annotated[
        list[Path] | None,
        typer.Argument(help="csv files with puzzle and solution, or a folder in the official layout.", metavar="DATA"),
    ] = None,
    generate: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of DATA, puzzles made like those of a recipe's source, e.g. count=1000; again for more.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    model: Model = "sudoku",
    max_steps: MaxSteps = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    executor: Executor = "auto",
    precision: Precision = "float32",
    halt: Halt = "verified",
    rollouts: Rollouts = 1,
    rollout_kind: Kind = "auto",
    noise: Noise = 0.3,
    seed: Seed = 0,
    limit: Limit = None,
    submission: Annotated[
        Path | None, typer.Option(help="Write the two best answers to each ARC test input here.", metavar="FILE")
    ] = None,
    fixed_too: Annotated[
        bool, typer.Option("--fixed/--no-fixed", help="Whether the official fixed protocol is measured as well.")
    ] = True,
    json_object: Json = False,
) -> None:
    """Compare halting per puzzle with the official fixed number of steps, on the same weights and puzzles.

    With --json the figures of the halting policy stand at the top, those of the
    fixed protocol under "fixed"; accuracy_by_step and steps_by_step are accuracy
    against compute, "sources" the rows per file, data set part or source column.
    ARC data sets also get "pass_at": twins are turned back and voted on. A MODEL
    that is the folder of a run is measured at its end and, under "best", at the
    best evaluation of the run; one that has not ended, at its best so far.

    Progress, with the accuracy so far, goes to standard error. Ctrl-C ends the
    command with the figures of the puzzles that have finished; an ARC test input
    counts as soon as one of its twins has.

    Exit code: 0 measured, 2 bad input, 130 interrupted.

    Examples:

      rtm eval puzzles.csv
      rtm eval easy.csv hard.csv --max-steps 64 --rollouts 8 --no-fixed
      rtm eval data/sudoku-extreme-1k --model runs/best --limit 1000 --json
      rtm eval runs/sudoku-4x4/unseen.csv --model runs/sudoku-4x4
      rtm eval --generate count=1000 --generate clues=[30,36] --generate seed=1001
      rtm eval data/arc1 --model runs/arc/model --submission submission.json
    """
    from rtm_kernels.cli.labelled import generated, read_labelled
    from rtm_kernels.cli.load import load_solver
    from rtm_kernels.errors import require

    require(bool(data) != bool(generate), "DATA", data or None, "either files to read or puzzles to --generate")
    writable = submission is None or (submission.parent.is_dir() and not submission.is_dir())
    require(writable, "--submission", str(submission), "a file in a folder that exists")
    solvers = {
        name: load_solver(
            source, max_steps=max_steps, batch_size=batch_size, device=device, executor=executor, precision=precision,
            halt=halt, rollouts=rollouts, noise=noise, seed=seed, kind=rollout_kind,
        )
        for name, source in sources_of(model).items()
    }  # fmt: skip
    first = next(iter(solvers.values()))
    puzzles = generated(generate, first.task) if generate else read_labelled(data or [], first.task, limit)
    report: dict[str, Any] = {"model": model, "data": ", ".join(map(str, data or generate or []))}
    whole, done = True, 0
    for name, solver in solvers.items():
        votes = start_votes(solver, puzzles)
        require(submission is None or votes is not None, "--submission", str(submission), "only for an ARC data set")
        try:
            adaptive, fixed = both_protocols(solver, puzzles, votes, fixed_too)
        except KeyboardInterrupt:  # before a puzzle has finished
            if solver is first:
                raise
            whole, done = False, 0
            break
        found = figures(adaptive, fixed, votes)
        report |= found if solver is first else {name: found}
        if submission is not None and votes is not None and solver is first:
            submission.write_text(json.dumps(votes.submission()), encoding="utf-8")
        if not json_object:
            title = f"{model}{f' ({name})' if name != 'model' else ''} on {report['data']}"
            print_report(title, adaptive, fixed, found, f"executor {solver.executor.name}")
        last = fixed or adaptive
        whole, done = last.complete and (fixed is not None or not fixed_too), last.n
        if not whole:
            break
    if json_object:
        typer.echo(json.dumps(report))
    if not whole:
        of = f" for {name}" if len(solvers) > 1 else ""
        typer.echo(f"interrupted: these are the figures of {done} of {len(puzzles.inputs)} puzzles{of}", err=True)
        raise typer.Exit(INTERRUPTED)


def sources_of(model: str) -> dict[str, str]:
    """What `model` names: a saved model, or those that the folder of a run holds, `final` first and then `best`.

    A run that has not ended has no final one yet.
    """
    run = {name: Path(model) / folder for name, folder in (("final", "model"), ("best", "best"))}
    found = {name: str(path) for name, path in run.items() if (path / "config.json").is_file()}
    return found if found and not (Path(model) / "config.json").exists() else {"model": model}


def both_protocols(
    solver: Solver, puzzles: Labelled, votes: Votes | None, fixed_too: bool
) -> tuple[Evaluation, Evaluation | None]:
    """The figures under the solver's own policy, and, if `fixed_too`, under fixed steps unless it was interrupted."""
    from dataclasses import replace

    adaptive = measure(solver, puzzles, str(solver.policy), votes)
    if not (adaptive.complete and fixed_too):
        return adaptive, None
    solver.policy, solver.rollouts = replace(solver.policy, on=()), replace(solver.rollouts, count=1)
    try:
        return adaptive, measure(solver, puzzles, "fixed", None)
    except KeyboardInterrupt:  # before a puzzle of the second pass has finished
        return adaptive, None


def figures(adaptive: Evaluation, fixed: Evaluation | None, votes: Votes | None) -> dict[str, Any]:
    """What --json prints of one model."""
    found = asdict(adaptive)
    found |= {} if votes is None else {"pass_at": votes.pass_at(tried=not adaptive.complete)}
    return found | ({} if fixed is None else {"fixed": asdict(fixed)})


def start_votes(solver: Solver, puzzles: Labelled) -> Votes | None:
    """The count of votes for an ARC data set, which knows the solutions; None for another one."""
    from rtm_kernels.data.arc_vote import Votes

    if solver.task.name != "arc" or puzzles.names is None:
        return None
    votes = Votes(puzzles.names)
    for identifier, tokens, labels in zip(puzzles.identifiers.tolist(), puzzles.inputs, puzzles.labels, strict=True):
        votes.expect(identifier, tokens, labels)
    return votes


def measure(solver: Solver, puzzles: Labelled, name: str, votes: Votes | None) -> Evaluation:
    """`evaluate` of the engine, with its progress on standard error and every answer given to `votes`."""
    from rtm_kernels.engine import evaluate as run

    progress = Progress(name, puzzles)

    def finished(done: Finished) -> None:
        progress.add(done)
        if votes is not None:
            identifier, tokens = int(puzzles.identifiers[done.key]), puzzles.inputs[done.key]
            votes.add(identifier, tokens, done.answer, done.halt_probability or 0.0)

    with progress:
        return run(solver, puzzles.inputs, puzzles.labels, puzzles.identifiers, finished, puzzles.sources)


class Progress:
    """How far an evaluation is and how accurate so far: a bar on a terminal, a line every tenth elsewhere."""

    def __init__(self, name: str, puzzles: Labelled) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True, highlight=False)
        columns = ("{task.description}", "{task.completed}/{task.total}", "exact so far {task.fields[exact]}")
        self.bar = Bar(*map(TextColumn, columns), BarColumn(), TimeRemainingColumn(), console=console, transient=True,
                       disable=not console.is_terminal)  # fmt: skip
        self.name, self.puzzles, self.console = name, puzzles, console
        self.done = self.exact = 0
        self.task = self.bar.add_task(name, total=len(puzzles.inputs), exact="-")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def add(self, done: Finished) -> None:
        """Count a puzzle that left."""
        from rtm_kernels.data.dataset import IGNORE_LABEL

        labels, total = self.puzzles.labels[done.key], len(self.puzzles.inputs)
        self.done += 1
        self.exact += done.answer is not None and bool(((done.answer == labels) | (labels == IGNORE_LABEL)).all())
        exact = f"{100 * self.exact / self.done:.1f} %"
        self.bar.update(self.task, completed=self.done, exact=exact)
        if not self.console.is_terminal and (10 * self.done) // total != (10 * (self.done - 1)) // total:
            self.console.print(f"{self.name} {self.done}/{total}: exact so far {exact}", markup=False)


ROWS: tuple[tuple[str, Callable[[Evaluation], str]], ...] = (
    ("puzzles", lambda e: str(e.n)),
    ("exact accuracy", lambda e: f"{100 * e.exact_accuracy:.2f} %"),
    ("token accuracy", lambda e: f"{100 * e.token_accuracy:.2f} %"),
    ("verified", lambda e: f"{100 * e.verified:.2f} %"),
    ("halting head right", lambda e: "-" if e.halting_accuracy is None else f"{100 * e.halting_accuracy:.2f} %"),
    ("steps, mean", lambda e: f"{e.mean_steps:.2f}"),
    ("with all runs; most", lambda e: f"{e.mean_total_steps:.2f}, {e.max_total_steps}"),
    ("puzzles/s", lambda e: f"{e.puzzles_per_second:.1f}"),
    ("seconds", lambda e: f"{e.seconds:.1f}"),
)
"""Rows of the comparison."""


def print_report(
    title: str, adaptive: Evaluation, fixed: Evaluation | None, report: dict[str, Any], executor: str
) -> None:
    """Both protocols side by side, the sources, accuracy against compute, and how deep the puzzles went."""
    from rich.console import Console
    from rich.table import Table

    from rtm_kernels.cli.report import bars, solid

    console = Console(highlight=False)
    console.print(f"{title}, {executor}", markup=False)
    both = [adaptive] if fixed is None else [adaptive, fixed]
    table = Table("", f"halting ({adaptive.policy})", *["fixed steps (official)"] * (len(both) - 1))
    for name, show in ROWS:
        table.add_row(name, *map(show, both))
    for k, share in report.get("pass_at", {}).items():
        table.add_row(f"pass@{k}, voted", f"{100 * share:.2f} %", *["-"] * (len(both) - 1))
    console.print(table)
    if len(adaptive.sources) > 1:
        rows = Table("source", "puzzles", "exact", "verified", "steps", "fixed: exact")
        for name, row in adaptive.sources.items():
            other = f"{100 * fixed.sources[name]['exact_accuracy']:.2f} %" if fixed and name in fixed.sources else "-"
            rows.add_row(name, f"{row['n']}", f"{100 * row['exact_accuracy']:.2f} %", f"{100 * row['verified']:.2f} %",
                         f"{row['mean_steps']:.2f}", other)  # fmt: skip
        console.print(rows)
    if fixed is not None and fixed.n == adaptive.n:
        steps, speed = fixed.mean_steps / adaptive.mean_steps, adaptive.puzzles_per_second / fixed.puzzles_per_second
        console.print(f"halting: {steps:.2f} times fewer steps, {speed:.2f} times the puzzles/s", markup=False)
    for name, found in zip(("halting", "fixed"), both, strict=False):
        marks = sorted({2**i for i in range(15) if 2**i <= len(found.accuracy_by_step)} | {len(found.accuracy_by_step)})
        points = [
            f"{100 * found.accuracy_by_step[d - 1]:.1f} % in {found.steps_by_step[d - 1]:.1f}" for d in marks if d
        ]
        console.print(f"{name}, exact under a growing cap in mean steps: {', '.join(points) or '-'}", markup=False)
    for line in ["steps and how many puzzles took them", *bars(adaptive.depth_histogram, solid(console))]:
        console.print(line, markup=False)
