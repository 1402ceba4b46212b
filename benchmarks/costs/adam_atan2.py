"""Bytes and special functions of the optimiser updates."""

from __future__ import annotations

from benchmarks.costs import KernelCost


def adam_atan2(parameters: int) -> KernelCost:
    """One update of this many float32 parameters: p, m, v read and written, g read; a root and three quotients."""
    return KernelCost("adam_atan2", 0, 0, 28 * parameters, 4 * parameters)


def sign_sgd(batch: int, width: int) -> KernelCost:
    """One update of B different rows of D columns: ids, order and gradients read, rows read and written."""
    return KernelCost("sign_sgd", 0, 0, batch * (16 + 12 * width), 0)
