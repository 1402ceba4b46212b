"""Uses of the queue's kernels that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from rtm_kernels.ops.launch import CompileCase
from rtm_kernels.recursion.queue import kernels
from rtm_kernels.recursion.queue.schedule import Moved, Schedule


def _run(dtype: torch.dtype) -> None:
    device = torch.device("meta")
    schedule = Schedule.empty(64, 1000, device)
    kernels.plan(schedule, torch.empty(64, dtype=torch.bool, device=device))
    latents, queue = (torch.empty(n, 97, 512, dtype=dtype, device=device) for n in (64, 1000))
    active = torch.empty(64, 1, dtype=torch.bool, device=device)
    kernels.carry_out(schedule, [Moved(latents, queue, queue), Moved(active, active[:1])])


def compile_cases() -> Iterator[CompileCase]:
    """The official Sudoku sizes."""
    for dtype in (torch.bfloat16, torch.float32):
        yield CompileCase(f"queue {dtype}".replace("torch.", ""), partial(_run, dtype))
