"""Bytes of the halting kernel; its products are vector sums, which are not counted as matrix FLOPs."""

from __future__ import annotations

from benchmarks.costs import KernelCost


def step(
    batch: int, length: int, width: int, *, tokens: int, vocabulary: int, others: int = 1, per_token: bool = False,
    element: int = 2,
) -> KernelCost:  # fmt: skip
    """The launch of one halting step over latents [B, L, D] and logits [B, tokens, vocabulary], `others` beside y.

    What is read twice counts once.
    """
    latent, special = element * batch * length * width, 2 * batch
    row = 4 * (3 * tokens + 18)  # the answers are read and written, the best one is written
    total = (2 + others) * latent + element * batch * tokens * vocabulary + batch * (4 + row)
    if per_token:
        total += batch * length * (8 + 8 + 4 + 4) + 4 * (width + 1)
    return KernelCost("halting.step", 0, 0, total, special)
