"""Uses of swiglu_norm and mixer_norm that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch

from rtm_kernels.ops.launch import CompileCase, preferring
from rtm_kernels.ops.swiglu.launch import TABLE
from rtm_kernels.ops.swiglu_norm.op import backward, forward

CASES = (  # L, D, F, mixed axis, normed axis, injection terms, dtype; Sudoku's L = 97, and 916 of ARC and Maze
    (97, 512, 1536, "hidden", "hidden", 0, torch.bfloat16),
    (97, 512, 1536, "hidden", "hidden", 2, torch.float16),
    (97, 512, 1536, "hidden", "hidden", 2, torch.float32),
    (97, 1024, 2816, "hidden", "hidden", 0, torch.bfloat16),
    (97, 256, 1024, "hidden", "hidden", 0, torch.bfloat16),
    (97, 128, 512, "hidden", "hidden", 2, torch.bfloat16),
    (97, 64, 256, "hidden", "hidden", 2, torch.bfloat16),
    (97, 24, 256, "hidden", "hidden", 2, torch.bfloat16),
    (97, 512, 512, "sequence", "sequence", 2, torch.bfloat16),
    (97, 512, 512, "sequence", "hidden", 0, torch.float16),
    (97, 512, 512, "sequence", "sequence", 2, torch.float32),
    (916, 512, 2560, "sequence", "sequence", 2, torch.bfloat16),
    (916, 512, 2560, "sequence", "hidden", 0, torch.bfloat16),
    (49, 512, 256, "sequence", "sequence", 2, torch.bfloat16),
    (16, 128, 256, "sequence", "sequence", 2, torch.bfloat16),
)

TMA_CASES = (
    (97, 512, 1536, "hidden", "hidden", 0, torch.bfloat16),
    (97, 1024, 2816, "hidden", "hidden", 0, torch.bfloat16),
    (916, 512, 2560, "sequence", "sequence", 2, torch.bfloat16),
    (916, 512, 2560, "sequence", "hidden", 0, torch.float16),
)


def _run(
    length: int, width: int, inner: int, mixed: str, normed: str, terms: int, dtype: torch.dtype, variant: str = ""
) -> None:
    x = torch.empty(4, length, width, dtype=dtype, device="meta")
    size = width if mixed == "hidden" else length
    weights = x.new_empty(2 * inner, size), x.new_empty(size, inner)
    options = ([torch.empty_like(x) for _ in range(terms)], mixed, normed, 1e-5)
    with preferring(variant, TABLE) if variant else nullcontext():
        y, rstd = forward(x, *weights, *options)
        backward(y, y, rstd, x, *weights, *options)


def compile_cases() -> Iterator[CompileCase]:
    """Forward and backward at the sizes of every shape class."""
    for variant, cases in (("", CASES), ("tma", TMA_CASES)):
        for case in cases:
            length, width, inner, mixed, normed, terms, dtype = case
            name = f"D={width} F={inner}" if mixed == "hidden" else f"L={length} D={width} F={inner} {normed}"
            name = f"{name} terms={terms} {str(dtype).removeprefix('torch.')} {variant}".rstrip()
            yield CompileCase(name, partial(_run, *case, variant=variant))
