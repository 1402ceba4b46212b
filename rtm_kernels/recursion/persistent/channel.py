"""Phases 2 and 3 of a layer: the MLP over the channels, first its inner activations, then its output and residual."""

from __future__ import annotations

import triton
import triton.language as tl

from rtm_kernels.recursion.persistent.device import load_normed, row_scale


@triton.jit
def gate_up_phase(inner_ptr, mixed_ptr, mixed_partials_ptr, weights_ptr, B, eps,
                  L: tl.constexpr, D: tl.constexpr, INNER_D: tl.constexpr,
                  N_MIXED_PARTS: tl.constexpr, NORM_HIDDEN: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """inner <- silu(gate(mixed)) * up(mixed), one tile per (row block, block of inner columns)."""
    STRIDE_D: tl.constexpr = (D + 7) // 8 * 8
    N_I: tl.constexpr = (INNER_D + BLOCK_I - 1) // BLOCK_I
    n_rows = B * L
    offs_k = tl.arange(0, BLOCK_K)
    tile = tl.program_id(0)
    while tile < tl.cdiv(n_rows, BLOCK_M) * N_I:
        rows = (tile // N_I).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask_rows = rows < n_rows
        offs_i = (tile % N_I) * BLOCK_I + tl.arange(0, BLOCK_I)
        mask_i = offs_i < INNER_D
        gate = tl.zeros((BLOCK_M, BLOCK_I), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_I), tl.float32)
        for k0 in range(0, D, BLOCK_K):
            mask_k = k0 + offs_k < D
            x_ptrs = mixed_ptr + rows[:, None] * D + k0 + offs_k[None, :]
            x = tl.load(x_ptrs, mask_rows[:, None] & mask_k[None, :], other=0.0, cache_modifier=".cg")
            w_ptrs = weights_ptr + offs_i[None, :] * STRIDE_D + k0 + offs_k[:, None]  # [BLOCK_K, BLOCK_I]
            mask_w = mask_k[:, None] & mask_i[None, :]
            gate = tl.dot(x, tl.load(w_ptrs, mask_w, other=0.0), gate, input_precision="ieee")
            w_up = tl.load(w_ptrs + INNER_D * STRIDE_D, mask_w, other=0.0)
            up = tl.dot(x, w_up, up, input_precision="ieee")
        if NORM_HIDDEN:  # after the products: Triton 3.6 scales A in registers that earlier products still read
            scale = row_scale(mixed_partials_ptr, rows, mask_rows, eps, D, N_MIXED_PARTS)
            gate, up = gate * scale[:, None], up * scale[:, None]
        inner = gate * tl.sigmoid(gate) * up
        inner_ptrs = inner_ptr + rows[:, None] * INNER_D + offs_i[None, :]
        tl.store(inner_ptrs, inner, mask_rows[:, None] & mask_i[None, :])
        tile += tl.num_programs(0)


@triton.jit
def down_phase(out_ptr, out_partials_ptr, inner_ptr, mixed_ptr, mixed_partials_ptr, weights_ptr, B, eps,
               L: tl.constexpr, D: tl.constexpr, INNER_D: tl.constexpr,
               N_MIXED_PARTS: tl.constexpr, NORM_HIDDEN: tl.constexpr,
               BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """out <- mixed + down(inner), un-normalised, with the partial sums of squares of each row per D block."""
    STRIDE_I: tl.constexpr = (INNER_D + 7) // 8 * 8
    N_D: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    n_rows = B * L
    offs_k = tl.arange(0, BLOCK_K)
    tile = tl.program_id(0)
    while tile < tl.cdiv(n_rows, BLOCK_M) * N_D:
        rows = (tile // N_D).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask_rows = rows < n_rows
        offs_d = (tile % N_D) * BLOCK_D + tl.arange(0, BLOCK_D)
        mask_d = offs_d < D
        mask = mask_rows[:, None] & mask_d[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for k0 in range(0, INNER_D, BLOCK_K):
            mask_k = k0 + offs_k < INNER_D
            inner_ptrs = inner_ptr + rows[:, None] * INNER_D + k0 + offs_k[None, :]
            inner = tl.load(inner_ptrs, mask_rows[:, None] & mask_k[None, :], other=0.0, cache_modifier=".cg")
            w_ptrs = weights_ptr + offs_d[None, :] * STRIDE_I + k0 + offs_k[:, None]  # [BLOCK_K, BLOCK_D]
            w = tl.load(w_ptrs, mask_k[:, None] & mask_d[None, :], other=0.0)
            acc = tl.dot(inner, w, acc, input_precision="ieee")
        residual = load_normed(mixed_ptr, mixed_partials_ptr, rows, offs_d, mask, mask_rows, NORM_HIDDEN, eps,
                               D, N_MIXED_PARTS)  # fmt: skip
        y = (residual + acc).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + rows[:, None] * D + offs_d[None, :], y, mask)
        wide = y.to(tl.float32)
        tl.store(out_partials_ptr + rows * N_D + tile % N_D, tl.sum(wide * wide, axis=1), mask_rows)
        tile += tl.num_programs(0)
