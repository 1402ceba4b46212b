"""Accuracy of a solver on puzzles whose solutions are known."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rtm_kernels.data.dataset import IGNORE_LABEL
from rtm_kernels.engine.slots import Finished, Sample
from rtm_kernels.engine.solver import Solver
from rtm_kernels.errors import require


@dataclass(frozen=True)
class Evaluation:
    """`exact_accuracy`: share of puzzles whose every labelled token is right; `token_accuracy`: share of labelled
    tokens; `verified`: share of answers that the task's verifier confirms; `depth_histogram`: ACT steps -> puzzles."""

    policy: str
    n: int
    exact_accuracy: float
    token_accuracy: float
    verified: float
    mean_steps: float
    depth_histogram: dict[int, int]
    seconds: float
    puzzles_per_second: float


def evaluate(
    solver: Solver,
    inputs: np.ndarray,
    labels: np.ndarray,
    puzzle_identifiers: np.ndarray | None = None,
    on_finished: Callable[[Finished], None] | None = None,
) -> Evaluation:
    """Solve `inputs` [N, seq_len] and compare with `labels` [N, seq_len], of which -100 does not count.

    `on_finished` sees each puzzle as it leaves.

    Errors: `InputError` for shapes that do not fit, and for no puzzles.
    """
    shape = (len(inputs), solver.task.seq_len)
    require(inputs.shape == shape and len(inputs) > 0, "inputs.shape", inputs.shape, f"[N, {shape[1]}] with N >= 1")
    require(labels.shape == shape, "labels.shape", labels.shape, f"{shape}, as the inputs")
    identifiers = np.zeros(len(inputs), dtype=np.int64) if puzzle_identifiers is None else puzzle_identifiers
    for name, values, size in (
        ("inputs", inputs, solver.model.config.vocab_size),
        ("puzzle_identifiers", identifiers, solver.model.config.num_puzzle_identifiers),
    ):
        low, high = int(values.min()), int(values.max())
        require(low >= 0 and high < size, name, f"{low} to {high}", f"the model knows 0 to {size - 1}")
    samples = (Sample(i, inputs[i], int(identifiers[i])) for i in range(len(inputs)))
    counted = labels != IGNORE_LABEL
    correct = np.zeros(shape, dtype=bool)
    steps, verified = np.zeros(len(inputs), dtype=np.int64), 0
    start = time.perf_counter()
    for done in solver.run(samples):
        if done.answer is not None:
            correct[done.key] = done.answer == labels[done.key]
        steps[done.key] = done.steps
        verified += done.verified
        if on_finished is not None:
            on_finished(done)
    seconds = time.perf_counter() - start
    depths, counts = np.unique(steps, return_counts=True)
    return Evaluation(
        policy=str(solver.policy),
        n=len(inputs),
        exact_accuracy=float((correct | ~counted).all(1).mean()),
        token_accuracy=float(correct[counted].mean()) if counted.any() else 0.0,
        verified=verified / len(inputs),
        mean_steps=float(steps.mean()),
        depth_histogram=dict(zip(depths.tolist(), counts.tolist(), strict=True)),
        seconds=seconds,
        puzzles_per_second=len(inputs) / seconds,
    )
