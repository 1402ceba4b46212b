"""Uses of the persistent kernel that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.ops.launch import CompileCase
from rtm_kernels.program import trm
from rtm_kernels.recursion.persistent.pack import PackedLayers
from rtm_kernels.recursion.persistent.runner import PersistentRecursion

CASES = (  # L, dtype, norm axis, has a halting head
    (97, torch.bfloat16, "sequence", True),
    (97, torch.bfloat16, "hidden", True),
    (97, torch.bfloat16, "sequence", False),
    (97, torch.float16, "hidden", True),
    (97, torch.float32, "sequence", True),
    (97, torch.float32, "hidden", True),
    (196, torch.bfloat16, "hidden", True),
)


def _run(length: int, dtype: torch.dtype, norm_axis: str, headed: bool) -> None:
    with torch.device("meta"):
        stack = Stack([FusedTRMBlock(512, length, norm_axis=norm_axis) for _ in range(2)])
        head = (torch.empty(2, 512), torch.empty(2)) if headed else None
    PersistentRecursion(trm(3, 6), PackedLayers({"L_level": stack}, dtype), 4, head=head).step()


def compile_cases() -> Iterator[CompileCase]:
    """The official Sudoku sizes in every dtype, and the longest shape class."""
    for length, dtype, norm_axis, headed in CASES:
        name = f"persistent L={length} {dtype} {norm_axis}{' head' * headed}".replace("torch.", "")
        yield CompileCase(name, partial(_run, length, dtype, norm_axis, headed))
