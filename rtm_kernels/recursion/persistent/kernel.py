"""The persistent kernel: one cooperative launch runs a program and reads the halting head, in place."""

from __future__ import annotations

import triton
import triton.language as tl

from rtm_kernels.ops.halting.signals import head_of, relative_change
from rtm_kernels.recursion.persistent.channel import down_phase, gate_up_phase
from rtm_kernels.recursion.persistent.device import grid_barrier, load_normed
from rtm_kernels.recursion.persistent.token_mix import token_mix_phase


@triton.jit
def layer_phases(latents_ptr, partials_ptr, mixed_ptr, mixed_partials_ptr, inner_ptr, barrier_ptr, failed_ptr,
                 weights_ptr, row_ptr, B, eps, L: tl.constexpr, D: tl.constexpr, INNER_L: tl.constexpr,
                 INNER_D: tl.constexpr, MIX_DOWN_AT: tl.constexpr, GATE_UP_AT: tl.constexpr, DOWN_AT: tl.constexpr,
                 LAYER_SIZE: tl.constexpr, MAX_TERMS: tl.constexpr, NORM_HIDDEN: tl.constexpr, BLOCK_L: tl.constexpr,
                 MIX_D: tl.constexpr, MIX_I: tl.constexpr, UP_M: tl.constexpr, UP_I: tl.constexpr, UP_K: tl.constexpr,
                 DOWN_M: tl.constexpr, DOWN_D: tl.constexpr, DOWN_K: tl.constexpr):  # fmt: skip
    """One row of the tape, (dst, layer, n_state, n_inject, state terms, inject terms): latent[dst] <- layer(sum).

    Returns B, or 0 as `grid_barrier` does.
    """
    N_PARTS: tl.constexpr = (D + DOWN_D - 1) // DOWN_D
    N_MIXED_PARTS: tl.constexpr = (D + MIX_D - 1) // MIX_D
    dst_row = tl.load(row_ptr).to(tl.int64) * B * L
    layer_ptr = weights_ptr + tl.load(row_ptr + 1).to(tl.int64) * LAYER_SIZE
    token_mix_phase(mixed_ptr, mixed_partials_ptr, latents_ptr, partials_ptr, layer_ptr,
                    row_ptr + 4, tl.load(row_ptr + 2), row_ptr + 4 + MAX_TERMS, tl.load(row_ptr + 3), B, eps,
                    L, D, INNER_L, MIX_DOWN_AT, N_PARTS, NORM_HIDDEN, BLOCK_L, MIX_D, MIX_I)  # fmt: skip
    B = grid_barrier(barrier_ptr, failed_ptr, B)
    gate_up_phase(inner_ptr, mixed_ptr, mixed_partials_ptr, layer_ptr + GATE_UP_AT, B, eps,
                  L, D, INNER_D, N_MIXED_PARTS, NORM_HIDDEN, UP_M, UP_I, UP_K)  # fmt: skip
    B = grid_barrier(barrier_ptr, failed_ptr, B)
    down_phase(latents_ptr + dst_row * D, partials_ptr + dst_row * N_PARTS, inner_ptr, mixed_ptr, mixed_partials_ptr,
               layer_ptr + DOWN_AT, B, eps, L, D, INNER_D, N_MIXED_PARTS, NORM_HIDDEN,
               DOWN_M, DOWN_D, DOWN_K)  # fmt: skip
    return grid_barrier(barrier_ptr, failed_ptr, B)


