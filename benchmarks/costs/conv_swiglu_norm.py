"""Bytes and special functions of the convolution on hidden units; z [B, L, 2F]."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.costs import KernelCost


def launches(
    batch: int, length: int, inner: int, taps: int, element: int = 2, block: int = 16, weight: int = 4
) -> Iterator[KernelCost]:
    """The forward launch and the two of the backward; `block` positions to a tile."""
    units, tiles = batch * length * inner, batch * -(length // -block)
    weights = weight * inner * (taps + 1)
    flops = 2 * units * taps
    forward = element * 3 * units + weights
    yield KernelCost("conv_hidden.forward", flops, flops, forward, units * (taps + 1))
    output = element * 3 * units + 4 * units + weights
    yield KernelCost("conv_hidden.backward_output", flops, flops, output, units * (taps + 1))
    back = element * 4 * units + 4 * units + weight * inner * taps + 4 * tiles * (taps + 1) * inner
    yield KernelCost("conv_hidden.backward_input", 2 * flops, 2 * flops, back, units)
