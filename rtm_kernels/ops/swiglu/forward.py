"""Forward kernels of `h + swiglu(h)` and of the weightless RMSNorm, over strided [batch, rows, features] views."""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from rtm_kernels.ops.swiglu.tiles import (
    below,
    gate_up_rows,
    gate_up_unit,
    load_sum,
    overlap,
    row_block,
    silu_gate,
    split_gate_up,
)


@triton.jit
def fused_kernel(
    y_ptr, rstd_ptr, x_ptr, first_ptr, second_ptr, gate_up_ptr, down_ptr, eps,
    R, N: tl.constexpr, N_PAD: tl.constexpr, F: tl.constexpr,
    x_stride_b, x_stride_r, x_stride_n, y_stride_b, y_stride_r, y_stride_n,
    TERMS: tl.constexpr, NORMALISE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`y = h + swiglu(h)` for one block of rows with all N <= BLOCK_N features, normalised over them if asked."""
    batch, offs_r = row_block(tl.program_id(0), R, BLOCK_R)
    offs_n = tl.arange(0, BLOCK_N)
    offs_f = tl.arange(0, BLOCK_F)
    mask = (offs_r < R)[:, None] & below(offs_n, N, BLOCK_N)[None, :]
    x_offs = batch * x_stride_b + offs_r[:, None] * x_stride_r + offs_n.to(tl.int64)[None, :] * x_stride_n
    h = load_sum(x_ptr, first_ptr, second_ptr, x_offs, mask, TERMS, ACC)  # [BR, BN]

    gate_up_ptrs = gate_up_ptr + gate_up_rows(0, F, BLOCK_F)[None, :] * N_PAD + offs_n[:, None]
    down_ptrs = down_ptr + offs_n[None, :] * F + offs_f[:, None]
    mask_n = below(offs_n, N, BLOCK_N)[None, :]
    mask_pad = below(offs_n, N_PAD, BLOCK_N)[:, None]
    acc = tl.zeros((BLOCK_R, BLOCK_N), dtype=ACC)
    for f in range(0, F, BLOCK_F):
        mask_w = below(gate_up_unit(f, BLOCK_F), F, BLOCK_F)[None, :] & mask_pad
        w_gate_up = tl.load(gate_up_ptrs, mask=mask_w, other=0.0)  # [BN, 2 BF]
        w_down = tl.load(down_ptrs, mask=below(f + offs_f, F, BLOCK_F)[:, None] & mask_n, other=0.0)  # [BF, BN]
        z = tl.dot(h, w_gate_up, out_dtype=ACC, input_precision="ieee")
        gate, up = split_gate_up(z, BLOCK_R, BLOCK_F)
        act = silu_gate(gate, up).to(h.dtype)  # [BR, BF]
        acc = tl.dot(act, w_down, acc, out_dtype=ACC, input_precision="ieee")
        gate_up_ptrs += BLOCK_F * N_PAD
        down_ptrs += BLOCK_F

    acc += h.to(ACC)
    if NORMALISE:
        rstd = 1.0 / tl.sqrt(tl.sum(acc * acc, axis=1) / N + tl.cast(eps, ACC))
        tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=offs_r < R)
        acc *= rstd[:, None]
    y_offs = batch * y_stride_b + offs_r[:, None] * y_stride_r + offs_n.to(tl.int64)[None, :] * y_stride_n
    tl.store(y_ptr + y_offs, acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gate_up_kernel(
    a_ptr, h_ptr, gate_up_ptr,
    R, N: tl.constexpr, N_PAD: tl.constexpr, F: tl.constexpr, h_stride_b, h_stride_r, h_stride_n,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, OVERLAP: tl.constexpr = False,
):  # fmt: skip
    """`a = silu(h gate^T) * (h up^T)`, one [BLOCK_R, BLOCK_F] tile; a is [batch * R, F] without gaps."""
    overlap(OVERLAP)
    blocks_f = tl.cdiv(F, BLOCK_F)
    pid = tl.program_id(0)
    batch, offs_r = row_block(pid // blocks_f, R, BLOCK_R)
    pid_f = pid % blocks_f
    offs_f = pid_f * BLOCK_F + tl.arange(0, BLOCK_F)
    offs_n = tl.arange(0, BLOCK_N)
    mask_r, mask_f = offs_r < R, below(offs_f, F, BLOCK_F)
    h_offs = batch * h_stride_b + offs_r[:, None] * h_stride_r + offs_n.to(tl.int64)[None, :] * h_stride_n
    w_ptrs = gate_up_ptr + gate_up_rows(pid_f * BLOCK_F, F, BLOCK_F)[None, :] * N_PAD + offs_n[:, None]
    mask_rows = below(gate_up_unit(pid_f * BLOCK_F, BLOCK_F), F, BLOCK_F)

    z = tl.zeros((BLOCK_R, 2 * BLOCK_F), dtype=ACC)
    for n in range(0, N, BLOCK_N):
        mask_h = mask_r[:, None] & below(n + offs_n, N, BLOCK_N)[None, :]
        h = tl.load(h_ptr + h_offs, mask=mask_h, other=0.0)  # [BR, BN]
        mask_w = mask_rows[None, :] & below(n + offs_n, N_PAD, BLOCK_N)[:, None]
        w = tl.load(w_ptrs, mask=mask_w, other=0.0)  # [BN, 2 BF]
        z = tl.dot(h, w, z, out_dtype=ACC, input_precision="ieee")
        h_offs += BLOCK_N * tl.cast(h_stride_n, tl.int64)
        w_ptrs += BLOCK_N

    gate, up = split_gate_up(z, BLOCK_R, BLOCK_F)
    act = silu_gate(gate, up).to(a_ptr.dtype.element_ty)
    a_offs = (batch * R + offs_r)[:, None] * F + offs_f[None, :]
    tl.store(a_ptr + a_offs, act, mask=mask_r[:, None] & mask_f[None, :])


@triton.jit
def gemm_kernel(
    y_ptr, rstd_ptr, a_ptr, w_ptr, h_ptr, eps, k_end,
    R, N: tl.constexpr, K: tl.constexpr, W_N: tl.constexpr, w_stride_n, w_stride_k,
    h_stride_b, h_stride_r, h_stride_n, y_stride_b, y_stride_r, y_stride_n,
    RESIDUAL: tl.constexpr, NORMALISE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr = False,
):  # fmt: skip
    """`y = (h +) a w^T`, one [BLOCK_R, BLOCK_N] tile, normalised over the features if BLOCK_N holds them all.

    a is [batch * R, K] without gaps, w is [W_N, K] by its strides with W_N >= N. `k_end` is K as a value of the run:
    a loop whose length it knows the compiler unrolls, and that spills.
    """
    overlap(OVERLAP)
    blocks_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    batch, offs_r = row_block(pid // blocks_n, R, BLOCK_R)
    offs_n = (pid % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    mask_r = offs_r < R
    a_ptrs = a_ptr + (batch * R + offs_r)[:, None] * K + offs_k[None, :]
    w_ptrs = w_ptr + offs_n[None, :] * w_stride_n + offs_k[:, None] * w_stride_k

    mask = mask_r[:, None] & below(offs_n, N, BLOCK_N)[None, :]
    wide_n = offs_n.to(tl.int64)[None, :]
    acc = tl.zeros((BLOCK_R, BLOCK_N), dtype=ACC)
    if RESIDUAL:  # at the start: adding it at the end would need its registers twice
        h_offs = batch * h_stride_b + offs_r[:, None] * h_stride_r + wide_n * h_stride_n
        acc = tl.load(h_ptr + h_offs, mask=mask, other=0.0).to(ACC)
    for k in range(0, k_end, BLOCK_K):
        mask_k = below(k + offs_k, K, BLOCK_K)
        a = tl.load(a_ptrs, mask=mask_r[:, None] & mask_k[None, :], other=0.0)  # [BR, BK]
        w = tl.load(w_ptrs, mask=mask_k[:, None] & below(offs_n, W_N, BLOCK_N)[None, :], other=0.0)  # [BK, BN]
        acc = tl.dot(a, w, acc, out_dtype=ACC, input_precision="ieee")
        a_ptrs += BLOCK_K
        w_ptrs += BLOCK_K * w_stride_k

    if NORMALISE:
        rstd = 1.0 / tl.sqrt(tl.sum(acc * acc, axis=1) / N + tl.cast(eps, ACC))
        tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=mask_r)
        acc *= rstd[:, None]
    y_offs = batch * y_stride_b + offs_r[:, None] * y_stride_r + wide_n * y_stride_n
    tl.store(y_ptr + y_offs, acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def norm_kernel(
    y_ptr, rstd_ptr, eps, R, N: tl.constexpr, y_stride_b, y_stride_r, y_stride_n,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, OVERLAP: tl.constexpr = False,
):  # fmt: skip
    """`y <- y * rsqrt(mean(y^2) + eps)` over the features, in place, one block of rows."""
    overlap(OVERLAP)
    batch, offs_r = row_block(tl.program_id(0), R, BLOCK_R)
    offs_n = tl.arange(0, BLOCK_N)
    mask_r = offs_r < R
    y_ptrs = y_ptr + batch * y_stride_b + offs_r[:, None] * y_stride_r + offs_n.to(tl.int64)[None, :] * y_stride_n
    wide_stride = tl.cast(y_stride_n, tl.int64)
    squares = tl.zeros((BLOCK_R, BLOCK_N), dtype=ACC)
    for n in range(0, N, BLOCK_N):
        mask = mask_r[:, None] & below(n + offs_n, N, BLOCK_N)[None, :]
        y = tl.load(y_ptrs + n * wide_stride, mask=mask, other=0.0).to(ACC)
        squares += y * y
    rstd = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / N + tl.cast(eps, ACC))
    tl.store(rstd_ptr + batch * R + offs_r, rstd, mask=mask_r)
    for n in range(0, N, BLOCK_N):
        mask = mask_r[:, None] & below(n + offs_n, N, BLOCK_N)[None, :]
        y = tl.load(y_ptrs + n * wide_stride, mask=mask, other=0.0).to(ACC)
        tl.store(y_ptrs + n * wide_stride, (y * rstd[:, None]).to(y_ptr.dtype.element_ty), mask=mask)
