"""Device functions that the kernels of attention_norm share."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


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
def load_halves(ptrs, half, mask_a, mask_b, other, ACC: tl.constexpr):
    """The values at `ptrs` and `half` elements further: the first and the second half of each head."""
    return tl.load(ptrs, mask=mask_a, other=other).to(ACC), tl.load(ptrs + half, mask=mask_b, other=other).to(ACC)


@triton.jit
def store_halves(ptrs, a, b, half, mask_a, mask_b):
    """Store a at `ptrs` and b `half` elements further."""
    tl.store(ptrs, a.to(ptrs.dtype.element_ty), mask=mask_a)
    tl.store(ptrs + half, b.to(ptrs.dtype.element_ty), mask=mask_b)


def accumulator(dtype: torch.dtype) -> Any:
    """The dtype that kernels accumulate in: float64 for float64, float32 for every other dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32
