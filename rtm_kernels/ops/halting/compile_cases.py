"""Uses of halting that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from rtm_kernels.ops.halting import signals, update
from rtm_kernels.ops.halting.reference import HaltingState
from rtm_kernels.ops.launch import CompileCase


def _run(policy: str, pool: str, dtype: torch.dtype) -> None:
    batch, length, width = 8, 97, 512
    units = length if pool == "token" else 1
    y = torch.empty(batch, length, width, dtype=dtype, device="meta")
    weight, bias = y.new_empty(2, width, dtype=torch.float32), y.new_empty(2, dtype=torch.float32)
    logits = y.new_empty(batch, units, 2, dtype=torch.float32)
    numbers = [y.new_empty(batch, units, dtype=torch.float32) for _ in range(3)]
    steps = y.new_empty(batch, units, dtype=torch.int32)
    state = HaltingState(steps, y.new_empty(batch, units, dtype=torch.bool), *numbers)
    order, count = steps.new_empty(batch), steps.new_empty(1)
    first, change = None, None
    if policy == "settle":
        change = numbers[0][:, 0]
        signals.change(change, y, y, steps, steps)
    elif pool == "first":
        first = (y, weight, bias)
    else:
        signals.head(logits, y, weight, bias, pool == "mean")
    update.update(state, order, count, logits, policy, 1e-3, 16, order, first, change)


def compile_cases() -> Iterator[CompileCase]:
    """Every policy at the official size."""
    for policy, pool in (("q", "first"), ("q_continue", "mean"), ("cumulative_token", "token"), ("settle", "first")):
        name = f"halting {policy} {pool} D=512 bf16"
        yield CompileCase(name, partial(_run, policy, pool, torch.bfloat16))
