"""Uses of mixer_norm that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from rtm_kernels.ops.launch import CompileCase, preferring
from rtm_kernels.ops.mixer_norm.backward import mixer_norm_backward
from rtm_kernels.ops.mixer_norm.forward import mixer_norm_forward
from rtm_kernels.ops.mixer_norm.launch import TABLE

CASES = (  # L, D, F, norm axis, injection terms, dtype; Sudoku's L = 97, and 916 of ARC and Maze
    (97, 512, 512, "sequence", 2, torch.bfloat16),
    (97, 512, 512, "hidden", 0, torch.float16),
    (97, 512, 512, "sequence", 2, torch.float32),
    (916, 512, 2560, "sequence", 2, torch.bfloat16),
    (916, 512, 2560, "hidden", 0, torch.bfloat16),
    (49, 512, 256, "sequence", 2, torch.bfloat16),
    (16, 128, 256, "sequence", 2, torch.bfloat16),
)

TMA_CASES = ((916, 512, 2560, "sequence", 2, torch.bfloat16), (916, 512, 2560, "hidden", 0, torch.float16))


def _name(length: int, features: int, inner: int, norm_axis: str, terms: int, dtype: torch.dtype) -> str:
    return f"L={length} D={features} F={inner} {norm_axis} terms={terms} {str(dtype).removeprefix('torch.')}"


def _run(length: int, features: int, inner: int, norm_axis: str, terms: int, dtype: torch.dtype) -> None:
    x = torch.empty(4, length, features, dtype=dtype, device="meta")
    gate_up = torch.empty(2 * inner, length, dtype=dtype, device="meta")
    down = torch.empty(length, inner, dtype=dtype, device="meta")
    injection = [torch.empty_like(x) for _ in range(terms)]
    y, rstd = mixer_norm_forward(x, gate_up, down, injection, norm_axis, 1e-5)
    mixer_norm_backward(y, y, rstd, x, gate_up, down, injection, norm_axis, 1e-5)


def _run_tma(*case: Any) -> None:
    with preferring("tma", TABLE):
        _run(*case)


def compile_cases() -> Iterator[CompileCase]:
    """Forward and backward at the sizes of every shape class."""
    for case in CASES:
        yield CompileCase(_name(*case), partial(_run, *case))
    for case in TMA_CASES:
        yield CompileCase(f"{_name(*case)} tma", partial(_run_tma, *case))
