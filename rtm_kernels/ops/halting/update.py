"""Kernel of one halting update: head, policy, state and compaction index in one launch of one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.halting.launch import TABLE
from rtm_kernels.ops.halting.reference import HaltingState
from rtm_kernels.ops.launch import launch, select


@triton.jit
def first_position_head(
    logits_ptr, y_ptr, weight_ptr, bias_ptr, y_stride_b, offs_b, mask_b, D,
    HAS_BIAS: tl.constexpr, K: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`y[:, 0] w^T + b` [BLOCK_B] for each of the K rows of w, stored and returned."""
    offs_d = tl.arange(0, BLOCK_D)
    first = tl.zeros((BLOCK_B,), dtype=tl.float32)
    second = tl.zeros((BLOCK_B,), dtype=tl.float32)
    for d in range(0, D, BLOCK_D):
        mask_d = d + offs_d < D
        y_ptrs = y_ptr + offs_b[:, None] * y_stride_b + (d + offs_d)[None, :]
        y = tl.load(y_ptrs, mask=mask_b[:, None] & mask_d[None, :], other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + d + offs_d, mask=mask_d, other=0.0).to(tl.float32)
        first += tl.sum(y * weight[None, :], axis=1)
        if K == 2:
            weight = tl.load(weight_ptr + D + d + offs_d, mask=mask_d, other=0.0).to(tl.float32)
            second += tl.sum(y * weight[None, :], axis=1)
    if HAS_BIAS:
        first += tl.load(bias_ptr).to(tl.float32)
        second += tl.load(bias_ptr + (K - 1)).to(tl.float32)
    tl.store(logits_ptr + offs_b * K, first, mask=mask_b)
    if K == 2:
        tl.store(logits_ptr + offs_b * K + 1, second, mask=mask_b)
    return first, second


@triton.jit
def update_kernel(
    steps_ptr, active_ptr, accumulated_ptr, step_weight_ptr, remainder_ptr, alive_ptr, order_ptr, count_ptr,
    logits_ptr, y_ptr, weight_ptr, bias_ptr, change_ptr, min_steps_ptr, tol, max_steps, min_steps, B, U, D, y_stride_b,
    POLICY: tl.constexpr, FIRST: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MIN: tl.constexpr, K: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ORDER: tl.constexpr,
):  # fmt: skip
    """One ACT step of the state [B, U] in place, then the order [B] that lists active samples first."""
    offs_u = tl.arange(0, BLOCK_U)
    count = tl.zeros((), dtype=tl.int32)
    for b in range(0, B, BLOCK_B):
        offs_b = (b + tl.arange(0, BLOCK_B)).to(tl.int64)
        mask_b = offs_b < B
        least = tl.full((BLOCK_B,), 0, dtype=tl.int32) + min_steps
        if HAS_MIN:
            least = tl.load(min_steps_ptr + offs_b, mask=mask_b, other=0)
        if FIRST:
            halt, carry_on = first_position_head(
                logits_ptr, y_ptr, weight_ptr, bias_ptr, y_stride_b, offs_b, mask_b, D, HAS_BIAS, K, BLOCK_B, BLOCK_D
            )
            halt, carry_on = halt[:, None], carry_on[:, None]
        alive = tl.zeros((BLOCK_B,), dtype=tl.int32)
        for u in range(0, U, BLOCK_U):
            unit = offs_b[:, None] * U + (u + offs_u)[None, :]
            mask = mask_b[:, None] & (u + offs_u < U)[None, :]
            active = tl.load(active_ptr + unit, mask=mask, other=0) != 0
            steps = tl.load(steps_ptr + unit, mask=mask, other=0) + active.to(tl.int32)
            accumulated = tl.load(accumulated_ptr + unit, mask=mask, other=0.0)
            p = tl.full((BLOCK_B, BLOCK_U), 1.0, dtype=tl.float32)
            wants = tl.full((BLOCK_B, BLOCK_U), 0, dtype=tl.int1)
            if POLICY == "settle":
                wants = wants | (tl.load(change_ptr + offs_b, mask=mask_b, other=1.0) < tol)[:, None]
            elif POLICY != "fixed":
                if not FIRST:
                    halt = tl.load(logits_ptr + unit * K, mask=mask, other=0.0)
                    carry_on = tl.load(logits_ptr + unit * K + (K - 1), mask=mask, other=0.0)
                if POLICY == "q":
                    wants = wants | (halt > 0)
                elif POLICY == "q_continue":
                    wants = wants | (halt > carry_on)
                else:
                    p = p / (1.0 + tl.exp(-halt))
                    wants = accumulated + p >= 1.0
            halts = active & ((wants & (steps >= least[:, None])) | (steps >= max_steps))
            if POLICY == "cumulative_sequence" or POLICY == "cumulative_token":
                left = 1.0 - accumulated
                p = tl.where(halts | (p > left), left, p)
                tl.store(accumulated_ptr + unit, accumulated + p, mask=mask & active)
                tl.store(remainder_ptr + unit, left, mask=mask & active)
            tl.store(step_weight_ptr + unit, tl.where(active, p, 0.0), mask=mask)
            tl.store(steps_ptr + unit, steps, mask=mask)
            active = active & (halts == 0)
            tl.store(active_ptr + unit, active.to(tl.uint8), mask=mask)
            alive = tl.maximum(alive, tl.max(active.to(tl.int32), axis=1))
        tl.store(alive_ptr + offs_b, alive, mask=mask_b)
        count += tl.sum(alive, axis=0)

    tl.store(count_ptr, count)
    tl.debug_barrier()  # the flags just stored are read by other threads
    next_active, next_idle = count * 0, count
    for b in range(0, B, BLOCK_ORDER):
        offs_b = b + tl.arange(0, BLOCK_ORDER)
        alive = tl.load(alive_ptr + offs_b, mask=offs_b < B, other=0)
        idle = (offs_b < B).to(tl.int32) - alive
        place = tl.where(alive > 0, next_active + tl.cumsum(alive, 0), next_idle + tl.cumsum(idle, 0)) - 1
        tl.store(order_ptr + place, offs_b, mask=offs_b < B)
        next_active += tl.sum(alive, axis=0)
        next_idle += tl.sum(idle, axis=0)


def update(
    state: HaltingState, order: Tensor, count: Tensor, logits: Tensor, policy: str, tol: float, max_steps: int,
    min_steps: int | Tensor, first: tuple[Tensor, Tensor, Tensor | None] | None = None, change: Tensor | None = None,
) -> None:  # fmt: skip
    """Advance the state in place and write order [B] and count [1] int32.

    `logits` [B, U, K] is read, or written when `first` = (y [B, L, D], weight, bias) gives the head of y[:, 0].
    """
    batch, units = state.steps.shape
    row = select(TABLE, "halting.update", state.weight.dtype, units)
    y, weight, bias = first if first is not None else (logits, logits, None)
    each = isinstance(min_steps, Tensor)
    launch(
        update_kernel, row, (1,),
        state.steps, state.active.view(torch.uint8), state.accumulated, state.weight, state.remainder,
        torch.empty_like(order), order, count, logits, y, weight, weight if bias is None else bias,
        state.weight if change is None else change, min_steps if each else state.steps,
        tol, max_steps, 0 if each else min_steps, batch, units, y.shape[-1], y.stride(0),
        POLICY=policy, FIRST=first is not None, HAS_BIAS=bias is not None, HAS_MIN=each, K=logits.shape[-1],
        BLOCK_ORDER=256,
    )  # fmt: skip
