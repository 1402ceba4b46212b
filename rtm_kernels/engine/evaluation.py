"""Accuracy and speed of a solver on puzzles whose solutions are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtm_kernels.data.dataset import IGNORE_LABEL
from rtm_kernels.engine.samples import Finished, Sample, Step
from rtm_kernels.engine.solver import Solver
from rtm_kernels.errors import require
from rtm_kernels.ops.token_loss.reference import exact


@dataclass(frozen=True)
class Evaluation:
    """Figures of the `n` puzzles that finished; `complete` says whether these are all.

    `exact_accuracy`: share of puzzles whose every labelled token is right; `token_accuracy`: share of labelled tokens;
    `verified`: share of answers that the task's verifier confirms; `halting_accuracy`: share of puzzles where the
    halting head is right, p >= 1/2 exactly if the whole answer is (None without a head); `depth_histogram`: ACT steps
    -> puzzles. `accuracy_by_step[d - 1]` is the exact accuracy under a cap of d ACT steps, of the answers decoded
    then, and `steps_by_step[d - 1]` the mean steps that takes: accuracy against compute. Of several rollouts these two
    follow the first. They are empty where not all puzzles finished or steps were not recorded. `mean_total_steps` and
    `max_total_steps` count the steps of all rollouts of a puzzle. `sources`: the main figures per source.
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


