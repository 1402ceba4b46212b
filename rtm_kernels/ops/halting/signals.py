"""Device functions of what halting reads of one sample's latents: its head, its change, and whether it is finite.

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
def rounded(products):
    """Products that a sum over lanes does not fuse with: each lane would round another one of a pair."""
    return products + 0.0


@triton.jit
def head_of(
    y_ptr, weight_ptr, bias_ptr, offs_l, mask_l, stride_l, stride_d, D,
    HAS_BIAS: tl.constexpr, COMPARES: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The halting logit [BLOCK_L] of the positions offs_l: `y w^T + b`, of its first row, less that of its second."""
    first = tl.zeros((BLOCK_L,), dtype=tl.float32)
    second = tl.zeros((BLOCK_L,), dtype=tl.float32)
    for d in range(0, D, BLOCK_D):
        offs_d = d + tl.arange(0, BLOCK_D).to(tl.int64)
        y = load_tile(y_ptr, offs_l, offs_d, stride_l, stride_d, mask_l, D)
        weight = tl.load(weight_ptr + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)
        first += tl.sum(rounded(y * weight[None, :]), axis=1)
        if COMPARES:
            weight = tl.load(weight_ptr + D + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)
            second += tl.sum(rounded(y * weight[None, :]), axis=1)
    if HAS_BIAS:
        first += tl.load(bias_ptr).to(tl.float32)
        if COMPARES:
            second += tl.load(bias_ptr + 1).to(tl.float32)
    return first - second


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
            change += tl.sum(rounded((y - before) * (y - before)), axis=1)
            size += tl.sum(rounded(y * y), axis=1)
    return tl.sqrt(tl.sum(change, axis=0)) / tl.maximum(tl.sqrt(tl.sum(size, axis=0)), 1e-30)


@triton.jit
def broken(y_ptr, stride_l, stride_d, L, D, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr):
    """How many elements of a sample's latent are NaN or infinite."""
    rows = tl.arange(0, BLOCK_L).to(tl.int64)
    count = tl.zeros((BLOCK_L,), dtype=tl.int32)
    for l in range(0, L, BLOCK_L):  # noqa: E741
        for d in range(0, D, BLOCK_D):
            offs_d = d + tl.arange(0, BLOCK_D).to(tl.int64)
            y = load_tile(y_ptr, l + rows, offs_d, stride_l, stride_d, l + rows < L, D)
            count += tl.sum(((tl.abs(y) < float("inf")) == 0).to(tl.int32), axis=1)
    return tl.sum(count, axis=0)


@triton.jit
def decode(logits_ptr, offs_s, mask_s, stride_s, stride_v, V, BLOCK_S: tl.constexpr):
    """The likeliest token [BLOCK_S] int32 of each position, the first of equals and the first NaN as in PyTorch, and
    how many logits are NaN or infinite."""
    best = tl.load(logits_ptr + offs_s * stride_s, mask=mask_s, other=0.0).to(tl.float32)
    token = tl.zeros((BLOCK_S,), dtype=tl.int32)
    wrong = ((tl.abs(best) < float("inf")) == 0).to(tl.int32)
    for v in range(1, V):
        z = tl.load(logits_ptr + offs_s * stride_s + v * stride_v, mask=mask_s, other=0.0).to(tl.float32)
        above = (best == best) & ((z > best) | (z != z))
        token = tl.where(above, v, token)
        best = tl.where(above, z, best)
        wrong += ((tl.abs(z) < float("inf")) == 0).to(tl.int32)
    return token, tl.sum(wrong, axis=0)


@triton.jit
def sigmoid64(logit):
    """`reference.sigmoid` of a float32, operation by operation in float64: the same bits without fused products."""
    x = logit.to(tl.float64)
    size = tl.abs(x)
    t = tl.where(size > 64, 64.0, size) * (-1 / 4096)
    exponential = t * 0 + 1.0
    for n in tl.static_range(6):
        exponential = exponential * t * (1 / (6 - n)) + 1.0
    for _ in tl.static_range(12):
        exponential = exponential * exponential
    small = exponential / (exponential + 1.0)
    return tl.where(x < 0, small, 1.0 - small)
