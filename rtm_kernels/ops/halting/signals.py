"""Device functions of what a policy reads of one sample's latent: its halting head, pooled or per token, or its change.

Pointers are those of the sample; a latent has strides. Sums run over tiles of fixed shape in order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(y_ptr, offs_l, offs_d, stride_l, stride_d, mask_l, D):
    """Elements [BLOCK_L, BLOCK_D] of a latent in float32; masked ones are 0."""
    y_ptrs = y_ptr + offs_l[:, None] * stride_l + offs_d[None, :] * stride_d
    mask = mask_l[:, None] & (offs_d < D)[None, :]
    # in the persistent kernel other multiprocessors wrote it: not by way of this one's first cache
    return tl.load(y_ptrs, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)


@triton.jit
def head_rows(
    y_ptr, weight_ptr, offs_l, mask_l, stride_l, stride_d, D,
    K: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`y w^T` of the rows offs_l for both rows of w (the only one twice): two vectors [BLOCK_L], 0 where masked."""
    first = tl.zeros((BLOCK_L,), dtype=tl.float32)
    second = tl.zeros((BLOCK_L,), dtype=tl.float32)
    for d in range(0, D, BLOCK_D):
        offs_d = d + tl.arange(0, BLOCK_D).to(tl.int64)
        y = load_tile(y_ptr, offs_l, offs_d, stride_l, stride_d, mask_l, D)
        weight = tl.load(weight_ptr + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)
        first += tl.sum(y * weight[None, :], axis=1)
        if K == 2:
            weight = tl.load(weight_ptr + D + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)
            second += tl.sum(y * weight[None, :], axis=1)
    return first, second if K == 2 else first


@triton.jit
def head_of(
    y_ptr, weight_ptr, bias_ptr, u, stride_l, stride_d, L, D, POOL: tl.constexpr, HAS_BIAS: tl.constexpr,
    K: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`pooled(y) w^T + b`, two vectors [BLOCK_L]: of the tokens from u on, or everywhere that of the pooled row."""
    rows = tl.arange(0, BLOCK_L).to(tl.int64)
    if POOL == "mean":
        first = tl.zeros((BLOCK_L,), dtype=tl.float32)
        second = tl.zeros((BLOCK_L,), dtype=tl.float32)
        for l in range(0, L, BLOCK_L):  # noqa: E741
            more = head_rows(y_ptr, weight_ptr, l + rows, l + rows < L, stride_l, stride_d, D, K, BLOCK_L, BLOCK_D)
            first += more[0]
            second += more[1]
    else:
        end = L if POOL == "token" else 1
        first, second = head_rows(
            y_ptr, weight_ptr, u + rows, u + rows < end, stride_l, stride_d, D, K, BLOCK_L, BLOCK_D
        )
    if POOL != "token":
        count = L if POOL == "mean" else 1
        first = tl.zeros((BLOCK_L,), dtype=tl.float32) + tl.sum(first, axis=0) / count
        second = tl.zeros((BLOCK_L,), dtype=tl.float32) + tl.sum(second, axis=0) / count
    if HAS_BIAS:
        first += tl.load(bias_ptr).to(tl.float32)
        second += tl.load(bias_ptr + (K - 1)).to(tl.float32)
    return first, second


@triton.jit
def relative_change(
    y_ptr, previous_ptr, stride_l, stride_d, previous_stride_l, previous_stride_d, L, D,
    BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`|y - previous| / |y|` over all of a sample."""
    rows = tl.arange(0, BLOCK_L).to(tl.int64)
    change = tl.zeros((BLOCK_L,), dtype=tl.float32)
    size = tl.zeros((BLOCK_L,), dtype=tl.float32)
    for l in range(0, L, BLOCK_L):  # noqa: E741
        for d in range(0, D, BLOCK_D):
            offs_d = d + tl.arange(0, BLOCK_D).to(tl.int64)
            y = load_tile(y_ptr, l + rows, offs_d, stride_l, stride_d, l + rows < L, D)
            before = load_tile(previous_ptr, l + rows, offs_d, previous_stride_l, previous_stride_d, l + rows < L, D)
            change += tl.sum((y - before) * (y - before), axis=1)
            size += tl.sum(y * y, axis=1)
    return tl.sqrt(tl.sum(change, axis=0)) / tl.maximum(tl.sqrt(tl.sum(size, axis=0)), 1e-30)


@triton.jit
def differing(answer_ptr, before_ptr, A, BLOCK: tl.constexpr):
    """How many of a sample's A answer tokens are not those of the step before."""
    found = tl.zeros((BLOCK,), dtype=tl.int32)
    for a in range(0, A, BLOCK):
        offs = a + tl.arange(0, BLOCK)
        answer = tl.load(answer_ptr + offs, mask=offs < A, other=0)
        before = tl.load(before_ptr + offs, mask=offs < A, other=0)
        found += (answer != before).to(tl.int32)
    return tl.sum(found, axis=0)
