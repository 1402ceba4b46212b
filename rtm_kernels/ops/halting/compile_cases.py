"""Uses of halting that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from rtm_kernels.ops.halting.launchers import halting_step
from rtm_kernels.ops.halting.reference import HaltingState
from rtm_kernels.ops.launch import CompileCase

CASES = (
    ("q", "first"), ("q", "mean"), ("q_continue", "first"), ("q_continue", "mean"), ("cumulative_sequence", "first"),
    ("cumulative_sequence", "mean"), ("cumulative_token", "token"), ("settle", "first"), ("fixed", "first"),
)  # fmt: skip


def _run(policy: str, pool: str, dtype: torch.dtype) -> None:
    batch, length, width = 8, 97, 512
    units = length if pool == "token" else 1
    y = torch.empty(batch, length, width, dtype=dtype, device="meta")
    weight, bias = y.new_empty(2, width, dtype=torch.float32), y.new_empty(2, dtype=torch.float32)
    numbers = [y.new_empty(batch, units, dtype=torch.float32) for _ in range(3)]
    steps = y.new_empty(batch, units, dtype=torch.int32)
    state = HaltingState(steps, y.new_empty(batch, units, dtype=torch.bool), *numbers)
    headed = policy not in ("settle", "fixed")
    logits = y.new_empty(batch, units, 2 if headed else 0, dtype=torch.float32)
    head = (weight, bias) if headed else None
    answer = y.new_empty(batch, length, dtype=torch.int64)
    latents = (y, answer, answer) if policy == "settle" else None
    halting_step(state, y, logits, head, latents, policy, pool, 1e-3, 16, steps.new_empty(batch))


def compile_cases() -> Iterator[CompileCase]:
    """Every policy and pool at the official size."""
    for policy, pool in CASES:
        name = f"halting {policy} {pool} D=512 bf16"
        yield CompileCase(name, partial(_run, policy, pool, torch.bfloat16))
