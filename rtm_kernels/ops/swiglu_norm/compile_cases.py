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
        for terms in (0, 2):
            name = f"swiglu_norm D={features} F={inner} terms={terms} bf16"
            yield CompileCase(name, partial(_run, features, inner, terms, torch.bfloat16))
