"""Models and solvers from the options of a command; imports torch."""

from __future__ import annotations

import atexit
import os
import sys

import torch

from rtm_kernels.distributed.ranks import RankedSolver, join, leave, rank_and_world
from rtm_kernels.engine import Rollouts, Solver
from rtm_kernels.pretrained import from_pretrained


def load_solver(
    model: str,
    *,
    max_steps: int | None,
    min_steps: int = 1,
    batch_size: int,
    device: str | None,
    executor: str,
    precision: str = "float32",
    halt: str,
    rollouts: int,
    noise: float,
    seed: int,
    kind: str = "auto",
) -> Solver:
    """A solver for the model called `model`, on CUDA where there is one and `device` does not say otherwise.

    Under torchrun it shares the puzzles among the ranks (`RankedSolver`), and only rank 0 goes on to print.
    """
    kind_of_solver = Solver
    rank, world = rank_and_world()
    if world > 1:
        kind_of_solver = RankedSolver
        join()
        atexit.register(leave)
        if rank > 0:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    return kind_of_solver(
        from_pretrained(model),
        policy=halt,
        max_steps=max_steps,
        min_steps=min_steps,
        batch_size=batch_size,
        device=device or (f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"),
        executor=executor,
        precision=precision,
        rollouts=Rollouts(rollouts, noise, seed, kind),
    )
