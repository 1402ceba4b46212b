"""Adaptive halting against the official fixed number of steps, in turns, so that a busy machine disturbs both alike."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rtm_kernels.data.dataset import IGNORE_LABEL
from rtm_kernels.engine.samples import Sample
from rtm_kernels.engine.solver import Solver
from rtm_kernels.errors import require


@dataclass(frozen=True)
class Protocol:
    """What one of the two did over all puzzles."""

    policy: str
    exact_accuracy: float
    mean_steps: float
    seconds: float
    puzzles_per_second: float


@dataclass(frozen=True)
class Comparison:
    """Both protocols on the same weights and puzzles.

    `steps_ratio` is fixed over adaptive steps; `speed_ratio` the median over the rounds of adaptive over fixed
    puzzles/s, between the smallest and largest of `speed_ratios`. `only_adaptive` and `only_fixed` count the puzzles
    that one of them alone gets right.
    """

    n: int
    adaptive: Protocol
    fixed: Protocol
    steps_ratio: float
    speed_ratio: float
    speed_ratios: list[float]
    only_adaptive: int
    only_fixed: int


def compare(
    solver: Solver,
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    rounds: int = 5,
    identifiers: np.ndarray | None = None,
    on_round: Callable[[int], None] | None = None,
) -> Comparison:
    """Solve `inputs` [N, seq_len] under the solver's own policy and under its `max_steps` for every puzzle.

    The puzzles are dealt to `rounds` hands; each hand is solved by both, the one that begins changing every round.
    A puzzle is right when its answer equals `labels` [N, seq_len] wherever these are not -100. The fixed protocol has
    no rollouts. `on_round` is told the puzzles done so far.

    Errors: `InputError` for shapes that do not fit, and for more rounds than puzzles.
    """
    count = len(inputs)
    require(inputs.shape == labels.shape == (count, solver.task.seq_len), "inputs.shape", inputs.shape,
            f"[N, {solver.task.seq_len}], as the labels")  # fmt: skip
    require(1 <= rounds <= max(count, 1), "rounds", rounds, f"from 1 to the number of puzzles, {count}")
    fixed = copy.copy(solver)
    fixed.policy, fixed.rollouts = replace(solver.policy, on=()), replace(solver.rollouts, count=1)
    known = np.zeros(count, dtype=np.int64) if identifiers is None else identifiers
    right, steps = np.zeros((2, count), dtype=bool), np.zeros((2, count), dtype=np.int64)
    seconds = np.zeros((2, rounds))
    for turn in range(rounds):
        rows = range(turn, count, rounds)
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.perf_counter()
            for done in (solver, fixed)[which].run(Sample(i, inputs[i], int(known[i])) for i in rows):
                steps[which, done.key] = done.total_steps
                if done.answer is not None:
                    hit = (done.answer == labels[done.key]) | (labels[done.key] == IGNORE_LABEL)
                    right[which, done.key] = hit.all()
            seconds[which, turn] = time.perf_counter() - start
        if on_round is not None:
            on_round(sum(len(range(t, count, rounds)) for t in range(turn + 1)))
    ratios = (seconds[1] / seconds[0]).tolist()
    both = [
        Protocol(
            policy=str(which.policy),
            exact_accuracy=float(right[i].mean()),
            mean_steps=float(steps[i].mean()),
            seconds=float(seconds[i].sum()),
            puzzles_per_second=count / float(seconds[i].sum()),
        )
        for i, which in enumerate((solver, fixed))
    ]
    return Comparison(
        n=count,
        adaptive=both[0],
        fixed=both[1],
        steps_ratio=both[1].mean_steps / both[0].mean_steps,
        speed_ratio=float(np.median(ratios)),
        speed_ratios=ratios,
        only_adaptive=int((right[0] & ~right[1]).sum()),
        only_fixed=int((right[1] & ~right[0]).sum()),
    )
