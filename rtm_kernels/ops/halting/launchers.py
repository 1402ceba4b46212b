"""Launch sequence of one halting step: the signal that needs many programs, if any, then the update."""

from __future__ import annotations

import torch
from torch import Tensor

from rtm_kernels.ops.halting import signals
from rtm_kernels.ops.halting.reference import HaltingState
from rtm_kernels.ops.halting.update import update


def halting_step(
    state: HaltingState, y: Tensor, logits: Tensor, head: tuple[Tensor, Tensor | None] | None,
    latents: tuple[Tensor, Tensor | None, Tensor | None] | None, policy: str, pool: str, tol: float, max_steps: int,
    min_steps: int | Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Advance the state in place; order [B] and count [1] int32. Writes the logits if there is a `head`.

    y [B, L, D] contiguous, `head` its weight and bias, `latents` the previous y and both answers.
    """
    batch = len(y)
    order, count = state.steps.new_empty(batch), state.steps.new_zeros(1)
    if state.steps.numel() == 0:
        return order.copy_(torch.arange(batch, dtype=order.dtype, device=order.device)), count
    first, change = None, None
    if head is not None and pool == "first":
        first = (y, *head)
    elif head is not None:
        signals.head(logits, y, *head, mean=pool == "mean")
    if latents is not None:
        previous, answer, previous_answer = latents
        change = y.new_empty(batch, dtype=torch.float32)
        answers = [None if t is None else t.contiguous() for t in (answer, previous_answer)]
        signals.change(change, y, previous, *answers)
    update(state, order, count, logits, policy, tol, max_steps, min_steps, first, change)
    return order, count
