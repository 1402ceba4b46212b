"""Kernels of what a policy reads when it is more than the first position: pooled heads and the change of a latent."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.halting.launch import TABLE
from rtm_kernels.ops.launch import launch, select


@triton.jit
def head_kernel(
    logits_ptr, y_ptr, weight_ptr, bias_ptr, L, D, TILES,
    MEAN: tl.constexpr, HAS_BIAS: tl.constexpr, K: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`y w^T + b` for one tile of tokens, or for the mean over all L tokens of one sample; K is 1 or 2."""
    pid = tl.program_id(0).to(tl.int64)
    batch, start = pid // TILES, (pid % TILES) * BLOCK_L
    rows, offs_d = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_D)
    first = tl.zeros((BLOCK_L,), dtype=tl.float32)
    second = tl.zeros((BLOCK_L,), dtype=tl.float32)
    end = L if MEAN else BLOCK_L
    for l in range(0, end, BLOCK_L):  # noqa: E741
        offs_l = start + l + rows
        for d in range(0, D, BLOCK_D):
            mask_d = d + offs_d < D
            mask = (offs_l < L)[:, None] & mask_d[None, :]
            y_ptrs = y_ptr + (batch * L + offs_l)[:, None] * D + (d + offs_d)[None, :]
            y = tl.load(y_ptrs, mask=mask, other=0.0).to(tl.float32)
            weight = tl.load(weight_ptr + d + offs_d, mask=mask_d, other=0.0).to(tl.float32)
            first += tl.sum(y * weight[None, :], axis=1)
            if K == 2:
                weight = tl.load(weight_ptr + D + d + offs_d, mask=mask_d, other=0.0).to(tl.float32)
                second += tl.sum(y * weight[None, :], axis=1)
    if MEAN:
        first = tl.where(rows == 0, tl.sum(first, axis=0) / L, 0.0)
        second = tl.where(rows == 0, tl.sum(second, axis=0) / L, 0.0)
        unit, mask_u = batch + rows, rows == 0
    else:
        unit, mask_u = batch * L + start + rows, start + rows < L
    if HAS_BIAS:
        first += tl.load(bias_ptr).to(tl.float32)
        second += tl.load(bias_ptr + (K - 1)).to(tl.float32)
    tl.store(logits_ptr + unit * K, first, mask=mask_u)
    if K == 2:
        tl.store(logits_ptr + unit * K + 1, second, mask=mask_u)


@triton.jit
def change_kernel(
    change_ptr, y_ptr, previous_ptr, answer_ptr, previous_answer_ptr, N, A, HAS_ANSWER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """`|y - previous| / |y|` of one sample of N elements, or 0 when its A answer tokens did not change."""
    batch = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    change = tl.zeros((BLOCK,), dtype=tl.float32)
    size = tl.zeros((BLOCK,), dtype=tl.float32)
    for n in range(0, N, BLOCK):
        mask = n + offs < N
        y = tl.load(y_ptr + batch * N + n + offs, mask=mask, other=0.0).to(tl.float32)
        delta = y - tl.load(previous_ptr + batch * N + n + offs, mask=mask, other=0.0).to(tl.float32)
        change += delta * delta
        size += y * y
    ratio = tl.sqrt(tl.sum(change, axis=0)) / tl.maximum(tl.sqrt(tl.sum(size, axis=0)), 1e-30)
    if HAS_ANSWER:
        differing = tl.zeros((BLOCK,), dtype=tl.int32)
        for a in range(0, A, BLOCK):
            mask = a + offs < A
            answer = tl.load(answer_ptr + batch * A + a + offs, mask=mask, other=0)
            before = tl.load(previous_answer_ptr + batch * A + a + offs, mask=mask, other=0)
            differing += (answer != before).to(tl.int32)
        ratio = tl.where(tl.sum(differing, axis=0) == 0, 0.0, ratio)
    tl.store(change_ptr + batch, ratio)


def head(logits: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, mean: bool) -> None:
    """Write the logits [B, U, K] of y [B, L, D] for U = L tokens or, with `mean`, U = 1; all contiguous."""
    batch, length, width = y.shape
    row = select(TABLE, "halting.head", y.dtype, width)
    tiles = 1 if mean else triton.cdiv(length, row.blocks["BLOCK_L"])
    launch(
        head_kernel, row, (batch * tiles,), logits, y, weight, weight if bias is None else bias, length, width, tiles,
        MEAN=mean, HAS_BIAS=bias is not None, K=weight.shape[0],
    )  # fmt: skip


def change(out: Tensor, y: Tensor, previous: Tensor, answer: Tensor | None, previous_answer: Tensor | None) -> None:
    """Write the relative change [B] of y [B, L, D], 0 where the answer [B, A] is the one before; all contiguous."""
    batch, size = len(y), y[0].numel()
    row = select(TABLE, "halting.change", y.dtype, y.shape[2])
    answers = (y, y) if answer is None or previous_answer is None else (answer, previous_answer)
    launch(
        change_kernel, row, (batch,), out, y, previous, *answers, size, 0 if answer is None else answer[0].numel(),
        HAS_ANSWER=answer is not None,
    )  # fmt: skip
