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
Halt = Annotated[
    str,
    typer.Option(
        help="When a puzzle leaves: verified, q[=P], settle[=STEPS[/TOLERANCE]], cumulative, cumulative_token, "
        "joined by +, or fixed.",
        metavar="POLICY",
    ),
]
Rollouts = Annotated[
    int, typer.Option(help="Runs of a puzzle whose answer is not confirmed, all but the first noisy.", metavar="K")
]
Noise = Annotated[float, typer.Option(help="Deviation of their noise (latents have rms 1).", metavar="SIGMA")]
Seed = Annotated[int, typer.Option(help="Seed of their noise.", metavar="SEED")]
Limit = Annotated[int | None, typer.Option(help="Read only the first N puzzles.", metavar="N")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]
