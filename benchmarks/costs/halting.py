"""Bytes of the halting kernel; its products are vector sums, which are not counted as matrix FLOPs."""

from __future__ import annotations

from benchmarks.costs import KernelCost


def step(batch: int, length: int, width: int, policy: str, pool: str, element: int = 2, rows: int = 2) -> KernelCost:
    """The launch of one halting step with a head of `rows` rows and a bias, for every sample active."""
    units = batch * (length if pool == "token" else 1)
    cumulative = policy.startswith("cumulative")
    # steps and active are read and written, the weight of the step is written; flag (twice) and order of a sample
    state = units * (4 + 4 + 1 + 1 + 4 + (4 + 4 + 4) * cumulative) + batch * (4 + 4 + 4) + 4
    latent, special = element * batch * length * width, 2 * units * cumulative
    if policy == "fixed":
        return KernelCost("halting.step", 0, 0, state, 0)
    if policy == "settle":
        return KernelCost("halting.step", 0, 0, state + 2 * latent, 4 * batch)
    head = 4 * rows * (units + width + 1) + (latent // length if pool == "first" else latent)
    return KernelCost("halting.step", 0, 0, state + head, special)
