"""Kernel of one halting step: signal, policy and state of each sample in a program of its own, then the order."""

from __future__ import annotations

import triton
import triton.language as tl

from rtm_kernels.ops.halting.signals import differing, head_of, relative_change


@triton.jit
def update_units(
    steps_ptr, active_ptr, accumulated_ptr, step_weight_ptr, remainder_ptr, unit, mask, halt, carry_on, least,
    max_steps, POLICY: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """The state of the units after one more ACT step, in place; returns which of them are still active, int32."""
    active = tl.load(active_ptr + unit, mask=mask, other=0) != 0
    steps = tl.load(steps_ptr + unit, mask=mask, other=0) + active.to(tl.int32)
    p = tl.full((BLOCK_L,), 1.0, dtype=tl.float32)
    if POLICY == "cumulative_sequence" or POLICY == "cumulative_token":
        accumulated = tl.load(accumulated_ptr + unit, mask=mask, other=0.0)
        p = p / (1.0 + tl.exp(-halt))
        wants = accumulated + p >= 1.0
    elif POLICY == "q_continue":
        wants = halt > carry_on
    else:
        wants = halt > 0
    halts = active & ((wants & (steps >= least)) | (steps >= max_steps))
    if POLICY == "cumulative_sequence" or POLICY == "cumulative_token":
        left = 1.0 - accumulated
        p = tl.where(halts | (p > left), left, p)
        tl.store(accumulated_ptr + unit, accumulated + p, mask=mask & active)
        tl.store(remainder_ptr + unit, left, mask=mask & active)
    tl.store(step_weight_ptr + unit, tl.where(active, p, 0.0), mask=mask)
    tl.store(steps_ptr + unit, steps, mask=mask)
    active = active & (halts == 0)
    tl.store(active_ptr + unit, active.to(tl.uint8), mask=mask)
    return active.to(tl.int32)


@triton.jit
def order_samples(order_ptr, count_ptr, alive_ptr, B, BLOCK: tl.constexpr):
    """The order [B] that lists the samples whose flag is 1 first, both parts in batch order, and their number."""
    count = tl.zeros((), dtype=tl.int32)
    for b in range(0, B, BLOCK):
        offs_b = b + tl.arange(0, BLOCK)
        # other multiprocessors wrote the flags: not by way of this one's first cache
        count += tl.sum(tl.load(alive_ptr + offs_b, mask=offs_b < B, other=0, cache_modifier=".cg"), axis=0)
    tl.store(count_ptr, count)
    next_active, next_idle = count * 0, count
    for b in range(0, B, BLOCK):
        offs_b = b + tl.arange(0, BLOCK)
        alive = tl.load(alive_ptr + offs_b, mask=offs_b < B, other=0, cache_modifier=".cg")
        idle = (offs_b < B).to(tl.int32) - alive
        place = tl.where(alive > 0, next_active + tl.cumsum(alive, 0), next_idle + tl.cumsum(idle, 0)) - 1
        tl.store(order_ptr + place, offs_b, mask=offs_b < B)
        next_active += tl.sum(alive, axis=0)
        next_idle += tl.sum(idle, axis=0)


@triton.jit
def halting_kernel(
    steps_ptr, active_ptr, accumulated_ptr, step_weight_ptr, remainder_ptr, alive_ptr, order_ptr, count_ptr,
    logits_ptr, y_ptr, weight_ptr, bias_ptr, previous_ptr, answer_ptr, previous_answer_ptr, min_steps_ptr,
    tol, max_steps, min_steps, U, L, D, A,
    y_stride_b, y_stride_l, y_stride_d, previous_stride_b, previous_stride_l, previous_stride_d,
    POLICY: tl.constexpr, POOL: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ANSWER: tl.constexpr, HAS_MIN: tl.constexpr,
    K: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ORDER: tl.constexpr,
):  # fmt: skip
    """One ACT step of the state [B, U] in place, one program per sample; the one that arrives last writes the order.

    `count` is 0 before, counts the programs that have arrived, and is the number of active samples in the end.
    """
    sample = tl.program_id(0).to(tl.int64)
    y_ptr += sample * y_stride_b
    least = tl.load(min_steps_ptr + sample).to(tl.int32) if HAS_MIN else min_steps
    halt = tl.zeros((BLOCK_L,), dtype=tl.float32)
    carry_on = tl.zeros((BLOCK_L,), dtype=tl.float32)
    if POLICY == "settle":
        change = relative_change(
            y_ptr, previous_ptr + sample * previous_stride_b, y_stride_l, y_stride_d,
            previous_stride_l, previous_stride_d, L, D, BLOCK_L, BLOCK_D,
        )  # fmt: skip
        quiet = change < tol
        if HAS_ANSWER:
            quiet |= differing(answer_ptr + sample * A, previous_answer_ptr + sample * A, A, BLOCK_D) == 0
        halt += quiet.to(tl.float32)
    alive = tl.zeros((), dtype=tl.int32)
    for u in range(0, U, BLOCK_L):
        offs_u = u + tl.arange(0, BLOCK_L)
        mask, unit = offs_u < U, sample * U + offs_u
        if K > 0:
            halt, carry_on = head_of(
                y_ptr, weight_ptr, bias_ptr, u, y_stride_l, y_stride_d, L, D, POOL, HAS_BIAS, K, BLOCK_L, BLOCK_D
            )
            tl.store(logits_ptr + unit * K, halt, mask=mask)
            if K == 2:
                tl.store(logits_ptr + unit * K + 1, carry_on, mask=mask)
        active = update_units(
            steps_ptr, active_ptr, accumulated_ptr, step_weight_ptr, remainder_ptr, unit, mask, halt, carry_on, least,
            max_steps, POLICY, BLOCK_L,
        )  # fmt: skip
        alive = tl.maximum(alive, tl.max(active, axis=0))
    tl.store(alive_ptr + sample, alive)
    tl.debug_barrier()  # the flag of every warp comes before the arrival
    arrived = tl.atomic_add(count_ptr, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()  # no warp reads flags before it
    if arrived == tl.num_programs(0) - 1:
        order_samples(order_ptr, count_ptr, alive_ptr, tl.num_programs(0), BLOCK_ORDER)
