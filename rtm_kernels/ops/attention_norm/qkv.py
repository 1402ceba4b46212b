"""The QKV projection with QK-norm and RoPE in one pass, and the gradient of both; each kernel with its launcher."""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.attention_norm.launch import TABLE
from rtm_kernels.ops.launch import launch, select
from rtm_kernels.ops.swiglu.tiles import accumulator, below


@triton.jit
def load_halves(ptrs, half, mask_a, mask_b, other, ACC: tl.constexpr):
    """The values at `ptrs` and `half` elements further: the first and the second half of each head."""
    return tl.load(ptrs, mask=mask_a, other=other).to(ACC), tl.load(ptrs + half, mask=mask_b, other=other).to(ACC)


@triton.jit
def store_halves(ptrs, a, b, half, mask_a, mask_b):
    """Store a at `ptrs` and b `half` elements further."""
    tl.store(ptrs, a.to(ptrs.dtype.element_ty), mask=mask_a)
    tl.store(ptrs + half, b.to(ptrs.dtype.element_ty), mask=mask_b)


@triton.jit
def qkv_kernel(
    qkv_ptr, rstd_ptr, h_ptr, w_ptr, cos_ptr, sin_ptr, eps,
    M, L, d_end, D: tl.constexpr, D_PAD: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROPE: tl.constexpr, QK_NORM: tl.constexpr, KEEP_RSTD: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`qkv = rope(norm(h w^T))` for BLOCK_M rows and BLOCK_H heads: h [M, D], w [3D, D_PAD], qkv [M, 3D].

    The columns of the two halves of a head are interleaved in the accumulator, so that RoPE's partners share a thread.
    """
    blocks_h = tl.cdiv(3 * HEADS, BLOCK_H)
    pid = tl.program_id(0).to(tl.int64)
    pid_h = (pid % blocks_h).to(tl.int32)
    start = (pid // blocks_h) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    mask_m = rows < M - start
    offs_k = tl.arange(0, BLOCK_K)
    half = (HEAD_DIM + 1) // 2
    lanes = tl.arange(0, 2 * BLOCK_H * BLOCK_E)  # (head, element of the half, half)
    lane_e = lanes // 2 % BLOCK_E
    lane_head = pid_h * BLOCK_H + lanes // (2 * BLOCK_E)
    in_head = lane_e + lanes % 2 * half
    mask_w = (lane_head < 3 * HEADS) & (lane_e < half) & (in_head < HEAD_DIM)
    h_ptrs = h_ptr + start * D + rows[:, None] * D + offs_k[None, :]
    w_ptrs = w_ptr + (lane_head * HEAD_DIM + in_head).to(tl.int64)[None, :] * D_PAD + offs_k[:, None]

    acc = tl.zeros((BLOCK_M, 2 * BLOCK_H * BLOCK_E), dtype=ACC)
    for k in range(0, d_end, BLOCK_K):  # D as a value of the run, as `gemm_kernel` takes K
        mask_k = below(k + offs_k, D, BLOCK_K)
        h = tl.load(h_ptrs + k, mask=mask_m[:, None] & mask_k[None, :], other=0.0)  # [BM, BK]
        w = tl.load(w_ptrs, mask=mask_k[:, None] & mask_w[None, :], other=0.0)  # [BK, 2 * BH * BE]
        acc = tl.dot(h, w, acc, out_dtype=ACC, input_precision="ieee")
        w_ptrs += BLOCK_K
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


def project_qkv(
    qkv: Tensor, rstd: Tensor | None, h: Tensor, weight: Tensor, cos_sin: tuple[Tensor, Tensor] | None, eps: float,
    qk_norm: bool,
) -> None:  # fmt: skip
    """Write qkv [B, L, 3, heads, head_dim] from h [B, L, D], both contiguous, and the padded weight [3D, D_pad].

    `rstd` [B, L, 2, heads], when given, receives the scales of QK-norm.
    """
    batch, length, _, heads, head_dim = qkv.shape
    rows, width = batch * length, heads * head_dim
    row = select(TABLE, "qkv", h.dtype, (head_dim + 1) // 2)
    cos, sin = cos_sin if cos_sin is not None else (h, h)
    grid = triton.cdiv(rows, row.blocks["BLOCK_M"]) * triton.cdiv(3 * heads, row.blocks["BLOCK_H"])
    launch(
        qkv_kernel, row, (grid,), qkv, h if rstd is None else rstd, h, weight, cos, sin, eps,
        rows, length, width, width, weight.shape[1], heads, head_dim,
        ROPE=cos_sin is not None, QK_NORM=qk_norm, KEEP_RSTD=rstd is not None, ACC=accumulator(h.dtype),
    )  # fmt: skip


def turn_backward(d: Tensor, dq: Tensor, q: Tensor, rstd: Tensor | None, cos_sin: tuple[Tensor, Tensor] | None) -> None:
    """Write d, the gradient before QK-norm (if `rstd` is given) and RoPE (if `cos_sin` is), of dq after them.

    d and q, which is what both gave, are [B, L, heads, head_dim] and dense in their last two axes, rstd
    [B, L, heads]; dq [B, heads, L, head_dim] has any strides.
    """
    batch, length, heads, head_dim = d.shape
    rows = batch * length * heads
    row = select(TABLE, "turn_backward", d.dtype, (head_dim + 1) // 2)
    cos, sin = cos_sin if cos_sin is not None else (d, d)
    launch(
        turn_backward_kernel, row, (triton.cdiv(rows, row.blocks["BLOCK_R"]),),
        d, dq, q, d if rstd is None else rstd, cos, sin,
        rows, length, heads, head_dim, d.stride(1), q.stride(1), 0 if rstd is None else rstd.stride(1), *dq.stride(),
        ROPE=cos_sin is not None, QK_NORM=rstd is not None, ACC=accumulator(d.dtype),
    )  # fmt: skip
