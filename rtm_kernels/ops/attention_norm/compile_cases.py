"""Uses of attention_norm that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from rtm_kernels.ops.attention_norm import op
from rtm_kernels.ops.launch import CompileCase

VARIANTS = (  # D, heads, injection terms, rope, qk_norm, dtype
    (512, 8, 0, True, False, torch.bfloat16),
    (512, 8, 2, True, False, torch.bfloat16),
    (512, 8, 2, True, True, torch.bfloat16),
    (512, 4, 0, True, False, torch.bfloat16),
    (1024, 4, 0, True, False, torch.bfloat16),
    (256, 8, 0, False, False, torch.bfloat16),
    (128, 8, 0, False, False, torch.bfloat16),
    (100, 4, 2, False, False, torch.bfloat16),
    (1000, 5, 0, False, False, torch.bfloat16),
    (512, 8, 2, True, True, torch.float32),
    (1024, 4, 0, True, False, torch.float32),
    (100, 4, 2, False, False, torch.float32),
    (1000, 5, 0, True, False, torch.float32),
)
"""The official size first, then every size of half a head, width of an output tile, odd width and precision."""


def _run(width: int, heads: int, terms: int, rope: bool, qk_norm: bool, dtype: torch.dtype, backward: bool) -> None:
    x = torch.empty(4, 97, width, dtype=dtype, device="meta")
    qkv_weight, o_weight = x.new_empty(3 * width, width), x.new_empty(width, width)
    table = x.new_empty(97, width // heads, dtype=torch.float32)
    options = ((table, table) if rope else None, heads, False, qk_norm, 1e-5)
    if backward:
        op.backward(x, x, table[:, 0], x, qkv_weight, o_weight, *options)
    else:
        op.forward(x, [x] * terms, qkv_weight, o_weight, *options, use_flash=False)


def compile_cases() -> Iterator[CompileCase]:
    """Every variant forward; backward those with an injection and those with wide heads, to reach every launch row."""
    for variant in VARIANTS:
        width, heads, terms, rope, qk_norm, dtype = variant
        name = f"attention_norm D={width} h={heads} terms={terms} rope={rope:d} qk_norm={qk_norm:d} {str(dtype)[6:]}"
        yield CompileCase(f"{name} forward", partial(_run, *variant, backward=False))
        if terms == 2 or width // heads >= 128:
            yield CompileCase(f"{name} backward", partial(_run, *variant, backward=True))
