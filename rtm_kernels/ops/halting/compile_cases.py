"""Uses of halting that reach every launch row, for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from rtm_kernels.ops.halting.launcher import halting_step
from rtm_kernels.ops.halting.policy import HaltingPolicy
from rtm_kernels.ops.halting.reference import Outputs
from rtm_kernels.ops.halting.state import SlotStates
from rtm_kernels.ops.launch import CompileCase

POLICIES = ("q", "q_continue=0.9+settle=3/0.001", "cumulative", "cumulative_token", "settle", "fixed", "verified")


def _run(text: str, dtype: torch.dtype) -> None:
    batch, length, width, device = 8, 97, 512, torch.device("meta")
    states = SlotStates(HaltingPolicy.parse(text), batch, 81, 16, device)
    y, logits = (torch.empty(batch, length, d, dtype=dtype, device=device) for d in (width, 11))
    head = torch.empty(2, width, device=device), torch.empty(2, device=device)
    q = torch.empty(batch, 2, device=device)
    seen = Outputs(logits[:, 16:], q, y, y, (y,), head, compares="q_continue" in text)
    halting_step(states.first(batch), states.policy, seen, None, False)
    if text == "verified":
        halting_step(states.first(batch), states.policy, None, q[:, 0] > 0, False)


def compile_cases() -> Iterator[CompileCase]:
    """Every signal at the official size."""
    for text in POLICIES:
        yield CompileCase(f"halting {text} D=512 bf16", partial(_run, text, torch.bfloat16))
