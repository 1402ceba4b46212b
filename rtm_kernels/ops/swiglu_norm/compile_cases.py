"""Uses of swiglu_norm that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from rtm_kernels.ops.launch import CompileCase, preferring
from rtm_kernels.ops.swiglu_norm.backward import swiglu_norm_backward
from rtm_kernels.ops.swiglu_norm.forward import swiglu_norm_forward
from rtm_kernels.ops.swiglu_norm.launch import TABLE

CASES = (  # D, F, injection terms, dtype
    (512, 1536, 0, torch.bfloat16),
    (512, 1536, 2, torch.float16),
    (512, 1536, 2, torch.float32),
    (1024, 2816, 0, torch.bfloat16),
    (128, 512, 2, torch.bfloat16),
    (64, 256, 2, torch.bfloat16),
    (24, 256, 2, torch.bfloat16),
)

TMA_CASES = ((512, 1536, 0, torch.bfloat16), (512, 1536, 2, torch.float16), (1024, 2816, 0, torch.bfloat16))


def _name(features: int, inner: int, terms: int, dtype: torch.dtype) -> str:
    return f"D={features} F={inner} terms={terms} {str(dtype).removeprefix('torch.')}"


def _run(features: int, inner: int, terms: int, dtype: torch.dtype) -> None:
    x = torch.empty(4, 97, features, dtype=dtype, device="meta")
    gate_up = torch.empty(2 * inner, features, dtype=dtype, device="meta")
    down = torch.empty(features, inner, dtype=dtype, device="meta")
    injection = [torch.empty_like(x) for _ in range(terms)]
    y, rstd = swiglu_norm_forward(x, gate_up, down, injection, 1e-5)
    swiglu_norm_backward(y, y, rstd, x, gate_up, down, injection, 1e-5)


def _run_tma(*case: Any) -> None:
    with preferring("tma", TABLE):
        _run(*case)


def compile_cases() -> Iterator[CompileCase]:
    """Forward and backward at the sizes of every shape class."""
    for case in CASES:
        yield CompileCase(_name(*case), partial(_run, *case))
    for case in TMA_CASES:
        yield CompileCase(f"{_name(*case)} tma", partial(_run_tma, *case))
