"""Bytes of the halting kernel; its products are vector sums, which are not counted as matrix FLOPs."""

from __future__ import annotations

from benchmarks.costs import KernelCost


def step(
    batch: int, length: int, width: int, seq_len: int, vocabulary: int, latents: int = 1, element: int = 2
) -> KernelCost:  # fmt: skip
    """One halting step of B samples: logits [S, V] and so many latents [L, D] read, the row of each sample changed."""
    read = element * (seq_len * vocabulary + latents * length * width)
    # answers are read and written and the best of them written, as are about ten numbers of 4 or 8 bytes
    return KernelCost("halting.step", 0, 0, batch * (read + 3 * 4 * seq_len + 112), 4 * batch * (latents > 1))
