"""A solver from the options of a command; imports torch."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

import torch

from rtm_kernels.cli.options import SolverOptions
from rtm_kernels.distributed.ranks import RankedSolver, join, leave, rank_and_world
from rtm_kernels.engine import Rollouts, Solver
from rtm_kernels.model import RecursiveReasoner


def load_solver(options: SolverOptions, *, model: str | None = None, batch_invariant: bool = False) -> Solver:
    """A solver with these options, for `model` instead of `options.model` where given.

    It runs on CUDA where there is one and `options.device` does not say otherwise. Under torchrun it shares the
    puzzles among the ranks (`RankedSolver`), and only rank 0 goes on to print.
    """
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
    return {
        "policy": options.halt,
        "max_steps": options.max_steps,
        "min_steps": options.min_steps,
        "batch_size": options.batch_size,
        "device": options.device or default_device(rank),
        "executor": options.executor,
        "precision": options.precision,
        "rollouts": Rollouts(options.rollouts, options.noise, options.seed, options.rollout_kind),
    }


def default_device(rank: int = 0) -> str:
    """CUDA where there is one, shared out by rank, else the CPU."""
    return f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
