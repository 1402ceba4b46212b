"""Uses of swiglu_norm that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from rtm_kernels.ops.launch import CompileCase
from rtm_kernels.ops.swiglu_norm.backward import swiglu_norm_backward
from rtm_kernels.ops.swiglu_norm.forward import swiglu_norm_forward

SIZES = ((512, 1536), (1024, 2816), (128, 512), (64, 256), (24, 256))
"""(D, F): the official size first."""


def _run(features: int, inner: int, terms: int, dtype: torch.dtype) -> None:
    x = torch.empty(4, 97, features, dtype=dtype, device="meta")
    gate_up = torch.empty(2 * inner, features, dtype=dtype, device="meta")
    down = torch.empty(features, inner, dtype=dtype, device="meta")
    injection = [torch.empty_like(x) for _ in range(terms)]
    y, rstd = swiglu_norm_forward(x, gate_up, down, injection, 1e-5)
    swiglu_norm_backward(y, y, rstd, x, gate_up, down, injection, 1e-5)


def compile_cases() -> Iterator[CompileCase]:
    """Forward and backward at the sizes of every shape class."""
    for features, inner in SIZES:
        for terms, dtype in ((0, torch.float16), (2, torch.bfloat16)):
            name = f"D={features} F={inner} terms={terms} {str(dtype)[6:]}"
            yield CompileCase(name, partial(_run, features, inner, terms, dtype))
    yield CompileCase("D=512 F=1536 terms=2 float32", partial(_run, 512, 1536, 2, torch.float32))