class Measurement:
    """A solver that is measured on `inputs` [N, seq_len] against `labels` [N, seq_len], of which -100 does not count.

    Args:
        puzzle_identifiers: [N], default 0.
        sources: where each puzzle is from.
        on_finished: called with each puzzle as it leaves.
        by_step: record every ACT step for `accuracy_by_step`. Without, the solver runs as in `Solver.solve`.

    Errors: `InputError` for shapes that do not fit, for no puzzles, and for tokens that the model does not know.
    """

    def __init__(
        self,
        solver: Solver,
        inputs: np.ndarray,
        labels: np.ndarray,
        puzzle_identifiers: np.ndarray | None = None,
        sources: Sequence[str] | None = None,
        on_finished: Callable[[Finished], None] | None = None,
        by_step: bool = True,
    ) -> None:
        count, length = len(inputs), solver.task.seq_len
        fits = inputs.shape == (count, length) and count > 0
        require(fits, "inputs.shape", inputs.shape, f"[N, {length}] with N >= 1")
        require(labels.shape == inputs.shape, "labels.shape", labels.shape, f"{inputs.shape}, as the inputs")
        require(sources is None or len(sources) == count, "sources", sources and len(sources), f"{count} names")
        identifiers = np.zeros(count, dtype=np.int64) if puzzle_identifiers is None else puzzle_identifiers
        for name, values, size in (
            ("inputs", inputs, solver.model.config.vocab_size),
            ("puzzle_identifiers", identifiers, solver.model.config.num_puzzle_identifiers),
        ):
            low, high = int(values.min()), int(values.max())
            require(low >= 0 and high < size, name, f"{low} to {high}", f"the model knows 0 to {size - 1}")
        self.solver, self.inputs, self.labels, self.identifiers = solver, inputs, labels, identifiers
        self.sources, self.on_finished, self.by_step = np.array(sources or []), on_finished, by_step
        self.seconds: list[float] = []
        self.correct = np.zeros(inputs.shape, dtype=bool)
        self.done, self.exact, self.verified, self._exact_now = (np.zeros(count, dtype=bool) for _ in range(4))
        self.steps, self.total_steps = (np.zeros(count, dtype=np.int64) for _ in range(2))
        self.confidence = np.full(count, np.nan)
        in_one = solver.rollouts.in_one(solver.task, solver.policy)
        cap = solver.policy.max_steps * (solver.rollouts.count if in_one else 1)
        self._gained, self._taken = np.zeros(cap, dtype=np.int64), np.zeros(cap, dtype=np.int64)

    def run(self, rows: Iterable[int]) -> None:
        """Solve the puzzles `rows`, each once over all calls, and note how long it took."""
        seed = self.solver.rollouts.seed
        samples = (Sample(i, self.inputs[i], int(self.identifiers[i]), seed=seed) for i in rows)
        start = time.perf_counter()
        try:
            for done in self.solver.run(samples, self._step if self.by_step else None):
                self._finished(done)
        finally:
            self.seconds.append(time.perf_counter() - start)

    def _step(self, step: Step) -> None:
        key, rollout = step.key if self.solver.rollouts.count > 1 else (step.key, 0)
        if rollout == 0:
            now = exact(step.answer, self.labels[key])
            self._gained[step.number - 1] += int(now) - int(self._exact_now[key])
            self._taken[step.number - 1] += 1
            self._exact_now[key] = now

    def _finished(self, done: Finished) -> None:
        key, labels = done.key, self.labels[done.key]
        answer = np.full(labels.shape, -1) if done.answer is None else done.answer
        self.correct[key], self.exact[key] = answer == labels, exact(answer, labels)
        self.confidence[key] = np.nan if done.halt_probability is None else done.halt_probability
        self.steps[key], self.total_steps[key] = done.steps, done.total_steps
        self.verified[key], self.done[key] = done.verified, True
        if self.on_finished is not None:
            self.on_finished(done)

    def _figures(self, rows: np.ndarray) -> dict[str, Any]:
        counted = self.labels[rows] != IGNORE_LABEL
        return {
            "n": len(rows),
            "exact_accuracy": float(self.exact[rows].mean()),
            "token_accuracy": float(self.correct[rows][counted].mean()) if counted.any() else 0.0,
            "verified": float(self.verified[rows].mean()),
            "mean_steps": float(self.steps[rows].mean()),
        }

    def evaluation(self) -> Evaluation:
        """The figures of the puzzles that have finished, at least one."""
        rows = np.flatnonzero(self.done)
        complete, seconds = len(rows) == len(self.done), sum(self.seconds)
        depths, counts = np.unique(self.steps[rows], return_counts=True)
        used = int(np.flatnonzero(self._taken).max(initial=-1)) + 1 if complete else 0
        said = rows[~np.isnan(self.confidence[rows])]
        right = (self.confidence[said] >= 0.5) == self.exact[said]
        names = self.sources[rows] if len(self.sources) else self.sources
        return Evaluation(
            policy=str(self.solver.policy),
            **self._figures(rows),
            halting_accuracy=float(right.mean()) if len(said) else None,
            depth_histogram=dict(zip(depths.tolist(), counts.tolist(), strict=True)),
            accuracy_by_step=(np.cumsum(self._gained[:used]) / len(rows)).tolist(),
            steps_by_step=(np.cumsum(self._taken[:used]) / len(rows)).tolist(),
            sources={name: self._figures(rows[names == name]) for name in dict.fromkeys(names.tolist())},
            seconds=seconds,
            puzzles_per_second=len(rows) / seconds,
            rollouts=self.solver.rollouts.count,
            mean_total_steps=float(self.total_steps[rows].mean()),
            max_total_steps=int(self.total_steps[rows].max()),
            complete=complete,
        )


def take_turns(measurements: Sequence[Measurement], rounds: int = 1) -> bool:
    """Let all measurements solve the same puzzles in `rounds` parts; who begins alternates from part to part.

    So a machine that is busy with something else slows all of them alike. Returns whether all puzzles were solved: a
    KeyboardInterrupt ends the measurements with what has finished, or is raised again when nothing has.

    Errors: `InputError` for more rounds than puzzles.
    """
    count = len(measurements[0].inputs)
    require(1 <= rounds <= count, "rounds", rounds, f"from 1 to the number of puzzles, {count}")
    try:
        for turn in range(rounds):
            for measurement in measurements[:: -1 if turn % 2 else 1]:
                measurement.run(range(turn, count, rounds))
    except KeyboardInterrupt:
        if not measurements[0].done.any():
            raise
        return False
    return True
