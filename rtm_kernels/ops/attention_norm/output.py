"""Forward kernels of the output projection with residual and the weightless RMSNorm."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.attention_norm.launch import TABLE, named
from rtm_kernels.ops.attention_norm.tiles import accumulator
from rtm_kernels.ops.launch import launch, select


@triton.jit
def output_kernel(
    y_ptr, rstd_ptr, mixed_ptr, h_ptr, w_ptr, eps, M, D,
    NORMALISE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`y = h + mixed w^T`, one [BLOCK_M, BLOCK_N] tile, normalised when BLOCK_N holds the whole row."""
    blocks_n = tl.cdiv(D, BLOCK_N)
    pid = tl.program_id(0).to(tl.int64)
    start = (pid // blocks_n) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    offs_n = (pid % blocks_n).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    mask_m, mask_n = rows < M - start, offs_n < D
    mixed_ptrs = mixed_ptr + start * D + rows[:, None] * D + offs_k[None, :]
    w_ptrs = w_ptr + offs_n.to(tl.int64)[None, :] * D + offs_k[:, None]

    mask = mask_m[:, None] & mask_n[None, :]
    offs = rows[:, None] * D + offs_n[None, :]
    acc = tl.load(h_ptr + start * D + offs, mask=mask, other=0.0).to(ACC)
    for k in range(0, D, BLOCK_K):
        mask_k = k + offs_k < D
        mixed = tl.load(mixed_ptrs, mask=mask_m[:, None] & mask_k[None, :], other=0.0)  # [BM, BK]
        w = tl.load(w_ptrs, mask=mask_k[:, None] & mask_n[None, :], other=0.0)  # [BK, BN]
        acc = tl.dot(mixed, w, acc, out_dtype=ACC, input_precision="ieee")
        mixed_ptrs += BLOCK_K
        w_ptrs += BLOCK_K

    if NORMALISE:
        rstd = 1.0 / tl.sqrt(tl.sum(acc * acc, axis=1) / D + tl.cast(eps, ACC))
        tl.store(rstd_ptr + start + rows, rstd, mask=mask_m)
        acc *= rstd[:, None]
    tl.store(y_ptr + start * D + offs, acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def normalise_kernel(
    y_ptr, rstd_ptr, eps, M, D, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """`y <- y rsqrt(mean(y^2) + eps)` over each row, in place."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    mask_m = rows < M - start
    y_ptrs = y_ptr + start * D + rows[:, None] * D + offs_n[None, :]
    squares = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for n in range(0, D, BLOCK_N):
        y = tl.load(y_ptrs + n, mask=mask_m[:, None] & (n + offs_n < D)[None, :], other=0.0).to(ACC)
        squares += y * y
    rstd = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / D + tl.cast(eps, ACC))
    tl.store(rstd_ptr + start + rows, rstd, mask=mask_m)
    for n in range(0, D, BLOCK_N):
        mask = mask_m[:, None] & (n + offs_n < D)[None, :]
        y = tl.load(y_ptrs + n, mask=mask, other=0.0).to(ACC) * rstd[:, None]
        tl.store(y_ptrs + n, y.to(y_ptr.dtype.element_ty), mask=mask)


def project_output(y: Tensor, rstd: Tensor, mixed: Tensor, h: Tensor, weight: Tensor, eps: float) -> None:
    """Write y = rms_norm(h + mixed weight^T) [M, D] and its scale rstd [M]; all contiguous, weight [D, D]."""
    rows, width = h.shape
    row = select(TABLE, named("attention_norm.output", width), h.dtype, width)
    whole = width <= row.blocks["BLOCK_N"]
    acc = accumulator(h.dtype)
    grid = triton.cdiv(rows, row.blocks["BLOCK_M"]) * triton.cdiv(width, row.blocks["BLOCK_N"])
    launch(output_kernel, row, (grid,), y, rstd, mixed, h, weight, eps, rows, width, NORMALISE=whole, ACC=acc)
    if not whole:
        row = select(TABLE, "attention_norm.normalise", h.dtype, width)
        grid = triton.cdiv(rows, row.blocks["BLOCK_M"])
        launch(normalise_kernel, row, (grid,), y, rstd, eps, rows, width, ACC=acc)
