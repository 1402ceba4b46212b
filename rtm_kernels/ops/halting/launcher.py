"""The launch of one halting step."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import triton
from torch import Tensor

from rtm_kernels.ops.halting import reference
from rtm_kernels.ops.halting.kernel import halting_kernel
from rtm_kernels.ops.halting.launch import TABLE
from rtm_kernels.ops.halting.policy import HaltingPolicy
from rtm_kernels.ops.halting.reference import Outputs
from rtm_kernels.ops.halting.state import SlotState
from rtm_kernels.ops.launch import launch, select


def halting_step(
    state: SlotState, policy: HaltingPolicy, seen: Outputs | None, confirmed: Tensor | None, sums: bool
) -> None:
    """`reference.observe` of `seen`, if any, and `reference.decide` unless the verifier has to look first."""
    rows, (count, seq_len), positions = state.rows, state.answers.shape, state.token_halted.shape[1]
    if count == 0:
        return
    at = {name: place for place, name in reversed(list(enumerate(policy.on)))}
    at_q = min((at[name] for name in ("q", "q_continue") if name in at), default=-1)
    decides = "verified" not in policy.on or confirmed is not None
    none = torch.empty(0, 0, 0, dtype=torch.float32, device=rows.device)
    here = Outputs(none, None, none) if seen is None else seen
    checks, finite = here.finite is None, here.finite
    if checks and len(here.others) > 1:  # the kernel looks at one of them
        finite = reference.all_finite(replace(here, others=here.others[1:], previous=None))
    y, q = here.output, here.q
    weight, bias = (None, None) if here.head is None else here.head
    previous = y if here.previous is None else here.previous
    looks, other = bool(here.others) and checks, here.others[0] if here.others else y

    def or_rows(tensor: Tensor | None) -> Tensor:  # what is absent is not read
        return rows if tensor is None else tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor

    launch(
        halting_kernel, select(TABLE, "halting.step", y.dtype, y.shape[1]), (count,),
        rows, rows.view(torch.float32), rows.view(torch.float64), here.logits, or_rows(q), y, previous,
        other, or_rows(None if weight is None else weight.contiguous()), or_rows(bias),
        or_rows(finite), or_rows(here.change), or_rows(confirmed), policy.min_steps, policy.settle_steps,
        here.logits.shape[2], y.shape[1], y.shape[2], *here.logits.stride(),
        *((0, 0) if q is None else q.stride()), *y.stride(), *previous.stride(), *other.stride(),
        S=seq_len, P=positions, WIDTH=rows.shape[1], OBSERVES=seen is not None, DECIDES=decides,
        HAS_Q=q is not None, HAS_PREVIOUS=here.previous is not None, HAS_OTHER=looks,
        HAS_FINITE=finite is not None, HAS_CHANGE=here.change is not None, HAS_BIAS=bias is not None, CHECKS=checks,
        COMPARES=here.compares, SUMS=q is not None and (sums or "cumulative" in policy.on),
        AT_VERIFIED=at.get("verified", -1), AT_Q=at_q, AT_SETTLE=at.get("settle", -1),
        AT_CUMULATIVE=at.get("cumulative", -1), AT_TOKEN=at.get("cumulative_token", -1),
        THRESHOLD=math.log(policy.q_threshold / (1 - policy.q_threshold)),
        TOLERANCE=float(policy.settle_tolerance), BLOCK_S=triton.next_power_of_2(seq_len),
        BLOCK_P=triton.next_power_of_2(max(positions, 1)), enable_fp_fusion=False,
    )  # fmt: skip