@triton.jit
def norm_phase(latents_ptr, partials_ptr, slots_ptr, n_slots, B, eps,
               L: tl.constexpr, D: tl.constexpr, N_PARTS: tl.constexpr, BLOCK_R: tl.constexpr):  # fmt: skip
    """Normalise in place, over D, every latent that the program has written; one tile per (slot, row block)."""
    PADDED: tl.constexpr = triton.next_power_of_2(D)
    offs_d = tl.arange(0, PADDED)
    n_rows = B * L
    n_blocks = tl.cdiv(n_rows, BLOCK_R)
    tile = tl.program_id(0)
    while tile < n_slots * n_blocks:
        first_row = tl.load(slots_ptr + tile // n_blocks).to(tl.int64) * n_rows
        rows = (tile % n_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask_rows = rows < n_rows
        mask = mask_rows[:, None] & (offs_d[None, :] < D)
        x_ptr = latents_ptr + first_row * D
        y = load_normed(x_ptr, partials_ptr + first_row * N_PARTS, rows, offs_d, mask, mask_rows, True, eps,
                        D, N_PARTS)  # fmt: skip
        tl.store(x_ptr + rows[:, None] * D + offs_d[None, :], y, mask)
        tile += tl.num_programs(0)


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


@triton.jit(do_not_specialize=["B", "n_rows", "n_written", "output"])
def recursion_kernel(
    latents_ptr, q_ptr, change_ptr, partials_ptr, mixed_ptr, mixed_partials_ptr, inner_ptr, barrier_ptr, failed_ptr,
    weights_ptr, tape_ptr, written_ptr, previous_ptr, head_weight_ptr, head_bias_ptr,
    B, n_rows, n_written, output, eps,
    L: tl.constexpr, D: tl.constexpr, INNER_L: tl.constexpr, INNER_D: tl.constexpr,
    MIX_DOWN_AT: tl.constexpr, GATE_UP_AT: tl.constexpr, DOWN_AT: tl.constexpr, LAYER_SIZE: tl.constexpr,
    MAX_TERMS: tl.constexpr, NORM_HIDDEN: tl.constexpr, HAS_HEAD: tl.constexpr, HAS_CHANGE: tl.constexpr,
    BLOCK_L: tl.constexpr, MIX_D: tl.constexpr, MIX_I: tl.constexpr,
    UP_M: tl.constexpr, UP_I: tl.constexpr, UP_K: tl.constexpr,
    DOWN_M: tl.constexpr, DOWN_D: tl.constexpr, DOWN_K: tl.constexpr, NORM_R: tl.constexpr,
):  # fmt: skip
    """One ACT step: the tape of n_rows rows over latents [n, B, L, D] in place, then the head of latent `output`.

    q [B, L, 2] float32 is written with HAS_HEAD, and with HAS_CHANGE change [B], from `previous` [B, L, D]; `failed`
    is set where a barrier did not open.
    """
    N_PARTS: tl.constexpr = (D + DOWN_D - 1) // DOWN_D
    ROW: tl.constexpr = 4 + 2 * MAX_TERMS
    for i in tl.range(0, n_rows, disable_licm=True):  # hoisted offsets of all phases would fill the registers
        B = layer_phases(latents_ptr, partials_ptr, mixed_ptr, mixed_partials_ptr, inner_ptr, barrier_ptr, failed_ptr,
                         weights_ptr, tape_ptr + i * ROW, B, eps, L, D, INNER_L, INNER_D, MIX_DOWN_AT, GATE_UP_AT,
                         DOWN_AT, LAYER_SIZE, MAX_TERMS, NORM_HIDDEN, BLOCK_L, MIX_D, MIX_I, UP_M, UP_I, UP_K,
                         DOWN_M, DOWN_D, DOWN_K)  # fmt: skip
    norm_phase(latents_ptr, partials_ptr, written_ptr, n_written, B, eps, L, D, N_PARTS, NORM_R)
    if HAS_HEAD or HAS_CHANGE:
        B = grid_barrier(barrier_ptr, failed_ptr, B)
        y_ptr = latents_ptr + output.to(tl.int64) * B * L * D
        if HAS_HEAD:
            head_tiles(q_ptr, y_ptr, head_weight_ptr, head_bias_ptr, B, L, D, NORM_R)
        if HAS_CHANGE:
            change_tiles(change_ptr, y_ptr, previous_ptr, B, L, D, NORM_R)
