"""Backward kernels of the norm at the end of attention_norm, and of QK-norm and RoPE at its start."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.attention_norm.launch import TABLE
from rtm_kernels.ops.attention_norm.tiles import accumulator, load_halves, store_halves
from rtm_kernels.ops.launch import launch, select


@triton.jit
def norm_backward_kernel(
    ds_ptr, dy_ptr, y_ptr, rstd_ptr, M, D, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """`ds = rstd (dy - y mean(dy y))` over each row, from the normalised y."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    mask_m = rows < M - start
    dy_ptrs = dy_ptr + start * D + rows[:, None] * D + offs_n[None, :]
    y_ptrs = y_ptr + start * D + rows[:, None] * D + offs_n[None, :]
    ds_ptrs = ds_ptr + start * D + rows[:, None] * D + offs_n[None, :]
    products = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for n in range(0, D, BLOCK_N):
        mask = mask_m[:, None] & (n + offs_n < D)[None, :]
        dy = tl.load(dy_ptrs + n, mask=mask, other=0.0).to(ACC)
        products += dy * tl.load(y_ptrs + n, mask=mask, other=0.0).to(ACC)
    mean = tl.sum(products, axis=1) / D
    rstd = tl.load(rstd_ptr + start + rows, mask=mask_m, other=0.0)
    for n in range(0, D, BLOCK_N):
        mask = mask_m[:, None] & (n + offs_n < D)[None, :]
        dy = tl.load(dy_ptrs + n, mask=mask, other=0.0).to(ACC)
        y = tl.load(y_ptrs + n, mask=mask, other=0.0).to(ACC)
        ds = rstd[:, None] * (dy - y * mean[:, None])
        tl.store(ds_ptrs + n, ds.to(ds_ptr.dtype.element_ty), mask=mask)


@triton.jit
def turn_backward_kernel(
    d_ptr, dq_ptr, q_ptr, rstd_ptr, cos_ptr, sin_ptr,
    R, L, HEADS, HEAD_DIM, d_stride_m, q_stride_m, rstd_stride_m,
    dq_stride_b, dq_stride_h, dq_stride_l, dq_stride_e,
    ROPE: tl.constexpr, QK_NORM: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Gradient of q (or k) before RoPE and QK-norm from the one after them; R = B * L * HEADS rows of HEAD_DIM."""
    offs_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_e = tl.arange(0, BLOCK_E)
    half = (HEAD_DIM + 1) // 2
    head, offs_m = offs_r % HEADS, offs_r // HEADS
    position = offs_m % L
    mask_a = (offs_r < R)[:, None] & (offs_e < half)[None, :]
    mask_b = (offs_r < R)[:, None] & (offs_e + half < HEAD_DIM)[None, :]
    offs = (offs_m // L) * dq_stride_b + head * dq_stride_h + position * dq_stride_l
    dq_ptrs = dq_ptr + offs[:, None] + offs_e[None, :] * dq_stride_e
    a, b = load_halves(dq_ptrs, half * dq_stride_e, mask_a, mask_b, 0.0, ACC)
    if ROPE:
        offs = position[:, None] * HEAD_DIM + offs_e[None, :]
        cos_a, cos_b = load_halves(cos_ptr + offs, half, mask_a, mask_b, 1.0, ACC)
        sin_a, sin_b = load_halves(sin_ptr + offs, half, mask_a, mask_b, 0.0, ACC)
        a, b = a * cos_a + b * sin_b, b * cos_b - a * sin_a
    column = (head * HEAD_DIM)[:, None] + offs_e[None, :]
    if QK_NORM:
        normed_a, normed_b = load_halves(q_ptr + offs_m[:, None] * q_stride_m + column, half, mask_a, mask_b, 0.0, ACC)
        if ROPE:
            scale = 1.0 / (cos_a * cos_b + sin_a * sin_b)  # 1 for a rotation
            turned_a = normed_a
            normed_a = (turned_a * cos_b + normed_b * sin_a) * scale
            normed_b = (normed_b * cos_a - turned_a * sin_b) * scale
        mean = tl.sum(a * normed_a + b * normed_b, axis=1) / HEAD_DIM
        rstd = tl.load(rstd_ptr + offs_m * rstd_stride_m + head, mask=offs_r < R, other=0.0)[:, None]
        a, b = rstd * (a - normed_a * mean[:, None]), rstd * (b - normed_b * mean[:, None])
    store_halves(d_ptr + offs_m[:, None] * d_stride_m + column, a, b, half, mask_a, mask_b)


def norm_backward(ds: Tensor, dy: Tensor, y: Tensor, rstd: Tensor) -> None:
    """Write ds [M, D], the gradient before the RMSNorm whose output is y and whose scale is rstd [M]."""
    rows, width = y.shape
    row = select(TABLE, "attention_norm.norm_backward", y.dtype, width)
    grid = triton.cdiv(rows, row.blocks["BLOCK_M"])
    launch(norm_backward_kernel, row, (grid,), ds, dy, y, rstd, rows, width, ACC=accumulator(y.dtype))


def turn_backward(d: Tensor, dq: Tensor, q: Tensor, rstd: Tensor | None, cos_sin: tuple[Tensor, Tensor] | None) -> None:
    """Write d, the gradient before QK-norm (if `rstd` is given) and RoPE (if `cos_sin` is), of dq after them.

    d and q, which is what both gave, are [B, L, heads, head_dim] and dense in their last two axes, rstd
    [B, L, heads]; dq [B, heads, L, head_dim] has any strides.
    """
    batch, length, heads, head_dim = d.shape
    rows = batch * length * heads
    row = select(TABLE, "attention_norm.turn_backward", d.dtype, (head_dim + 1) // 2)
    cos, sin = cos_sin if cos_sin is not None else (d, d)
    launch(
        turn_backward_kernel, row, (triton.cdiv(rows, row.blocks["BLOCK_R"]),),
        d, dq, q, d if rstd is None else rstd, cos, sin,
        rows, length, heads, head_dim, d.stride(1), q.stride(1), 0 if rstd is None else rstd.stride(1), *dq.stride(),
        ROPE=cos_sin is not None, QK_NORM=rstd is not None, ACC=accumulator(d.dtype),
    )  # fmt: skip
