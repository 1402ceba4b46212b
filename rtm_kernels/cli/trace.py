"""`rtm trace`: record every ACT step of a model, replay it bit for bit, and show it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rtm_kernels.cli.group import BAD_INPUT, complain, group_of
from rtm_kernels.cli.options import Json, Limit, Puzzles, SolverOptions, load_solver, with_solver_options

IDENTICAL, DIFFERS = 0, 1

TraceFile = Annotated[Path, typer.Argument(help="A file that `rtm trace record` wrote.", metavar="TRACE")]

app = group_of("Record every step of a model, replay it bit for bit, and show it.")


@app.command()
@with_solver_options(
    batch_size=16, precision=..., min_steps=..., rollouts=..., rollout_kind=..., agree=..., noise=..., seed=...
)
def record(
    options: SolverOptions,
    puzzles: Puzzles = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.", metavar="FILE")] = Path("trace.jsonl"),
    limit: Limit = None,
    json_object: Json = False,
) -> None:
    """Solve puzzles and write every ACT step to a file of JSON Lines.

    Every step runs with the same shapes, whatever else is in the batch, so that
    a replay gives the same bits. A batch has at most 256 puzzles.

    Exit code: 0 recorded, 2 bad input.

    Examples:

      rtm trace record puzzles.csv --limit 10 --out trace.jsonl
      rtm trace record hard.csv --halt fixed --max-steps 64
    """
    from rtm_kernels.cli.solve import complain_about
    from rtm_kernels.cli.source import model_for, read_all
    from rtm_kernels.trace import record as write

    if options.model == "auto":
        options = replace(options, model=model_for(puzzles or []))
    solver = load_solver(options, batch_invariant=True)
    found = read_all(puzzles or [], solver.reader, limit)
    solver = next((solver.of(puzzle) for puzzle in found if not puzzle.error), solver)
    solutions = write(solver, found, out, model_name=options.model)
    traced = [solution for solution in solutions if solution.status != "invalid"]
    steps = sum(solution.steps for solution in traced)
    verified = sum(solution.status == "verified" for solution in traced)
    report = {"trace": str(out), "puzzles": len(traced), "verified": verified, "steps": steps}
    line = f"{out}: {len(traced)} puzzles, {verified} verified, {steps} steps; rtm trace view {out}"
    typer.echo(json.dumps(report) if json_object else line)
    complain_about(solutions)
    if len(traced) < len(solutions):
        raise typer.Exit(BAD_INPUT)


@app.command()
def replay(
    trace: TraceFile,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Bundled name, folder, or hub id; default the trace's.", metavar="MODEL"),
    ] = None,
    json_object: Json = False,
) -> None:
    """Run a trace again and compare answers, logits and latent changes bit for bit.

    Exit code: 0 identical, 1 something differs, 2 bad input, such as a model
    with other weights.

    Examples:

      rtm trace replay trace.jsonl
      rtm trace replay trace.jsonl --model runs/best
    """
    from rtm_kernels.trace import read_trace
    from rtm_kernels.trace import replay as run

    recorded = read_trace(trace)
    difference = run(recorded, model)
    steps = sum(len(traced.steps) for traced in recorded.puzzles)
    if json_object:
        report = {"trace": str(trace), "identical": difference is None, "difference": difference}
        typer.echo(json.dumps(report | {"puzzles": len(recorded.puzzles), "steps": steps}))
    elif difference is None:
        typer.echo(f"identical: {len(recorded.puzzles)} puzzles, {steps} steps, bit for bit")
    if difference is not None:
        complain(f"{trace}: {difference}")
        raise typer.Exit(DIFFERS)


@app.command()
def view(
    trace: TraceFile,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Page to write; default TRACE.html.", metavar="FILE")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Show only the first N puzzles.", metavar="N")] = None,
    json_object: Json = False,
) -> None:
    """Write one HTML file that shows every step; it works offline.

    Example:

      rtm trace view trace.jsonl --out trace.html
    """
    from rtm_kernels.trace import read_trace, write_page

    target = out or trace.with_suffix(".html")
    write_page(read_trace(trace), target, limit=limit)
    typer.echo(json.dumps({"page": str(target)}) if json_object else f"{target}: open it in a browser")
