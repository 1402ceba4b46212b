"""Bytes of the halting kernel; its products are vector sums, which are not counted as matrix FLOPs."""

from __future__ import annotations

from benchmarks.costs import KernelCost


def step(
    batch: int, length: int, width: int, *, tokens: int, vocabulary: int, others: int = 1, per_token: bool = False,
    element: int = 2,
) -> KernelCost:  # fmt: skip
    """The launch of one halting step over latents [B, L, D] and logits [B, tokens, vocabulary], `others` beside y.

    y is read for its change, and again to find what is not finite; per token once more, with the head.
    """
    latent, special = element * batch * length * width, 2 * batch
    row = 4 * (4 * tokens + 28)  # answers: two are read, two written
    total = (2 + 1 + others) * latent + element * batch * tokens * vocabulary + batch * (8 + row)
    if per_token:
        total += latent + batch * length * (8 + 8 + 4 + 4 + 4) + 4 * (width + 1) * batch * -(-length // 8)
    return KernelCost("halting.step", 0, 0, total, special)
