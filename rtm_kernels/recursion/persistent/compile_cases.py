"""Uses of the persistent kernel that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.ops.launch import CompileCase
from rtm_kernels.program import trm
from rtm_kernels.recursion.head import HaltingHead
from rtm_kernels.recursion.persistent.pack import PackedWeights
from rtm_kernels.recursion.persistent.runner import PersistentRecursion

CASES = (  # L, dtype, policy, pool, norm axis
    (97, torch.bfloat16, "q", "first", "sequence"),
    (97, torch.bfloat16, "q_continue", "first", "sequence"),
    (97, torch.bfloat16, "settle", "first", "hidden"),
    (97, torch.bfloat16, "cumulative_sequence", "mean", "sequence"),
    (97, torch.bfloat16, "cumulative_token", "token", "hidden"),
    (97, torch.bfloat16, "fixed", "first", "hidden"),
    (97, torch.bfloat16, None, "first", "sequence"),
    (97, torch.float16, "q", "first", "hidden"),
    (97, torch.float32, "q", "first", "sequence"),
    (97, torch.float32, "cumulative_token", "token", "hidden"),
    (196, torch.bfloat16, "cumulative_token", "token", "hidden"),
)


def _run(length: int, dtype: torch.dtype, policy: str | None, pool: str, norm_axis: str) -> None:
    with torch.device("meta"):
        stack = Stack([FusedTRMBlock(512, length, norm_axis=norm_axis) for _ in range(2)])
        head = None
        if policy is not None:
            head = HaltingHead(policy, 16, torch.empty(2, 512), torch.empty(2), pool=pool)
    PersistentRecursion(trm(3, 6), PackedWeights({"L_level": stack}, dtype), 4, head=head).step()


def compile_cases() -> Iterator[CompileCase]:
    """The official Sudoku sizes under every policy, float32, and the longest shape class."""
    for length, dtype, policy, pool, norm_axis in CASES:
        name = f"persistent L={length} {dtype} {policy} {norm_axis}".replace("torch.", "")
        yield CompileCase(name, partial(_run, length, dtype, policy, pool, norm_axis))
