"""Solving a Ray data set: one solver per worker; each row comes back with its solution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rtm_kernels.engine import Solver
from rtm_kernels.errors import BackendUnavailable, require
from rtm_kernels.model import RecursiveReasoner

if TYPE_CHECKING:
    from ray.data import Dataset

COLUMNS = ("answer", "status", "steps", "halt_probability", "reason", "rollout", "total_steps", "error")
"""Fields of `Solution` that become columns."""


class BatchSolver:
    """A solver in a Ray worker: a batch of rows in, the same rows with the columns `COLUMNS` out."""

    def __init__(self, model: str, column: str, options: dict[str, Any]) -> None:
        self.solver, self.column = Solver(RecursiveReasoner.from_pretrained(model), **options), column

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Solve one batch."""
        taken = sorted(set(batch) & set(COLUMNS))
        require(not taken, "dataset", taken, "columns of results must not be there already")
        solutions = self.solver.solve([str(text) for text in batch[self.column]])
        found = {name: np.array([getattr(s, name) for s in solutions], dtype=object) for name in COLUMNS}
        for name in ("steps", "rollout", "total_steps"):
            found[name] = found[name].astype(np.int64)
        found["halt_probability"] = found["halt_probability"].astype(np.float64)
        return batch | found


def solve_dataset(
    dataset: Dataset,
    model: str = "sudoku",
    *,
    column: str = "puzzle",
    workers: int = 2,
    batch_size: int = 256,
    num_cpus: float = 1,
    num_gpus: float = 0,
    **options: Any,
) -> Dataset:
    """`dataset` with the solutions of the puzzles in `column`, computed by `workers` Ray workers when it is read.

    It adds the columns `COLUMNS`: the fields of `Solution` of these names. A puzzle that cannot be read has status
    `invalid`, and `error` says why. `options` go to `Solver`. Answers do not depend on the number of workers or on how
    the rows are split (`batch_invariant` is on unless switched off). Batches of a crashed worker are retried.

    Errors: `InputError` for a missing column, `BackendUnavailable` without the package ray.
    """
    require(workers >= 1, "workers", workers, "at least 1")
    columns = dataset.columns() or []
    require(column in columns, "column", column, f"the dataset has {', '.join(columns)}")
    try:
        from ray.data import ActorPoolStrategy
    except ImportError:
        raise BackendUnavailable("ray is not installed: pip install 'rtm-kernels[ray]'") from None
    return dataset.map_batches(
        BatchSolver,
        fn_constructor_args=(model, column, {"batch_invariant": True} | options),
        batch_size=batch_size,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=workers),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
