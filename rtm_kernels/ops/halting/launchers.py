"""The launch of one halting step."""

from __future__ import annotations

import torch
from torch import Tensor

from rtm_kernels.ops.halting.launch import TABLE
from rtm_kernels.ops.halting.reference import HaltingState
from rtm_kernels.ops.halting.step import halting_kernel
from rtm_kernels.ops.launch import launch, select


def halting_step(
    state: HaltingState, y: Tensor, logits: Tensor, head: tuple[Tensor, Tensor | None] | None,
    latents: tuple[Tensor, Tensor | None, Tensor | None] | None, policy: str, pool: str, tol: float, max_steps: int,
    min_steps: int | Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Advance the state in place; order [B] and count [1] int32. Writes the logits [B, U, K] if there is a `head`.

    y [B, L, D], `head` its contiguous weight and bias, `latents` the previous y and both contiguous answers; y and the
    previous y may have any strides.
    """
    batch, length, width = y.shape
    order, count = state.steps.new_empty(batch), state.steps.new_zeros(1)
    if state.steps.numel() == 0:
        return order.copy_(torch.arange(batch, dtype=order.dtype, device=order.device)), count
    weight, bias = head if head is not None else (y, None)
    previous, answer, previous_answer = latents if latents is not None else (y, None, None)
    each, units = isinstance(min_steps, Tensor), state.steps.shape[1]
    rows = length if policy == "settle" or pool != "first" else 1
    row = select(TABLE, "halting.step", y.dtype, rows)
    launch(
        halting_kernel, row, (batch,),
        state.steps, state.active.view(torch.uint8), state.accumulated, state.weight, state.remainder,
        torch.empty_like(order), order, count, logits, y, weight, weight if bias is None else bias,
        previous, y if answer is None else answer, y if previous_answer is None else previous_answer,
        min_steps if each else state.steps, tol, max_steps, 0 if each else min_steps,
        units, length, width, 0 if answer is None else answer[0].numel(), *y.stride(), *previous.stride(),
        POLICY=policy, POOL=pool, HAS_BIAS=bias is not None, HAS_ANSWER=answer is not None, HAS_MIN=each,
        K=logits.shape[-1],
    )  # fmt: skip
    return order, count
