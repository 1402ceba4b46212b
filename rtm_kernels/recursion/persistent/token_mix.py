"""Phase 1 of a layer: the sum of a step's terms and the MLP over the sequence, one tile per (sample, D block)."""

from __future__ import annotations

import triton
import triton.language as tl

from rtm_kernels.recursion.persistent.device import load_normed


@triton.jit
def sum_terms(latents_ptr, partials_ptr, terms_ptr, n_terms, rows, offs_d, mask, mask_rows, B, eps,
              L: tl.constexpr, D: tl.constexpr, N_PARTS: tl.constexpr,
              BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Sum of the listed latents from left to right in float32; a term is 2 * slot + pending."""
    total = tl.zeros((BLOCK_L, BLOCK_D), tl.float32)
    slot_rows = B.to(tl.int64) * L
    k = 0
    while k < n_terms:
        term = tl.load(terms_ptr + k)
        first_row = (term // 2) * slot_rows
        total += load_normed(latents_ptr + first_row * D, partials_ptr + first_row * N_PARTS, rows, offs_d,
                             mask, mask_rows, term % 2, eps, D, N_PARTS)  # fmt: skip
        k += 1
    return total


@triton.jit
def mixer_mlp(h, weights_ptr, L: tl.constexpr, INNER_L: tl.constexpr, DOWN_AT: tl.constexpr,
              BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr):  # fmt: skip
    """`down(silu(gate h) * (up h))` over the sequence of h [BLOCK_L, BLOCK_D], in float32; rows from L on are 0."""
    STRIDE_L: tl.constexpr = (L + 7) // 8 * 8
    STRIDE_I: tl.constexpr = (INNER_L + 7) // 8 * 8
    offs_l = tl.arange(0, BLOCK_L)
    out = tl.zeros((BLOCK_L, BLOCK_D), tl.float32)
    for i0 in range(0, INNER_L, BLOCK_I):
        offs_i = i0 + tl.arange(0, BLOCK_I)
        mask_i = offs_i < INNER_L
        gate_ptrs = weights_ptr + offs_i[:, None] * STRIDE_L + offs_l[None, :]
        mask_gate = mask_i[:, None] & (offs_l[None, :] < STRIDE_L)  # the padding of a row holds zeros
        w_gate = tl.load(gate_ptrs, mask_gate, other=0.0)
        w_up = tl.load(gate_ptrs + INNER_L * STRIDE_L, mask_gate, other=0.0)
        gate = tl.dot(w_gate, h, input_precision="ieee")  # [BLOCK_I, BLOCK_D]
        up = tl.dot(w_up, h, input_precision="ieee")
        inner = (gate * tl.sigmoid(gate) * up).to(h.dtype)
        down_ptrs = weights_ptr + DOWN_AT + offs_l[:, None] * STRIDE_I + offs_i[None, :]
        w_down = tl.load(down_ptrs, (offs_l[:, None] < L) & mask_i[None, :], other=0.0)
        out = tl.dot(w_down, inner, out, input_precision="ieee")
    return out


@triton.jit
def token_mix_phase(mixed_ptr, mixed_partials_ptr, latents_ptr, partials_ptr, weights_ptr,
                    state_ptr, n_state, inject_ptr, n_inject, B, eps,
                    L: tl.constexpr, D: tl.constexpr, INNER_L: tl.constexpr, DOWN_AT: tl.constexpr,
                    N_PARTS: tl.constexpr, NORM_HIDDEN: tl.constexpr,
                    BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr):  # fmt: skip
    """mixed <- norm(h + mlp over L of h), h = (sum of state) + (sum of inject).

    With NORM_HIDDEN the rows are stored un-normalised, with their partial sums of squares per D block.
    """
    N_D: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    offs_l = tl.arange(0, BLOCK_L)
    mask_l = offs_l < L
    tile = tl.program_id(0)
    while tile < B * N_D:
        sample = tile // N_D
        offs_d = (tile % N_D) * BLOCK_D + tl.arange(0, BLOCK_D)
        rows = sample.to(tl.int64) * L + offs_l
        mask = mask_l[:, None] & (offs_d[None, :] < D)
        state = sum_terms(latents_ptr, partials_ptr, state_ptr, n_state, rows, offs_d, mask, mask_l, B, eps,
                          L, D, N_PARTS, BLOCK_L, BLOCK_D)  # fmt: skip
        inject = sum_terms(latents_ptr, partials_ptr, inject_ptr, n_inject, rows, offs_d, mask, mask_l, B, eps,
                           L, D, N_PARTS, BLOCK_L, BLOCK_D)  # fmt: skip
        h = (state + inject).to(mixed_ptr.dtype.element_ty)
        mlp = mixer_mlp(h, weights_ptr, L, INNER_L, DOWN_AT, BLOCK_L, BLOCK_D, BLOCK_I)
        y = (h.to(tl.float32) + mlp).to(h.dtype).to(tl.float32)
        if NORM_HIDDEN:
            tl.store(mixed_partials_ptr + rows * N_D + tile % N_D, tl.sum(y * y, axis=1), mask_l)
        else:
            y *= tl.rsqrt(tl.sum(y * y, axis=0) / L + eps)[None, :]
        tl.store(mixed_ptr + rows[:, None] * D + offs_d[None, :], y, mask)
        tile += tl.num_programs(0)
