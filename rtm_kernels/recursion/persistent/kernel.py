"""The persistent kernel: one cooperative launch interprets a program, ACT step after ACT step, in place."""

from __future__ import annotations

import triton
import triton.language as tl

from rtm_kernels.recursion.persistent.channel import down_phase, gate_up_phase
from rtm_kernels.recursion.persistent.device import count_busy, grid_barrier
from rtm_kernels.recursion.persistent.halting import halting_phase
from rtm_kernels.recursion.persistent.norm import norm_phase
from rtm_kernels.recursion.persistent.token_mix import token_mix_phase


@triton.jit
def layer_phases(latents_ptr, partials_ptr, mixed_ptr, mixed_partials_ptr, inner_ptr, busy_ptr, barrier_ptr,
                 weights_ptr, row_ptr, B, eps, L: tl.constexpr, D: tl.constexpr, INNER_L: tl.constexpr,
                 INNER_D: tl.constexpr, MIX_DOWN_AT: tl.constexpr, GATE_UP_AT: tl.constexpr, DOWN_AT: tl.constexpr,
                 LAYER_SIZE: tl.constexpr, MAX_TERMS: tl.constexpr, NORM_HIDDEN: tl.constexpr, BLOCK_L: tl.constexpr,
                 MIX_D: tl.constexpr, MIX_I: tl.constexpr, UP_M: tl.constexpr, UP_I: tl.constexpr, UP_K: tl.constexpr,
                 DOWN_M: tl.constexpr, DOWN_D: tl.constexpr, DOWN_K: tl.constexpr):  # fmt: skip
    """One row of the tape, (dst, layer, n_state, n_inject, state terms, inject terms): latent[dst] <- layer(sum)."""
    N_PARTS: tl.constexpr = (D + DOWN_D - 1) // DOWN_D
    N_MIXED_PARTS: tl.constexpr = (D + MIX_D - 1) // MIX_D
    dst_row = tl.load(row_ptr).to(tl.int64) * B * L
    layer_ptr = weights_ptr + tl.load(row_ptr + 1).to(tl.int64) * LAYER_SIZE
    token_mix_phase(mixed_ptr, mixed_partials_ptr, latents_ptr, partials_ptr, busy_ptr, layer_ptr,
                    row_ptr + 4, tl.load(row_ptr + 2), row_ptr + 4 + MAX_TERMS, tl.load(row_ptr + 3), B, eps,
                    L, D, INNER_L, MIX_DOWN_AT, N_PARTS, NORM_HIDDEN, BLOCK_L, MIX_D, MIX_I)  # fmt: skip
    grid_barrier(barrier_ptr)
    gate_up_phase(inner_ptr, mixed_ptr, mixed_partials_ptr, busy_ptr, layer_ptr + GATE_UP_AT, B, eps,
                  L, D, INNER_D, N_MIXED_PARTS, NORM_HIDDEN, UP_M, UP_I, UP_K)  # fmt: skip
    grid_barrier(barrier_ptr)
    down_phase(latents_ptr + dst_row * D, partials_ptr + dst_row * N_PARTS, inner_ptr, mixed_ptr, mixed_partials_ptr,
               busy_ptr, layer_ptr + DOWN_AT, B, eps, L, D, INNER_D, N_MIXED_PARTS, NORM_HIDDEN,
               DOWN_M, DOWN_D, DOWN_K)  # fmt: skip
    grid_barrier(barrier_ptr)


@triton.jit(do_not_specialize=["B", "n_rows", "n_written", "output_slot", "act_steps", "max_steps"])
def recursion_kernel(
    latents_ptr, partials_ptr, mixed_ptr, mixed_partials_ptr, inner_ptr, busy_ptr, barrier_ptr,
    logits_ptr, steps_ptr, active_ptr, accumulated_ptr, weight_ptr, remainder_ptr, previous_ptr,
    weights_ptr, tape_ptr, written_ptr, head_ptr, min_steps_ptr,
    B, n_rows, n_written, output_slot, act_steps, max_steps, eps, tolerance,
    L: tl.constexpr, D: tl.constexpr, INNER_L: tl.constexpr, INNER_D: tl.constexpr,
    MIX_DOWN_AT: tl.constexpr, GATE_UP_AT: tl.constexpr, DOWN_AT: tl.constexpr, LAYER_SIZE: tl.constexpr,
    MAX_TERMS: tl.constexpr, NORM_HIDDEN: tl.constexpr, POLICY: tl.constexpr, POOL: tl.constexpr,
    BLOCK_L: tl.constexpr, MIX_D: tl.constexpr, MIX_I: tl.constexpr,
    UP_M: tl.constexpr, UP_I: tl.constexpr, UP_K: tl.constexpr,
    DOWN_M: tl.constexpr, DOWN_D: tl.constexpr, DOWN_K: tl.constexpr, NORM_R: tl.constexpr,
):  # fmt: skip
    """Run the tape of n_rows rows at most `act_steps` times, or until no sample is busy.

    latents [slots, B, L, D] are updated in place; inactive samples keep every bit. Under POLICY "none" nothing
    halts.
    """
    N_PARTS: tl.constexpr = (D + DOWN_D - 1) // DOWN_D
    ROW: tl.constexpr = 4 + 2 * MAX_TERMS
    for _ in tl.range(0, act_steps, disable_licm=True):  # hoisted offsets of all phases would fill the registers
        if count_busy(busy_ptr, B) > 0:
            for i in tl.range(0, n_rows, disable_licm=True):
                layer_phases(latents_ptr, partials_ptr, mixed_ptr, mixed_partials_ptr, inner_ptr, busy_ptr,
                             barrier_ptr, weights_ptr, tape_ptr + i * ROW, B, eps, L, D, INNER_L, INNER_D,
                             MIX_DOWN_AT, GATE_UP_AT, DOWN_AT, LAYER_SIZE, MAX_TERMS, NORM_HIDDEN, BLOCK_L,
                             MIX_D, MIX_I, UP_M, UP_I, UP_K, DOWN_M, DOWN_D, DOWN_K)  # fmt: skip
            norm_phase(latents_ptr, partials_ptr, busy_ptr, written_ptr, n_written, B, eps, L, D, N_PARTS, NORM_R)
            grid_barrier(barrier_ptr)
            if POLICY != "none":
                y_ptr = latents_ptr + output_slot.to(tl.int64) * B * L * D
                halting_phase(logits_ptr, steps_ptr, active_ptr, accumulated_ptr, weight_ptr, remainder_ptr, busy_ptr,
                              previous_ptr, y_ptr, head_ptr, min_steps_ptr, max_steps, tolerance, B, L, D, POLICY,
                              POOL, NORM_R)  # fmt: skip
                grid_barrier(barrier_ptr)
