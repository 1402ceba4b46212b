"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Option("--model", "-m", help="Bundled name, folder, or hub id.", metavar="MODEL")]
MaxSteps = Annotated[
    int | None, typer.Option(help="Cap on ACT steps per puzzle; default the model's own.", metavar="N")
]
MinSteps = Annotated[int, typer.Option(help="Floor of ACT steps per puzzle.", metavar="N")]
BatchSize = Annotated[int, typer.Option(help="Puzzles in the batch at a time.", metavar="N")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default cuda where there is one.", metavar="DEVICE")]
Executor = Annotated[str, typer.Option(help="auto, or one that `rtm info` lists.", metavar="NAME")]
Precision = Annotated[
    str, typer.Option(help="Of the products on a CPU: float32, or bfloat16 or int8 (faster).", metavar="FORMAT")
]
Halt = Annotated[
    str,
    typer.Option(
        help="When a puzzle leaves: verified, q[=P], settle[=N or N/TOL], cumulative, cumulative_token, "
        "joined by +, or fixed.",
        metavar="POLICY",
    ),
]
Rollouts = Annotated[
    int,
    typer.Option(
        help="Runs of a puzzle, the first a plain one, until one is confirmed; guesses take the steps of K in one.",
        metavar="K",
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        "--rollout-kind",
        help="What the further runs are: guesses (answers of the model are taken as given for a few steps), twins "
        "(symmetric puzzles, turned back), noise, or auto: the first of these that the task has.",
        metavar="KIND",
    ),
]
Noise = Annotated[float, typer.Option(help="Deviation of noisy runs (latents have rms 1).", metavar="SIGMA")]
Seed = Annotated[int, typer.Option(help="Seed of the further runs.", metavar="SEED")]
Limit = Annotated[int | None, typer.Option(help="Read only the first N puzzles.", metavar="N")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]
