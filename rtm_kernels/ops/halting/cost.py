"""Bytes of the halting kernels; their products are vector sums, which are not counted as matrix FLOPs."""

from __future__ import annotations

from collections.abc import Iterator

from rtm_kernels.ops.cost import KernelCost


def step(
    batch: int, length: int, width: int, policy: str, pool: str, element: int = 2, rows: int = 2
) -> Iterator[KernelCost]:
    """The launches of one halting step with a head of `rows` rows and a bias, for every sample active."""
    units = batch * (length if pool == "token" else 1)
    cumulative = policy.startswith("cumulative")
    logits = 4 * rows * units
    special = 2 * units * cumulative
    # steps, active, accumulated (and remainder) are read and written, the weight of the step is written
    state = units * (4 + 4 + 1 + 1 + 4 + 4 + (4 + 4) * cumulative) + batch * (4 + 4 + 4) + 4
    if policy == "settle":
        yield KernelCost("halting.change", 0, 0, 2 * element * batch * length * width + 4 * batch, 2 * batch)
        yield KernelCost("halting.update", 0, 0, state + 4 * batch, 0)
    elif policy == "fixed":
        yield KernelCost("halting.update", 0, 0, state, 0)
    elif pool == "first":
        head = element * batch * width + 4 * rows * (width + 1)
        yield KernelCost("halting.update", 0, 0, state + logits + head, special)
    else:
        head = element * batch * length * width + 4 * rows * (width + 1)
        yield KernelCost("halting.head", 0, 0, head + logits, batch * rows * (pool == "mean"))
        yield KernelCost("halting.update", 0, 0, state + logits, special)
