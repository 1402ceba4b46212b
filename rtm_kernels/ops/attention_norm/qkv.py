"""Forward kernel of the QKV projection with the injection sum, QK-norm and RoPE in the same pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.attention_norm.launch import TABLE, named
from rtm_kernels.ops.attention_norm.tiles import accumulator, load_halves, load_sum, store_halves
from rtm_kernels.ops.launch import launch, select


@triton.jit
def qkv_kernel(
    qkv_ptr, h_ptr, rstd_ptr, x_ptr, first_ptr, second_ptr, w_ptr, cos_ptr, sin_ptr, eps,
    M, L, D, HEADS, HEAD_DIM,
    TERMS: tl.constexpr, ROPE: tl.constexpr, QK_NORM: tl.constexpr, KEEP_RSTD: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`qkv = rope(norm(h w^T))`, h = x + injection, for BLOCK_M rows and BLOCK_H heads; qkv is [M, 3 HEADS, HEAD_DIM].

    The columns of the two halves of a head are interleaved in the accumulator, so that RoPE's partners share a thread.
    """
    blocks_h = tl.cdiv(3 * HEADS, BLOCK_H)
    pid = tl.program_id(0).to(tl.int64)
    pid_h = (pid % blocks_h).to(tl.int32)
    start = (pid // blocks_h) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    mask_m = rows < M - start
    mask_once = mask_m & (rows * 0 + pid_h == 0)  # one of the programs of these rows keeps h
    offs_k = tl.arange(0, BLOCK_K)
    half = (HEAD_DIM + 1) // 2
    lanes = tl.arange(0, 2 * BLOCK_H * BLOCK_E)  # (head, element of the half, half)
    lane_e = lanes // 2 % BLOCK_E
    lane_head = pid_h * BLOCK_H + lanes // (2 * BLOCK_E)
    in_head = lane_e + lanes % 2 * half
    mask_w = (lane_head < 3 * HEADS) & (lane_e < half) & (in_head < HEAD_DIM)
    x_offs = rows[:, None] * D + offs_k[None, :]
    x_start = start * D
    w_ptrs = w_ptr + (lane_head * HEAD_DIM + in_head).to(tl.int64)[None, :] * D + offs_k[:, None]

    acc = tl.zeros((BLOCK_M, 2 * BLOCK_H * BLOCK_E), dtype=ACC)
    for k in range(0, D, BLOCK_K):
        mask_k = k + offs_k < D
        mask_h = mask_m[:, None] & mask_k[None, :]
        h = load_sum(x_ptr + x_start, first_ptr + x_start, second_ptr + x_start, x_offs + k, mask_h, TERMS, ACC)
        w = tl.load(w_ptrs, mask=mask_k[:, None] & mask_w[None, :], other=0.0)  # [BK, 2 * BH * BE]
        acc = tl.dot(h, w, acc, out_dtype=ACC, input_precision="ieee")
        w_ptrs += BLOCK_K
        if TERMS > 0:
            tl.store(h_ptr + x_start + x_offs + k, h, mask=mask_once[:, None] & mask_k[None, :])
    a, b = tl.split(tl.reshape(acc, (BLOCK_M, BLOCK_H * BLOCK_E, 2)))

    pairs = tl.arange(0, BLOCK_H * BLOCK_E)
    head, offs_e = pid_h * BLOCK_H + pairs // BLOCK_E, pairs % BLOCK_E
    turned = head < 2 * HEADS  # v is neither normalised nor rotated
    mask_a = mask_m[:, None] & ((head < 3 * HEADS) & (offs_e < half))[None, :]
    mask_b = mask_a & (offs_e + half < HEAD_DIM)[None, :]
    column = head * HEAD_DIM + offs_e
    if QK_NORM:
        heads = pid_h * BLOCK_H + tl.arange(0, BLOCK_H)
        squares = tl.sum(tl.reshape(a * a + b * b, (BLOCK_M, BLOCK_H, BLOCK_E)), axis=2)  # [BM, BH]
        rstd = 1.0 / tl.sqrt(squares / HEAD_DIM + tl.cast(eps, ACC))
        rstd = tl.where((heads < 2 * HEADS)[None, :], rstd, 1.0)
        scale = tl.broadcast_to(rstd[:, :, None], (BLOCK_M, BLOCK_H, BLOCK_E))
        scale = tl.reshape(scale, (BLOCK_M, BLOCK_H * BLOCK_E))
        a, b = a * scale, b * scale
        if KEEP_RSTD:
            kept = mask_m[:, None] & (heads < 2 * HEADS)[None, :]
            tl.store(rstd_ptr + start * 2 * HEADS + rows[:, None] * 2 * HEADS + heads[None, :], rstd, mask=kept)
    if ROPE:
        offs = ((start + rows) % L).to(tl.int32)[:, None] * HEAD_DIM + offs_e[None, :]
        table_a, table_b = mask_a & turned[None, :], mask_b & turned[None, :]
        cos_a, cos_b = load_halves(cos_ptr + offs, half, table_a, table_b, 1.0, ACC)
        sin_a, sin_b = load_halves(sin_ptr + offs, half, table_a, table_b, 0.0, ACC)
        a, b = a * cos_a - b * sin_a, b * cos_b + a * sin_b
    ptrs = qkv_ptr + start * 3 * HEADS * HEAD_DIM + rows[:, None] * 3 * HEADS * HEAD_DIM + column[None, :]
    store_halves(ptrs, a, b, half, mask_a, mask_b)


def project_qkv(
    qkv: Tensor,
    h: Tensor,
    rstd: Tensor | None,
    x: Tensor,
    terms: tuple[Tensor, ...],
    weight: Tensor,
    cos_sin: tuple[Tensor, Tensor] | None,
    eps: float,
    qk_norm: bool,
) -> None:
    """Write qkv [B, L, 3, heads, head_dim] and, with terms, h [B, L, D]; all tensors contiguous, weight [3D, D].

    `rstd` [B, L, 2, heads], when given, receives the scales of QK-norm.
    """
    batch, length, _, heads, head_dim = qkv.shape
    rows, width = batch * length, heads * head_dim
    row = select(TABLE, named("attention_norm.qkv", width), x.dtype, (head_dim + 1) // 2)
    first, second = (*terms, x, x)[:2]
    cos, sin = cos_sin if cos_sin is not None else (x, x)
    grid = triton.cdiv(rows, row.blocks["BLOCK_M"]) * triton.cdiv(3 * heads, row.blocks["BLOCK_H"])
    launch(
        qkv_kernel, row, (grid,), qkv, h, x if rstd is None else rstd, x, first, second, weight, cos, sin, eps,
        rows, length, width, heads, head_dim,
        TERMS=len(terms), ROPE=cos_sin is not None, QK_NORM=qk_norm, KEEP_RSTD=rstd is not None,
        ACC=accumulator(x.dtype),
    )  # fmt: skip
