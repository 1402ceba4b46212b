"""Accuracy of a solver on puzzles whose solutions are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rtm_kernels.data.dataset import IGNORE_LABEL
from rtm_kernels.engine.observer import Step
from rtm_kernels.engine.samples import Finished, Sample
from rtm_kernels.engine.solver import Solver
from rtm_kernels.errors import require


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured on the `n` puzzles that finished; `complete` says whether these are all.

    `exact_accuracy`: share of puzzles whose every labelled token is right; `token_accuracy`: share of labelled tokens;
    `verified`: share of answers that the task's verifier confirms; `halting_accuracy`: share of puzzles where the
    halting head is right, p >= 1/2 exactly if the whole answer is (None without a head); `depth_histogram`: ACT steps
    -> puzzles. `accuracy_by_step[d - 1]` is the exact accuracy under a cap of d ACT steps, of the answers decoded
    then, and `steps_by_step[d - 1]` the mean steps that takes: accuracy against compute. Of several rollouts these two
    follow the first, and they are empty where not all puzzles finished; `mean_total_steps` and `max_total_steps` count
    the steps of all rollouts of a puzzle. `sources`: the main figures per source. `seconds` include the recording.
    """

    policy: str
    n: int
    exact_accuracy: float
    token_accuracy: float
    verified: float
    halting_accuracy: float | None
    mean_steps: float
    depth_histogram: dict[int, int]
    accuracy_by_step: list[float]
    steps_by_step: list[float]
    sources: dict[str, dict[str, float]]
    seconds: float
    puzzles_per_second: float
    rollouts: int = 1
    mean_total_steps: float = 0.0
    max_total_steps: int = 0
    complete: bool = True


class _Record:
    """What is kept of each puzzle while a solver runs."""

    def __init__(self, labels: np.ndarray, max_steps: int, rollouts: int) -> None:
        count = len(labels)
        self.labels, self.counted, self.rollouts = labels, labels != IGNORE_LABEL, rollouts
        self.right = np.zeros(labels.shape, dtype=bool)
        self.verified, self.done = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        self.steps, self.total_steps = (np.zeros(count, dtype=np.int64) for _ in range(2))
        self.confidence = np.full(count, np.nan)
        self.exact_now = np.zeros(count, dtype=bool)
        self.gained, self.taken = np.zeros(max_steps, dtype=np.int64), np.zeros(max_steps, dtype=np.int64)

    def step(self, step: Step) -> None:
        """Take in an ACT step of a puzzle, of its first rollout where there are several."""
        key, rollout = step.key if self.rollouts > 1 else (step.key, 0)
        if rollout:
            return
        exact = bool((~self.counted[key] | (step.answer == self.labels[key])).all())
        self.gained[step.number - 1] += int(exact) - int(self.exact_now[key])
        self.taken[step.number - 1] += 1
        self.exact_now[key] = exact

    def finished(self, done: Finished) -> None:
        """Take in a puzzle that left."""
        if done.answer is not None:
            self.right[done.key] = done.answer == self.labels[done.key]
        if done.halt_probability is not None:
            self.confidence[done.key] = done.halt_probability
        self.total_steps[done.key] = done.total_steps
        self.steps[done.key], self.verified[done.key], self.done[done.key] = done.steps, done.verified, True

    def figures(self, rows: np.ndarray) -> dict[str, float]:
        """The main figures over the puzzles `rows`."""
        exact = (self.right[rows] | ~self.counted[rows]).all(1)
        counted = self.counted[rows]
        return {
            "n": len(rows),
            "exact_accuracy": float(exact.mean()),
            "token_accuracy": float(self.right[rows][counted].mean()) if counted.any() else 0.0,
            "verified": float(self.verified[rows].mean()),
            "mean_steps": float(self.steps[rows].mean()),
        }

    def halting_accuracy(self, rows: np.ndarray) -> float | None:
        """Share of `rows` on which the head agrees with the labels; None where it said nothing."""
        said = rows[~np.isnan(self.confidence[rows])]
        exact = (self.right[said] | ~self.counted[said]).all(1)
        return float(((self.confidence[said] >= 0.5) == exact).mean()) if len(said) else None


