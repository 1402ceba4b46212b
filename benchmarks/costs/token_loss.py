"""Bytes and special functions of the token losses; logits [B, L, V]."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.costs import KernelCost


def forward(
    batch: int, length: int, vocabulary: int, stablemax: bool, element: int = 2, block: int = 128
) -> Iterator[KernelCost]:
    """The launch of one forward call: logits and labels in; loss, what the backward keeps, argmax and counts out."""
    tokens = batch * length
    kept = 4 if stablemax else 8
    counts = 8 * batch * -(length // -block)
    size = tokens * (element * vocabulary + 8 + 4 + kept + 8) + counts
    yield KernelCost("token_loss.forward", 0, 0, size, tokens * vocabulary)


def backward(batch: int, length: int, vocabulary: int, stablemax: bool, element: int = 2) -> Iterator[KernelCost]:
    """The launch of one backward call: logits, labels, what was kept and d_loss in; d_logits out."""
    tokens = batch * length
    kept = 4 if stablemax else 8
    size = tokens * (2 * element * vocabulary + 8 + 4 + kept)
    yield KernelCost("token_loss.backward", 0, 0, size, tokens * vocabulary)
