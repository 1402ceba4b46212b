"""Device functions that the phases of the persistent kernel share: the grid barrier and the pending row norm."""

from __future__ import annotations

import triton
import triton.language as tl

GRID_LIMIT = tl.constexpr(1 << 16)
"""Programs per launch stay below this; each barrier adds exactly this much to the counter."""

POLLS = tl.constexpr(1 << 23)
"""How often a program looks whether a barrier has opened before it gives up: seconds; a phase takes microseconds."""


@triton.jit
def arrival(program, n_programs):
    """What a program adds to the counter: GRID_LIMIT - (n - 1) for program 0 and 1 for the n - 1 others."""
    return tl.where(program == 0, GRID_LIMIT - n_programs + 1, 1).to(tl.int64)


@triton.jit
def has_opened(before, now):
    """Whether the barrier has opened for a program that found the counter at `before`: the bit GRID_LIMIT flipped."""
    return ((before ^ now) & GRID_LIMIT) != 0


@triton.jit
def grid_barrier(barrier_ptr, failed_ptr, B):
    """Wait until every program of the launch has arrived; what any of them stored before is visible to all after.

    The bit GRID_LIMIT of the int64 counter flips when the last program arrives. The counter only grows and nothing
    is ever reset: not between barriers, not between launches or graph replays, and launches of other grid sizes may
    share it. Returns B, the number of samples that the caller has to do. Where a program does not arrive within POLLS
    looks the launch has failed: `failed_ptr` is set, nobody has anything to do any more, and nobody waits again.
    """
    share = arrival(tl.program_id(0), tl.num_programs(0))
    tl.debug_barrier()  # the stores of all warps come before the release
    before = tl.atomic_add(barrier_ptr, share, sem="release", scope="gpu")
    looks = tl.where(B > 0, POLLS, 0)
    opened = B < 0
    while looks > 0:
        opened = has_opened(before, tl.atomic_add(barrier_ptr, 0, sem="acquire", scope="gpu"))
        looks = tl.where(opened, 0, looks - 1)
    tl.debug_barrier()  # no warp loads before the acquire
    tl.store(failed_ptr, 1, mask=opened == 0)
    return tl.where(opened, B, 0)


@triton.jit
def row_scale(partials_ptr, rows, mask_rows, eps, D: tl.constexpr, N_PARTS: tl.constexpr):
    """`rsqrt(mean(x^2) + eps)` of rows [R] from their partial sums of squares partials[row, N_PARTS]."""
    PADDED: tl.constexpr = triton.next_power_of_2(N_PARTS)
    parts = tl.arange(0, PADDED)
    mask = mask_rows[:, None] & (parts[None, :] < N_PARTS)
    squares = tl.load(partials_ptr + rows[:, None] * N_PARTS + parts[None, :], mask, other=0.0, cache_modifier=".cg")
    return tl.rsqrt(tl.sum(squares, axis=1) / D + eps)


@triton.jit
def load_normed(x_ptr, partials_ptr, rows, offs_d, mask, mask_rows, pending, eps,
                D: tl.constexpr, N_PARTS: tl.constexpr):  # fmt: skip
    """Rows [R] x columns [C] of x [.., D] in float32; unless `pending` is 0, x is still to be normalised over D."""
    x = tl.load(x_ptr + rows[:, None] * D + offs_d[None, :], mask, other=0.0, cache_modifier=".cg")
    is_pending = tl.full(rows.shape, pending, tl.int32) != 0
    scale = row_scale(partials_ptr, rows, mask_rows & is_pending, eps, D, N_PARTS)
    scale = tl.where(is_pending, scale, 1.0)
    return (x.to(tl.float32) * scale[:, None]).to(x.dtype).to(tl.float32)
