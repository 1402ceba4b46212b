"""Device functions that the SwiGLU kernels share."""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def accumulator(dtype: torch.dtype) -> Any:
    """The dtype that kernels accumulate in: float64 for float64, float32 for every other dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
def load_sum(x_ptr, first_ptr, second_ptr, offsets, mask, TERMS: tl.constexpr, ACC: tl.constexpr):
    """`x + (first + second)` with 0, 1 or 2 terms, rounded once to x's dtype; masked elements are 0."""
    h = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    if TERMS >= 1:
        total = tl.load(first_ptr + offsets, mask=mask, other=0.0).to(ACC)
        if TERMS == 2:
            total += tl.load(second_ptr + offsets, mask=mask, other=0.0).to(ACC)
        h = (h.to(ACC) + total).to(x_ptr.dtype.element_ty)
    return h


@triton.jit
def below(offs, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """`offs < SIZE` for a block of indices; constant, so that loads lose their mask, where blocks end at SIZE."""
    if SIZE % BLOCK == 0:
        return tl.full(offs.shape, 1, tl.int1)
    else:
        return offs < SIZE


@triton.jit
def row_block(pid, R, BLOCK_R: tl.constexpr):
    """Batch index and row indices [BLOCK_R] of row block `pid`; int64."""
    blocks = tl.cdiv(R, BLOCK_R)  # divided in 32 bits, which hold a number of blocks
    return (pid // blocks).to(tl.int64), (pid % blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)


@triton.jit
def gate_up_unit(f, BLOCK_F: tl.constexpr):
    """Inner unit of each row of a gate-up tile that starts at unit f: [2 * BLOCK_F].

    The tile has 8 rows of gate, 8 of up, and so on. One product with both is twice as wide as two, and a tensor core
    accumulates columns in groups of 8, so gate and up of a unit, and the units that the next product reads together,
    are in one thread.
    """
    offs = tl.arange(0, 2 * BLOCK_F)
    return f + offs // 16 * 8 + offs % 8


@triton.jit
def gate_up_rows(f, F: tl.constexpr, BLOCK_F: tl.constexpr):
    """Rows of gate_up [2 F, N] in a tile that starts at unit f: [2 * BLOCK_F]."""
    return tl.arange(0, 2 * BLOCK_F) // 8 % 2 * F + gate_up_unit(f, BLOCK_F)


@triton.jit
def split_gate_up(z, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr):
    """gate and up [BLOCK_R, BLOCK_F] of a product z [BLOCK_R, 2 * BLOCK_F] with a gate-up tile."""
    z = tl.permute(tl.reshape(z, (BLOCK_R, BLOCK_F // 8, 2, 8)), (0, 1, 3, 2))
    gate, up = tl.split(z)
    return tl.reshape(gate, (BLOCK_R, BLOCK_F)), tl.reshape(up, (BLOCK_R, BLOCK_F))


@triton.jit
def join_gate_up(gate, up, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr):
    """The inverse of `split_gate_up`."""
    gate, up = tl.reshape(gate, (BLOCK_R, BLOCK_F // 8, 8)), tl.reshape(up, (BLOCK_R, BLOCK_F // 8, 8))
    return tl.reshape(tl.permute(tl.join(gate, up), (0, 1, 3, 2)), (BLOCK_R, 2 * BLOCK_F))


@triton.jit
def silu_gate(gate, up):
    """`silu(gate) * up`."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def silu_gate_backward(d_act, gate, up):
    """`silu(gate) * up` and the gradients of gate and up."""
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * sigmoid
    d_gate = d_act * up * (sigmoid + silu * (1.0 - sigmoid))
    return silu * up, d_gate, d_act * silu


@triton.jit
def overlap(OVERLAP: tl.constexpr):
    """Where launches overlap (sm_90 on): wait until the launch before has ended and what it stored is visible, and let
    the next one begin. Nothing is read or written before it (programmatic dependent launch)."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
