"""Backward kernels of `rms_norm(h + swiglu(h))` over strided [batch, rows, features] views.

`dr` is the gradient of the un-normalised row `r = h + swiglu(h)`; gate and up are recomputed, never saved.
"""

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
    silu_gate_backward,
    split_gate_up,
)


@triton.jit
def inject_kernel(
    h_ptr, x_ptr, first_ptr, second_ptr, R, N: tl.constexpr,
    h_stride_b, h_stride_r, h_stride_n, x_stride_b, x_stride_r, x_stride_n,
    TERMS: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):  # fmt: skip
    """`h = x + (first + second)`, rounded as the forward kernels round it; one [BLOCK_R, BLOCK_N] tile."""
    overlap(OVERLAP)
    blocks_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    batch, offs_r = row_block(pid // blocks_n, R, BLOCK_R)
    offs_n = ((pid % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[None, :]
    mask = (offs_r < R)[:, None] & below(offs_n, N, BLOCK_N)
    x_offs = batch * x_stride_b + offs_r[:, None] * x_stride_r + offs_n * x_stride_n
    h = load_sum(x_ptr, first_ptr, second_ptr, x_offs, mask, TERMS, ACC)
    tl.store(h_ptr + batch * h_stride_b + offs_r[:, None] * h_stride_r + offs_n * h_stride_n, h, mask=mask)


@triton.jit
def norm_backward_kernel(
    dr_ptr, dy_ptr, y_ptr, rstd_ptr, eps, R, N: tl.constexpr, stride_b, stride_r, stride_n,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`dr = rstd * (dy - y * mean(dy * y))` over the features, one block of rows; dr, dy and y share their strides.

    One feature alone leaves `dr = dy * rstd * (1 - y^2)` with `1 - y^2 = eps * rstd^2`, which y is too coarse for.
    """
    batch, offs_r = row_block(tl.program_id(0), R, BLOCK_R)
    offs_n = tl.arange(0, BLOCK_N)
    mask_r = offs_r < R
    wide_stride = tl.cast(stride_n, tl.int64)
    offs = batch * stride_b + offs_r[:, None] * stride_r + offs_n[None, :] * wide_stride
    products = tl.zeros((BLOCK_R, BLOCK_N), dtype=ACC)
    for n in range(0, N, BLOCK_N):
        mask = mask_r[:, None] & below(n + offs_n, N, BLOCK_N)[None, :]
        dy = tl.load(dy_ptr + offs + n * wide_stride, mask=mask, other=0.0).to(ACC)
        y = tl.load(y_ptr + offs + n * wide_stride, mask=mask, other=0.0).to(ACC)
        products += dy * y
    rstd = tl.load(rstd_ptr + batch * R + offs_r, mask=mask_r, other=0.0)
    projection = tl.sum(products, axis=1) / N
    for n in range(0, N, BLOCK_N):
        mask = mask_r[:, None] & below(n + offs_n, N, BLOCK_N)[None, :]
        dy = tl.load(dy_ptr + offs + n * wide_stride, mask=mask, other=0.0).to(ACC)
        y = tl.load(y_ptr + offs + n * wide_stride, mask=mask, other=0.0).to(ACC)
        tangent = dy * (tl.cast(eps, ACC) * rstd * rstd)[:, None] if N == 1 else dy - y * projection[:, None]
        tl.store(dr_ptr + offs + n * wide_stride, (rstd[:, None] * tangent).to(dr_ptr.dtype.element_ty), mask=mask)


@triton.jit
def hidden_backward_kernel(
    dz_ptr, a_ptr, dr_ptr, h_ptr, gate_up_ptr, down_ptr,
    R, N: tl.constexpr, N_PAD: tl.constexpr, F: tl.constexpr,
    h_stride_b, h_stride_r, h_stride_n, dr_stride_b, dr_stride_r, dr_stride_n,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Recompute `a` [batch * R, F] and write `dz` [batch * R, 2F], the gradients of gate and up; one tile of F."""
    blocks_f = tl.cdiv(F, BLOCK_F)
    pid = tl.program_id(0)
    batch, offs_r = row_block(pid // blocks_f, R, BLOCK_R)
    offs_f = (pid % blocks_f) * BLOCK_F + tl.arange(0, BLOCK_F)
    offs_n = tl.arange(0, BLOCK_N)
    mask_r, mask_f = offs_r < R, below(offs_f, F, BLOCK_F)
    wide_n = offs_n.to(tl.int64)[None, :]
    h_offs = batch * h_stride_b + offs_r[:, None] * h_stride_r + wide_n * h_stride_n
    dr_offs = batch * dr_stride_b + offs_r[:, None] * dr_stride_r + wide_n * dr_stride_n
    pid_f = pid % blocks_f
    w_ptrs = gate_up_ptr + gate_up_rows(pid_f * BLOCK_F, F, BLOCK_F)[None, :] * N_PAD + offs_n[:, None]
    mask_rows = below(gate_up_unit(pid_f * BLOCK_F, BLOCK_F), F, BLOCK_F)[None, :]
    down_ptrs = down_ptr + offs_n[:, None] * F + offs_f[None, :]

    z = tl.zeros((BLOCK_R, 2 * BLOCK_F), dtype=ACC)
    d_act = tl.zeros((BLOCK_R, BLOCK_F), dtype=ACC)
    for n in range(0, N, BLOCK_N):
        mask_h = mask_r[:, None] & below(n + offs_n, N, BLOCK_N)[None, :]
        w = tl.load(w_ptrs, mask=mask_rows & below(n + offs_n, N_PAD, BLOCK_N)[:, None], other=0.0)  # [BN, 2 BF]
        w_down = tl.load(down_ptrs, mask=mask_f[None, :] & below(n + offs_n, N, BLOCK_N)[:, None], other=0.0)
        h = tl.load(h_ptr + h_offs, mask=mask_h, other=0.0)  # [BR, BN]
        dr = tl.load(dr_ptr + dr_offs, mask=mask_h, other=0.0)
        z = tl.dot(h, w, z, out_dtype=ACC, input_precision="ieee")
        d_act = tl.dot(dr, w_down, d_act, out_dtype=ACC, input_precision="ieee")
        h_offs += BLOCK_N * tl.cast(h_stride_n, tl.int64)
        dr_offs += BLOCK_N * tl.cast(dr_stride_n, tl.int64)
        w_ptrs += BLOCK_N
        down_ptrs += BLOCK_N * F

    gate, up = split_gate_up(z, BLOCK_R, BLOCK_F)
    act, d_gate, d_up = silu_gate_backward(d_act, gate, up)
    mask = mask_r[:, None] & mask_f[None, :]
    row = (batch * R + offs_r)[:, None]
    tl.store(a_ptr + row * F + offs_f[None, :], act.to(a_ptr.dtype.element_ty), mask=mask)
    dz_ptrs = dz_ptr + row * (2 * F) + offs_f[None, :]
    tl.store(dz_ptrs, d_gate.to(dz_ptr.dtype.element_ty), mask=mask)
    tl.store(dz_ptrs + F, d_up.to(dz_ptr.dtype.element_ty), mask=mask)


@triton.jit
def weight_grad_kernel(
    out_ptr, z_ptr, h_ptr,
    B, R, P: tl.constexpr, N: tl.constexpr, N_PAD: tl.constexpr, h_stride_b, h_stride_r, h_stride_n,
    ACC: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`out[s] = z^T h` over the blocks of rows s, s + SPLITS, ..., one [BLOCK_P, BLOCK_N] tile.

    out [SPLITS, P, N_PAD], z [B * R, P].
    """
    blocks_n = tl.cdiv(N, BLOCK_N)
    pid, split = tl.program_id(0), tl.program_id(1)
    offs_p = tl.cast(pid // blocks_n, tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_n = (pid % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_p, mask_n = below(offs_p, P, BLOCK_P), below(offs_n, N, BLOCK_N)
    h_cols = offs_n.to(tl.int64)[None, :] * h_stride_n
    blocks_r = tl.cdiv(R, BLOCK_R)
    share = tl.cdiv(B * blocks_r, SPLITS)
    acc = tl.zeros((BLOCK_P, BLOCK_N), dtype=ACC)
    # at least once, as the compiler sees: zeros past a loop that may not run at all make products wait for each other
    for i in range(0, tl.maximum(share, 1)):
        block = i * SPLITS + split
        batch, offs_r = row_block(block, R, BLOCK_R)
        mask_r = (offs_r < R) & (block < B * blocks_r)
        z_ptrs = z_ptr + (batch * R + offs_r)[None, :] * P + offs_p[:, None]
        z = tl.load(z_ptrs, mask=mask_p[:, None] & mask_r[None, :], other=0.0)  # [BP, BR]
        h_offs = batch * h_stride_b + offs_r[:, None] * h_stride_r + h_cols
        mask_h = mask_r[:, None] & mask_n[None, :]
        h = tl.load(h_ptr + h_offs, mask=mask_h, other=0.0)  # [BR, BN]
        acc = tl.dot(z, h, acc, out_dtype=ACC, input_precision="ieee")
    out_ptrs = out_ptr + (split.to(tl.int64) * P + offs_p)[:, None] * N_PAD + offs_n[None, :]
    tl.store(out_ptrs, acc, mask=mask_p[:, None] & below(offs_n, N_PAD, BLOCK_N)[None, :])
