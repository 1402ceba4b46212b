"""The last phase of an ACT step: the halting head at every position, and how far the output latent has moved."""

from __future__ import annotations

import triton
import triton.language as tl

from rtm_kernels.ops.halting.signals import head_of, relative_change


@triton.jit
def head_tiles(q_ptr, y_ptr, weight_ptr, bias_ptr, B, L: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr):
    """q [B * L, 2] <- y w^T + bias in float32, w [2, D]; one tile per block of rows."""
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    n_rows = B * L
    tile = tl.program_id(0)
    while tile < tl.cdiv(n_rows, BLOCK_R):
        rows = tile.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask_rows = rows < n_rows
        for k in tl.static_range(2):
            logit = head_of(y_ptr, weight_ptr + k * D, bias_ptr + k, rows, mask_rows, D, 1, D, True, False,
                            BLOCK_R, BLOCK_D)  # fmt: skip
            tl.store(q_ptr + 2 * rows + k, logit, mask_rows)
        tile += tl.num_programs(0)


@triton.jit
def change_tiles(change_ptr, y_ptr, previous_ptr, B, L: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr):
    """change [B] <- |y - previous| / |y|; one sample per program, so that its sum has one order."""
    sample = tl.num_programs(0) - 1 - tl.program_id(0)  # the last programs have fewer tiles of the head
    while sample < B:
        start = sample.to(tl.int64) * L * D
        change = relative_change(
            y_ptr + start, previous_ptr + start, D, 1, D, 1, L, D, BLOCK_R, triton.next_power_of_2(D)
        )
        tl.store(change_ptr + sample, change)
        sample += tl.num_programs(0)
