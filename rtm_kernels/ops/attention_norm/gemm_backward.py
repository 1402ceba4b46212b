"""Backward kernels of the two projections: input gradient with residual, and split weight gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.attention_norm.launch import TABLE, named, splits_of
from rtm_kernels.ops.attention_norm.tiles import accumulator
from rtm_kernels.ops.launch import launch, select


@triton.jit
def input_grad_kernel(
    dx_ptr, dy_ptr, w_ptr, residual_ptr, M, N, K,
    RESIDUAL: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`dx = dy w (+ residual)`, one [BLOCK_M, BLOCK_N] tile; dy [M, K], w [K, N]."""
    blocks_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0).to(tl.int64)
    start = (pid // blocks_n) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    offs_n = (pid % blocks_n).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    mask_m, mask_n = rows < M - start, offs_n < N
    dy_ptrs = dy_ptr + start * K + rows[:, None] * K + offs_k[None, :]
    w_ptrs = w_ptr + offs_k.to(tl.int64)[:, None] * N + offs_n[None, :]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for k in range(0, K, BLOCK_K):
        mask_k = k + offs_k < K
        dy = tl.load(dy_ptrs, mask=mask_m[:, None] & mask_k[None, :], other=0.0)  # [BM, BK]
        w = tl.load(w_ptrs, mask=mask_k[:, None] & mask_n[None, :], other=0.0)  # [BK, BN]
        acc = tl.dot(dy, w, acc, out_dtype=ACC, input_precision="ieee")
        dy_ptrs += BLOCK_K
        w_ptrs += BLOCK_K * N

    mask = mask_m[:, None] & mask_n[None, :]
    offs = rows[:, None] * N + offs_n[None, :]
    if RESIDUAL:
        acc += tl.load(residual_ptr + start * N + offs, mask=mask, other=0.0).to(ACC)
    tl.store(dx_ptr + start * N + offs, acc.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def weight_grad_kernel(
    partial_ptr, dy_ptr, x_ptr, M, N, K, SPLIT_ROWS,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`partial[s] = dy^T x` over the rows of split s, one [BLOCK_N, BLOCK_K] tile; dy [M, N], x [M, K]."""
    blocks_k = tl.cdiv(K, BLOCK_K)
    pid = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    start = split * SPLIT_ROWS
    rows = tl.arange(0, BLOCK_M)
    offs_n = ((pid // blocks_k) * BLOCK_N).to(tl.int32) + tl.arange(0, BLOCK_N)
    offs_k = ((pid % blocks_k) * BLOCK_K).to(tl.int32) + tl.arange(0, BLOCK_K)
    mask_n, mask_k = offs_n < N, offs_k < K
    end = tl.minimum(M - start, SPLIT_ROWS)
    dy_ptrs = dy_ptr + start * N + rows[None, :] * N + offs_n[:, None]
    x_ptrs = x_ptr + start * K + rows[:, None] * K + offs_k[None, :]

    acc = tl.zeros((BLOCK_N, BLOCK_K), dtype=ACC)
    for m in range(0, SPLIT_ROWS, BLOCK_M):
        mask_m = rows + m < end
        dy = tl.load(dy_ptrs, mask=mask_n[:, None] & mask_m[None, :], other=0.0)  # [BN, BM]
        x = tl.load(x_ptrs, mask=mask_m[:, None] & mask_k[None, :], other=0.0)  # [BM, BK]
        acc = tl.dot(dy, x, acc, out_dtype=ACC, input_precision="ieee")
        dy_ptrs += BLOCK_M * N
        x_ptrs += BLOCK_M * K
    offs = offs_n.to(tl.int64)[:, None] * K + offs_k[None, :]
    tl.store(partial_ptr + split * N * K + offs, acc, mask=mask_n[:, None] & mask_k[None, :])


def input_grad(dx: Tensor, dy: Tensor, weight: Tensor, residual: Tensor | None = None) -> None:
    """Write dx = dy weight (+ residual): dx [M, N], dy [M, K], weight [K, N], all contiguous."""
    (rows, n), k = dx.shape, dy.shape[1]
    row = select(TABLE, named("attention_norm.input_grad", n), dx.dtype, n)
    grid = triton.cdiv(rows, row.blocks["BLOCK_M"]) * triton.cdiv(n, row.blocks["BLOCK_N"])
    launch(
        input_grad_kernel, row, (grid,), dx, dy, weight, dx if residual is None else residual, rows, n, k,
        RESIDUAL=residual is not None, ACC=accumulator(dx.dtype),
    )  # fmt: skip


def weight_grad(dy: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """dy^T x [N, K] in `dtype`, summed in float32 over fixed splits of the rows; dy [M, N], x [M, K], contiguous."""
    (rows, n), k = dy.shape, x.shape[1]
    row = select(TABLE, named("attention_norm.weight_grad", n), x.dtype, n)
    split_rows, splits = splits_of(rows)
    wide = torch.promote_types(x.dtype, torch.float32)
    partial = torch.empty(splits, n, k, dtype=wide, device=x.device)
    grid = triton.cdiv(n, row.blocks["BLOCK_N"]) * triton.cdiv(k, row.blocks["BLOCK_K"])
    launch(
        weight_grad_kernel, row, (grid, splits), partial, dy, x, rows, n, k, split_rows,
        ACC=accumulator(x.dtype),
    )  # fmt: skip
    return (partial[0] if splits == 1 else partial.sum(0)).to(dtype)
