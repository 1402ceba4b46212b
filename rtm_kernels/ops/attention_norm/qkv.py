"""Forward kernel of the QKV projection with the injection sum, QK-norm and RoPE in the same pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.attention_norm.launch import TABLE
from rtm_kernels.ops.attention_norm.tiles import accumulator, load_halves, load_sum
from rtm_kernels.ops.launch import launch, select


@triton.jit
def qkv_kernel(
    qkv_ptr, h_ptr, normed_ptr, rstd_ptr, x_ptr, first_ptr, second_ptr, w_ptr, cos_ptr, sin_ptr, eps,
    M, L, D, HEADS, HEAD_DIM,
    TERMS: tl.constexpr, ROPE: tl.constexpr, QK_NORM: tl.constexpr, KEEP_NORMED: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`qkv = rope(norm(h w^T))`, h = x + injection, for BLOCK_M rows and BLOCK_H heads; qkv is [M, 3 HEADS, HEAD_DIM].

    Each head is computed as its two halves (a, b), so that RoPE's partner column sits in the same registers.
    """
    blocks_h = tl.cdiv(3 * HEADS, BLOCK_H)
    pid = tl.program_id(0).to(tl.int64)
    pid_h = pid % blocks_h
    offs_m = (pid // blocks_h) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_k = tl.arange(0, BLOCK_K)
    lanes = tl.arange(0, BLOCK_H * BLOCK_E)
    half = (HEAD_DIM + 1) // 2
    head = pid_h * BLOCK_H + lanes // BLOCK_E
    offs_e = lanes % BLOCK_E
    mask_m = offs_m < M
    lane_a = (head < 3 * HEADS) & (offs_e < half)
    lane_b = lane_a & (offs_e + half < HEAD_DIM)
    column = head * HEAD_DIM + offs_e
    x_offs = offs_m[:, None] * D + offs_k[None, :]
    w_ptrs = w_ptr + column[None, :] * D + offs_k[:, None]

    a = tl.zeros((BLOCK_M, BLOCK_H * BLOCK_E), dtype=ACC)
    b = tl.zeros((BLOCK_M, BLOCK_H * BLOCK_E), dtype=ACC)
    for k in range(0, D, BLOCK_K):
        mask_k = k + offs_k < D
        mask_h = mask_m[:, None] & mask_k[None, :]
        h = load_sum(x_ptr, first_ptr, second_ptr, x_offs + k, mask_h, TERMS, ACC)  # [BM, BK]
        w_a = tl.load(w_ptrs + k, mask=mask_k[:, None] & lane_a[None, :], other=0.0)  # [BK, BH * BE]
        w_b = tl.load(w_ptrs + k + half * D, mask=mask_k[:, None] & lane_b[None, :], other=0.0)
        a = tl.dot(h, w_a, a, out_dtype=ACC, input_precision="ieee")
        b = tl.dot(h, w_b, b, out_dtype=ACC, input_precision="ieee")
        if TERMS > 0:
            tl.store(h_ptr + x_offs + k, h, mask=mask_h & (pid_h == 0))

    turned = head < 2 * HEADS  # v is neither normalised nor rotated
    mask_a, mask_b = mask_m[:, None] & lane_a[None, :], mask_m[:, None] & lane_b[None, :]
    if QK_NORM:
        squares = tl.sum(tl.reshape(a * a + b * b, (BLOCK_M, BLOCK_H, BLOCK_E)), axis=2)  # [BM, BH]
        heads = pid_h * BLOCK_H + tl.arange(0, BLOCK_H)
        rstd = tl.where(heads[None, :] < 2 * HEADS, 1.0 / tl.sqrt(squares / HEAD_DIM + tl.cast(eps, ACC)), 1.0)
        scale = tl.broadcast_to(rstd[:, :, None], (BLOCK_M, BLOCK_H, BLOCK_E))
        scale = tl.reshape(scale, (BLOCK_M, BLOCK_H * BLOCK_E))
        a, b = a * scale, b * scale
        if KEEP_NORMED:
            rstd_offs = offs_m[:, None] * 2 * HEADS + heads[None, :]
            tl.store(rstd_ptr + rstd_offs, rstd, mask=mask_m[:, None] & (heads < 2 * HEADS)[None, :])
            offs = offs_m[:, None] * 2 * HEADS * HEAD_DIM + column[None, :]
            tl.store(normed_ptr + offs, a.to(normed_ptr.dtype.element_ty), mask=mask_a & turned[None, :])
            tl.store(normed_ptr + offs + half, b.to(normed_ptr.dtype.element_ty), mask=mask_b & turned[None, :])
    if ROPE:
        offs = (offs_m % L)[:, None] * HEAD_DIM + offs_e[None, :]
        table_a, table_b = mask_a & turned[None, :], mask_b & turned[None, :]
        cos_a, cos_b = load_halves(cos_ptr, offs, offs + half, table_a, table_b, 1.0)
        sin_a, sin_b = load_halves(sin_ptr, offs, offs + half, table_a, table_b, 0.0)
        a, b = a * cos_a - b * sin_a, b * cos_b + a * sin_b
    offs = offs_m[:, None] * 3 * HEADS * HEAD_DIM + column[None, :]
    tl.store(qkv_ptr + offs, a.to(qkv_ptr.dtype.element_ty), mask=mask_a)
    tl.store(qkv_ptr + offs + half, b.to(qkv_ptr.dtype.element_ty), mask=mask_b)


def project_qkv(
    qkv: Tensor,
    h: Tensor,
    normed: Tensor | None,
    rstd: Tensor | None,
    x: Tensor,
    terms: tuple[Tensor, ...],
    weight: Tensor,
    cos_sin: tuple[Tensor, Tensor] | None,
    eps: float,
    qk_norm: bool,
) -> None:
    """Write qkv [B, L, 3, heads, head_dim] and, with terms, h [B, L, D]; all tensors contiguous, weight [3D, D].

    `normed` [B, L, 2, heads, head_dim] and `rstd` [B, L, 2, heads] receive what the backward of QK-norm needs.
    """
    batch, length, _, heads, head_dim = qkv.shape
    rows = batch * length
    row = select(TABLE, "attention_norm.qkv", x.dtype, (head_dim + 1) // 2)
    first, second = (*terms, x, x)[:2]
    cos, sin = cos_sin if cos_sin is not None else (x, x)
    grid = triton.cdiv(rows, row.blocks["BLOCK_M"]) * triton.cdiv(3 * heads, row.blocks["BLOCK_H"])
    launch(
        qkv_kernel, row, (grid,), qkv, h, x if normed is None else normed, x if rstd is None else rstd,
        x, first, second, weight, cos, sin, eps,
        rows, length, heads * head_dim, heads, head_dim,
        TERMS=len(terms), ROPE=cos_sin is not None, QK_NORM=qk_norm, KEEP_NORMED=normed is not None,
        ACC=accumulator(x.dtype),
    )  # fmt: skip
