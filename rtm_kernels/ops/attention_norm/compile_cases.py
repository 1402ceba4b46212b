"""Uses of attention_norm that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from rtm_kernels.ops.attention_norm import steps
from rtm_kernels.ops.launch import CompileCase

SIZES = ((512, 8), (512, 4), (1024, 4), (256, 8), (128, 8), (100, 4))
"""(D, heads): the official size first, then every size of half a head and every width of an output tile."""


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _run(width: int, heads: int, terms: int, rope: bool, qk_norm: bool, dtype: torch.dtype) -> None:
    x = _empty(4, 97, width, dtype=dtype)
    qkv_weight, o_weight = _empty(3 * width, width, dtype=dtype), _empty(width, width, dtype=dtype)
    table = _empty(97, width // heads, dtype=torch.float32)
    options = ((table, table) if rope else None, heads, False, qk_norm, 1e-5)
    y, rstd, h = steps.forward(x, [x] * terms, qkv_weight, o_weight, *options, use_flash=False)
    steps.backward(y, y, rstd, h if terms else x, qkv_weight, o_weight, *options)


def compile_cases() -> Iterator[CompileCase]:
    """Forward and backward at every shape class in bfloat16, and each variant at the official size."""
    for width, heads in SIZES:
        name = f"attention_norm D={width} heads={heads} bf16"
        yield CompileCase(name, partial(_run, width, heads, 0, width != 100, False, torch.bfloat16))
        name = f"attention_norm D={width} heads={heads} fp32"
        yield CompileCase(name, partial(_run, width, heads, 2, width != 100, True, torch.float32))
    for terms, rope, qk_norm in ((2, True, False), (2, True, True), (1, False, True)):
        name = f"attention_norm D=512 heads=8 terms={terms} rope={rope:d} qk_norm={qk_norm:d} bf16"
        yield CompileCase(name, partial(_run, 512, 8, terms, rope, qk_norm, torch.bfloat16))
