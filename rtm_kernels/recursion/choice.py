"""Launch table of whole ACT steps: the persistent kernel or the graph of fused kernels, by GPU family and batch.

`python -m benchmarks.choose` measures both in every batch bucket and prints the rows of the GPU it ran on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rtm_kernels.errors import one_of, require
from rtm_kernels.ops.launch import FALLBACKS, FAMILIES

PATHS = ("persistent", "graph")
"""Executors that the table chooses between, as `rtm_kernels.engine.EXECUTORS` names them."""


@dataclass(frozen=True)
class ChoiceRow:
    """Which path takes ACT steps of up to `limit` samples on GPUs of `family`.

    `measured` names the GPU and the commit of the measurement; empty, the row is untuned: it follows the byte model of
    `persistent/README.md`, in which the traffic with L2 grows with the batch and the barriers do not.
    """

    family: str
    limit: int
    path: str
    measured: str = ""

    def __post_init__(self) -> None:
        one_of("family", self.family, FAMILIES)
        one_of("path", self.path, PATHS)
        require(self.limit >= 1, "limit", self.limit, "at least 1")


ANY = 1 << 30

TABLE: tuple[ChoiceRow, ...] = (
    ChoiceRow("hopper", 4, "persistent"),
    ChoiceRow("hopper", ANY, "graph"),
    ChoiceRow("portable", 2, "persistent"),
    ChoiceRow("portable", ANY, "graph"),
)


def choose_row(batch: int, family: str, table: Iterable[ChoiceRow] | None = None) -> ChoiceRow:
    """The first row of the table for a batch of this size on this family, or on the nearest one that has rows.

    Errors: `InputError` without one.
    """
    rows = list(TABLE if table is None else table)
    near = [[row for row in rows if row.family == name] for name in FALLBACKS.get(family, (family,))]
    fits = [row for row in next(filter(None, near), []) if batch <= row.limit]
    require(len(fits) > 0, "batch, family", (batch, family), f"one of the rows {rows}")
    return fits[0]
