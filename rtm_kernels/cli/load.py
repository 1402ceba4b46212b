"""Models and solvers from the options of a command; imports torch."""

from __future__ import annotations

import torch

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
    halt: str,
    rollouts: int,
    noise: float,
    seed: int,
    kind: str = "auto",
) -> Solver:
    """A solver for the model called `model`, on CUDA where there is one and `device` does not say otherwise."""
    return Solver(
        from_pretrained(model),
        policy=halt,
        max_steps=max_steps,
        min_steps=min_steps,
        batch_size=batch_size,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        executor=executor,
        rollouts=Rollouts(rollouts, noise, seed, kind),
    )