def evaluate(
    solver: Solver,
    inputs: np.ndarray,
    labels: np.ndarray,
    puzzle_identifiers: np.ndarray | None = None,
    on_finished: Callable[[Finished], None] | None = None,
    sources: Sequence[str] | None = None,
) -> Evaluation:
    """Solve `inputs` [N, seq_len] and compare with `labels` [N, seq_len], of which -100 does not count.

    `on_finished` sees each puzzle as it leaves; `sources` names where each puzzle is from. A KeyboardInterrupt ends the
    evaluation with the puzzles that finished until then.

    Errors: `InputError` for shapes that do not fit, and for no puzzles.
    """
    shape = (len(inputs), solver.task.seq_len)
    require(inputs.shape == shape and len(inputs) > 0, "inputs.shape", inputs.shape, f"[N, {shape[1]}] with N >= 1")
    require(labels.shape == shape, "labels.shape", labels.shape, f"{shape}, as the inputs")
    require(sources is None or len(sources) == len(inputs), "sources", sources and len(sources), f"{len(inputs)} names")
    identifiers = np.zeros(len(inputs), dtype=np.int64) if puzzle_identifiers is None else puzzle_identifiers
    for name, values, size in (
        ("inputs", inputs, solver.model.config.vocab_size),
        ("puzzle_identifiers", identifiers, solver.model.config.num_puzzle_identifiers),
    ):
        low, high = int(values.min()), int(values.max())
        require(low >= 0 and high < size, name, f"{low} to {high}", f"the model knows 0 to {size - 1}")
    samples = (Sample(i, inputs[i], int(identifiers[i])) for i in range(len(inputs)))
    cap = solver.policy.max_steps * (solver.rollouts.count if solver.rollouts.in_one(solver.task, solver.policy) else 1)
    record = _Record(labels, cap, solver.rollouts.count)
    start = time.perf_counter()
    try:
        for done in solver.run(samples, record.step):
            record.finished(done)
            if on_finished is not None:
                on_finished(done)
    except KeyboardInterrupt:
        if not record.done.any():
            raise
    return _evaluation(record, str(solver.policy), time.perf_counter() - start, sources)


def _evaluation(record: _Record, policy: str, seconds: float, sources: Sequence[str] | None) -> Evaluation:
    rows = np.flatnonzero(record.done)
    complete = len(rows) == len(record.done)
    figures = record.figures(rows)
    depths, counts = np.unique(record.steps[rows], return_counts=True)
    names = np.array(sources if sources is not None else [])[rows[: len(sources or ())]]
    used = int(np.flatnonzero(record.taken).max(initial=-1)) + 1 if complete else 0
    return Evaluation(
        policy=policy,
        n=len(rows),
        exact_accuracy=figures["exact_accuracy"],
        token_accuracy=figures["token_accuracy"],
        verified=figures["verified"],
        halting_accuracy=record.halting_accuracy(rows),
        mean_steps=figures["mean_steps"],
        depth_histogram=dict(zip(depths.tolist(), counts.tolist(), strict=True)),
        accuracy_by_step=(np.cumsum(record.gained[:used]) / len(rows)).tolist(),
        steps_by_step=(np.cumsum(record.taken[:used]) / len(rows)).tolist(),
        sources={str(name): record.figures(rows[names == name]) for name in dict.fromkeys(names.tolist())},
        seconds=seconds,
        puzzles_per_second=len(rows) / seconds,
        rollouts=record.rollouts,
        mean_total_steps=float(record.total_steps[rows].mean()),
        max_total_steps=int(record.total_steps[rows].max()),
        complete=complete,
    )
