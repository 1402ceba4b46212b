"""Options that several commands share, each defined once, and the solver that they make."""

from __future__ import annotations

import atexit
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from rtm_kernels.errors import require

if TYPE_CHECKING:
    from rtm_kernels.engine import Solver


def _writable(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Callback of an option for a file that is written at the end: what cannot be one is refused at once."""
    fits = path is None or (not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK))
    require(fits, option.opts[0], str(path), "a file in a folder that exists")
    return path


output = partial(typer.Option, metavar="FILE", callback=_writable)
machine, halting = (
    partial(typer.Option, rich_help_panel=name) for name in ("Model and machine", "Halting and further runs")
)

Model = Annotated[
    str, machine("--model", "-m", help="Bundled name, folder, or hub id; auto: by the puzzles.", metavar="MODEL")
]
BatchSize = Annotated[int, machine(help="Puzzles that are computed together.", metavar="N")]
Device = Annotated[str | None, machine(help="cpu or cuda; default cuda where there is one.", metavar="DEVICE")]
Executor = Annotated[str, machine(help="auto, or one that `rtm info` lists.", metavar="NAME")]
Precision = Annotated[
    str,
    machine(help="Number format of matrix products on a CPU: float32, or the faster bfloat16 and int8.",
            metavar="FORMAT"),
]  # fmt: skip
MaxSteps = Annotated[
    int | None,
    halting(help="Most ACT steps per puzzle, all its runs together, which share them equally; default: in each run as "
            "many as the model was trained with.", metavar="N"),
]  # fmt: skip
MinSteps = Annotated[int, halting(help="Fewest ACT steps per puzzle.", metavar="N")]
Halt = Annotated[
    str,
    halting(help="When a puzzle stops: verified (the rules confirm its answer), q[=P], q_continue[=P], "
            "settle[=N or N/TOL], cumulative, cumulative_token, several joined by +, or fixed (always all steps).",
            metavar="POLICY"),
]  # fmt: skip
Rollouts = Annotated[
    int,
    halting(help="Most runs per puzzle. Further runs start when the first one is not confirmed, and end when one is.",
            metavar="K"),
]  # fmt: skip
Kind = Annotated[
    str,
    halting("--rollout-kind", metavar="KIND",
            help="What differs in further runs: guesses (some of the model's own answers are pinned), twins (a "
            "symmetric puzzle is solved instead), noise, or auto (the first of these that the task allows)."),
]  # fmt: skip
Agree = Annotated[
    int,
    halting(help="Of a puzzle with several solutions: stop when K runs found the same confirmed one.", metavar="K"),
]
Noise = Annotated[float, halting(help="Standard deviation of the noise on latents, whose rms is 1.", metavar="SIGMA")]
Seed = Annotated[int, halting(help="Seed of further runs, and of what EqR draws.", metavar="SEED")]
Host = Annotated[str, typer.Option(help="Address; any but loopback needs a token.", metavar="HOST")]
Port = Annotated[int, typer.Option(help="Port; 0 takes a free one.", metavar="PORT")]
TokenFile = Annotated[
    Path | None, typer.Option(help="File that holds the token; else the variable RTM_TOKEN.", metavar="FILE")
]
Limit = Annotated[int | None, typer.Option(help="Read only the first N puzzles.", metavar="N")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Puzzles = Annotated[
    list[str] | None,
    typer.Argument(
        help="Puzzles, files, or - for standard input. Default: the bundled examples.",
        metavar="PUZZLES", show_default=False,
    ),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """The options of every command that makes a solver (`load_solver`)."""

    model: Model = "auto"
    batch_size: BatchSize = 64
    device: Device = None
    executor: Executor = "auto"
    precision: Precision = "float32"
    max_steps: MaxSteps = None
    min_steps: MinSteps = 1
    halt: Halt = "verified"
    rollouts: Rollouts = 1
    rollout_kind: Kind = "auto"
    agree: Agree = 1
    noise: Noise = 0.3
    seed: Seed = 0


def with_solver_options(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator of a command that takes `options: SolverOptions`: its command line gets one option per field.

    `defaults` take the place of those of `SolverOptions`; a field whose default here is `...` is no option.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(SolverOptions, include_extras=True)
        shared = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(field.name, field.default),
                annotation=hints[field.name],
            )
            for field in fields(SolverOptions) if defaults.get(field.name) is not ...
        ]  # fmt: skip
        names = [parameter.name for parameter in shared]
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "options"]

        def run(**given: Any) -> None:
            options = SolverOptions(**{name: given.pop(name) for name in names})
            command(**given, options=options)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
        return run

    return decorate


def load_solver(options: SolverOptions, *, model: str | None = None, batch_invariant: bool = False) -> Solver:
    """A solver with these options, for `model` instead of `options.model` where given.

    It runs on CUDA where there is one and `options.device` does not say otherwise. Under torchrun it shares the
    puzzles among the ranks (`RankedSolver`), and only rank 0 goes on to print.
    """
    from rtm_kernels.distributed.ranks import RankedSolver, join, leave, rank_and_world
    from rtm_kernels.engine import Solver
    from rtm_kernels.model import RecursiveReasoner

    kind = Solver
    rank, world = rank_and_world()
    if world > 1:
        kind = RankedSolver
        join()
        atexit.register(leave)
        if rank > 0:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    return kind(
        RecursiveReasoner.from_pretrained(model or ("sudoku" if options.model == "auto" else options.model)),
        **solver_arguments(options, rank),
        batch_invariant=batch_invariant,
    )


def solver_arguments(options: SolverOptions, rank: int = 0) -> dict[str, Any]:
    from rtm_kernels.engine import Rollouts

    runs, steps = options.rollouts, options.max_steps
    if steps is not None and steps >= 1 and runs > 1:  # the solver counts steps by the run
        runs = min(runs, steps)
        steps //= runs
    return {
        "policy": options.halt,
        "max_steps": steps,
        "min_steps": options.min_steps,
        "batch_size": options.batch_size,
        "device": options.device or default_device(rank),
        "executor": options.executor,
        "precision": options.precision,
        "rollouts": Rollouts(runs, options.noise, options.seed, options.rollout_kind, options.agree),
    }


def default_device(rank: int = 0) -> str:
    """CUDA where there is one, shared out by rank, else the CPU."""
    import torch

    return f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
