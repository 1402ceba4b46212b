"""The last phase of an ACT step: halting head, halting update of every unit, and which samples go on."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def update_units(steps_ptr, active_ptr, accumulated_ptr, weight_ptr, remainder_ptr, units, mask, q_halt, q_continue,
                 min_steps, max_steps, POLICY: tl.constexpr):  # fmt: skip
    """The halting update of the units [U] after one more ACT step; returns which of them are still active."""
    active = mask & (tl.load(active_ptr + units, mask, other=0, cache_modifier=".cg") != 0)
    steps = tl.load(steps_ptr + units, mask, other=0, cache_modifier=".cg") + 1
    accumulated = tl.load(accumulated_ptr + units, mask, other=0.0, cache_modifier=".cg")
    weight = tl.full(steps.shape, 1.0, tl.float32)
    if POLICY == "q" or POLICY == "settle":
        wants = q_halt > 0
    elif POLICY == "q_continue":
        wants = q_halt > q_continue
    elif POLICY == "fixed":
        wants = steps < 0
    else:
        weight = tl.sigmoid(q_halt)
        wants = accumulated + weight >= 1.0
    halts = active & ((wants & (steps >= min_steps)) | (steps >= max_steps))
    if POLICY == "cumulative_sequence" or POLICY == "cumulative_token":
        left = 1.0 - accumulated
        weight = tl.where(halts, left, tl.minimum(weight, left))
        tl.store(accumulated_ptr + units, accumulated + weight, active)
        tl.store(remainder_ptr + units, left, active)
    tl.store(weight_ptr + units, tl.where(active, weight, 0.0), mask)
    tl.store(steps_ptr + units, steps, active)
    goes_on = active & (halts == 0)
    tl.store(active_ptr + units, goes_on.to(active_ptr.dtype.element_ty), active)
    return goes_on


@triton.jit
def load_rows(y_ptr, first_row, offs_l, length, D: tl.constexpr):
    """Rows offs_l below `length` of one sample, [R, D padded], in float32; the others are 0."""
    offs_d = tl.arange(0, triton.next_power_of_2(D))
    mask = (offs_l[:, None] < length) & (offs_d[None, :] < D)
    offs = (first_row + offs_l)[:, None] * D + offs_d[None, :]
    return tl.load(y_ptr + offs, mask, other=0.0, cache_modifier=".cg").to(tl.float32)


@triton.jit
def relative_change(y_ptr, previous_ptr, first_row, length, L: tl.constexpr, D: tl.constexpr,
                    BLOCK_R: tl.constexpr):  # fmt: skip
    """`|y - previous| / |y|` over the first `length` rows of one sample in float32; afterwards previous is y."""
    offs_d = tl.arange(0, triton.next_power_of_2(D))
    change = tl.zeros((BLOCK_R,), tl.float32)
    size = tl.zeros((BLOCK_R,), tl.float32)
    for l0 in range(0, L, BLOCK_R):
        offs_l = l0 + tl.arange(0, BLOCK_R)
        y = load_rows(y_ptr, first_row, offs_l, length, D)
        delta = y - load_rows(previous_ptr, first_row, offs_l, length, D)
        change += tl.sum(delta * delta, axis=1)
        size += tl.sum(y * y, axis=1)
        tl.debug_barrier()  # previous is overwritten by threads that may not have read it
        offs = (first_row + offs_l)[:, None] * D + offs_d[None, :]
        tl.store(previous_ptr + offs, y, (offs_l[:, None] < length) & (offs_d[None, :] < D))
    return tl.sqrt(tl.sum(change, axis=0)) / tl.maximum(tl.sqrt(tl.sum(size, axis=0)), 1e-30)


@triton.jit
def head_logits(y_ptr, head_ptr, first_row, offs_u, length, L: tl.constexpr, D: tl.constexpr, POOL: tl.constexpr,
                BLOCK_R: tl.constexpr):  # fmt: skip
    """Logits (q_halt, q_continue) of units offs_u [R] of one sample: of its tokens, or of one pooled row."""
    PADDED: tl.constexpr = triton.next_power_of_2(D)
    offs_d = tl.arange(0, PADDED)
    if POOL == "mean":
        pooled = tl.zeros((PADDED,), tl.float32)
        for l0 in range(0, L, BLOCK_R):
            pooled += tl.sum(load_rows(y_ptr, first_row, l0 + tl.arange(0, BLOCK_R), length, D), axis=0)
        y = tl.broadcast_to(pooled[None, :] / L, (BLOCK_R, PADDED))
    else:
        y = load_rows(y_ptr, first_row, offs_u, length if POOL == "token" else tl.minimum(length, 1), D)
    w_halt = tl.load(head_ptr + offs_d, offs_d < D, other=0.0)
    w_continue = tl.load(head_ptr + D + offs_d, offs_d < D, other=0.0)
    q_halt = tl.sum(y * w_halt[None, :], axis=1) + tl.load(head_ptr + 2 * D)
    return q_halt, tl.sum(y * w_continue[None, :], axis=1) + tl.load(head_ptr + 2 * D + 1)


@triton.jit
def halting_phase(logits_ptr, steps_ptr, active_ptr, accumulated_ptr, weight_ptr, remainder_ptr, busy_ptr,
                  previous_ptr, y_ptr, head_ptr, min_steps_ptr, max_steps, tolerance, B, L: tl.constexpr,
                  D: tl.constexpr, POLICY: tl.constexpr, POOL: tl.constexpr, BLOCK_R: tl.constexpr):  # fmt: skip
    """Halting logits and update of every sample, one program each; head [2, D] and bias [2] in float32.

    Under `settle` the margin `tolerance - relative change` stands for q_halt.
    """
    N_UNITS: tl.constexpr = L if POOL == "token" else 1
    sample = tl.program_id(0)
    while sample < B:
        busy = tl.load(busy_ptr + sample)
        length = busy * L  # a sample that is not busy is not read
        first_row = sample.to(tl.int64) * L
        min_steps = tl.load(min_steps_ptr + sample)
        n_active = tl.zeros((), tl.int32)
        if POLICY == "settle":
            change = relative_change(y_ptr, previous_ptr, first_row, length, L, D, BLOCK_R)
        for u0 in range(0, N_UNITS, BLOCK_R):
            offs_u = u0 + tl.arange(0, BLOCK_R)
            mask = offs_u < N_UNITS
            units = sample.to(tl.int64) * N_UNITS + offs_u
            q_halt = tl.zeros((BLOCK_R,), tl.float32)
            q_continue = tl.zeros((BLOCK_R,), tl.float32)
            if POLICY == "settle":
                q_halt += tolerance - change
            elif POLICY != "fixed":
                q_halt, q_continue = head_logits(y_ptr, head_ptr, first_row, offs_u, length, L, D, POOL, BLOCK_R)
                tl.store(logits_ptr + 2 * units, q_halt, offs_u < N_UNITS * busy)
                tl.store(logits_ptr + 2 * units + 1, q_continue, offs_u < N_UNITS * busy)
            goes_on = update_units(steps_ptr, active_ptr, accumulated_ptr, weight_ptr, remainder_ptr, units, mask,
                                   q_halt, q_continue, min_steps, max_steps, POLICY)  # fmt: skip
            n_active += tl.sum(goes_on.to(tl.int32), axis=0)
        tl.store(busy_ptr + sample, tl.minimum(n_active, 1))
        sample += tl.num_programs(0)
