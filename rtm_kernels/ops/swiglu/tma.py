"""Forward products whose programs loop over tiles and read the weights by TMA descriptors (Hopper and later).

The tiles of `GROUP` blocks of rows follow one another, so that the rows and the weights that programs share at one time
stay in L2. A tile is computed as in `forward.py`, whichever program takes it.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from rtm_kernels.ops.swiglu.tiles import below, row_block, silu_gate


@triton.jit
def grouped(tile, blocks_r, BLOCKS_N: tl.constexpr, GROUP: tl.constexpr):
    """Row block and column block of a tile, GROUP row blocks at a time, in each group column by column."""
    first = tile // (GROUP * BLOCKS_N) * GROUP
    size = tl.minimum(blocks_r - first, GROUP)
    inside = tile % (GROUP * BLOCKS_N)
    return first + inside % size, inside // size


@triton.jit
def gate_up_tma_kernel(
    a_ptr, h_ptr, gate_up_desc, B, R, programs,
    N: tl.constexpr, F: tl.constexpr, h_stride_b, h_stride_r, h_stride_n,
    ACC: tl.constexpr, GROUP: tl.constexpr, FLATTEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`a = silu(h gate^T) * (h up^T)`; a is [B * R, F] without gaps, the descriptor's block [BLOCK_F, BLOCK_N]."""
    BLOCKS_F: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    blocks_r = B * tl.cdiv(R, BLOCK_R)
    for tile in tl.range(tl.program_id(0), blocks_r * BLOCKS_F, programs, flatten=FLATTEN):
        pid_r, pid_f = grouped(tile, blocks_r, BLOCKS_F, GROUP)
        batch, offs_r = row_block(pid_r, R, BLOCK_R)
        start_f = pid_f * BLOCK_F
        offs_n = tl.arange(0, BLOCK_N)
        mask_r = offs_r < R
        h_offs = batch * h_stride_b + offs_r[:, None] * h_stride_r + offs_n.to(tl.int64)[None, :] * h_stride_n
        gate = tl.zeros((BLOCK_R, BLOCK_F), dtype=ACC)
        up = tl.zeros((BLOCK_R, BLOCK_F), dtype=ACC)
        for n in range(0, N, BLOCK_N):
            mask_h = mask_r[:, None] & below(n + offs_n, N, BLOCK_N)[None, :]
            offs = h_offs + n * tl.cast(h_stride_n, tl.int64)
            h = tl.load(h_ptr + offs, mask=mask_h, other=0.0)  # [BR, BN]
            w_gate = gate_up_desc.load([start_f, n])  # [BF, BN]
            w_up = gate_up_desc.load([F + start_f, n])
            gate = tl.dot(h, w_gate.T, gate, out_dtype=ACC, input_precision="ieee")
            up = tl.dot(h, w_up.T, up, out_dtype=ACC, input_precision="ieee")
        act = silu_gate(gate, up).to(a_ptr.dtype.element_ty)
        offs_f = start_f + tl.arange(0, BLOCK_F)
        a_offs = (batch * R + offs_r)[:, None] * F + offs_f[None, :]
        tl.store(a_ptr + a_offs, act, mask=mask_r[:, None] & below(offs_f, F, BLOCK_F)[None, :])


@triton.jit
def gemm_tma_kernel(
    y_ptr, a_ptr, w_desc, h_ptr, B, R, programs,
    N: tl.constexpr, K: tl.constexpr, h_stride_b, h_stride_r, h_stride_n, y_stride_b, y_stride_r, y_stride_n,
    RESIDUAL: tl.constexpr, ACC: tl.constexpr, K_MAJOR: tl.constexpr,
    GROUP: tl.constexpr, FLATTEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`y = (h +) a w^T`; a is [B * R, K] without gaps.

    The descriptor is over w [at least N, K] with `K_MAJOR`, over w^T otherwise.
    """
    BLOCKS_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    blocks_r = B * tl.cdiv(R, BLOCK_R)
    for tile in tl.range(tl.program_id(0), blocks_r * BLOCKS_N, programs, flatten=FLATTEN):
        pid_r, pid_n = grouped(tile, blocks_r, BLOCKS_N, GROUP)
        batch, offs_r = row_block(pid_r, R, BLOCK_R)
        start_n = pid_n * BLOCK_N
        offs_n, offs_k = start_n + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
        mask_r = offs_r < R
        a_ptrs = a_ptr + (batch * R + offs_r)[:, None] * K + offs_k[None, :]
        mask = mask_r[:, None] & below(offs_n, N, BLOCK_N)[None, :]
        wide_n = offs_n.to(tl.int64)[None, :]
        acc = tl.zeros((BLOCK_R, BLOCK_N), dtype=ACC)
        if RESIDUAL:
            h_offs = batch * h_stride_b + offs_r[:, None] * h_stride_r + wide_n * h_stride_n
            acc = tl.load(h_ptr + h_offs, mask=mask, other=0.0).to(ACC)
        for k in range(0, K, BLOCK_K):
            a = tl.load(a_ptrs + k, mask=mask_r[:, None] & below(k + offs_k, K, BLOCK_K)[None, :], other=0.0)
            w = w_desc.load([start_n, k]).T if K_MAJOR else w_desc.load([k, start_n])  # [BK, BN]
            acc = tl.dot(a, w, acc, out_dtype=ACC, input_precision="ieee")
        y_offs = batch * y_stride_b + offs_r[:, None] * y_stride_r + wide_n * y_stride_n
        tl.store(y_ptr + y_offs, acc.to(y_ptr.dtype.element_ty), mask=mask)
