"""Uses of swiglu_norm that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from rtm_kernels.ops.launch import CompileCase
from rtm_kernels.ops.swiglu_norm.backward import swiglu_norm_backward
from rtm_kernels.ops.swiglu_norm.forward import swiglu_norm_forward

CASES = (  # D, F, injection terms, dtype
    (512, 1536, 0, torch.bfloat16),
    (512, 1536, 2, torch.float16),
    (512, 1536, 2, torch.float32),
    (1024, 2816, 0, torch.bfloat16),
    (128, 512, 2, torch.bfloat16),
    (64, 256, 2, torch.bfloat16),
    (24, 256, 2, torch.bfloat16),
)


def _run(features: int, inner: int, terms: int, dtype: torch.dtype) -> None:
    x = torch.empty(4, 97, features, dtype=dtype, device="meta")
    gate_up = torch.empty(2 * inner, features, dtype=dtype, device="meta")
    down = torch.empty(features, inner, dtype=dtype, device="meta")
    injection = [torch.empty_like(x) for _ in range(terms)]
    y, rstd = swiglu_norm_forward(x, gate_up, down, injection, 1e-5)
    swiglu_norm_backward(y, y, rstd, x, gate_up, down, injection, 1e-5)


def compile_cases() -> Iterator[CompileCase]:
    """Forward and backward at the sizes of every shape class."""
    for features, inner, terms, dtype in CASES:
        name = f"D={features} F={inner} terms={terms} {str(dtype).removeprefix('torch.')}"
        yield CompileCase(name, partial(_run, features, inner, terms, dtype))
