"""Registration of the halting update with PyTorch: an op that changes the state in place, and its fake."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rtm_kernels.ops.halting.reference import HaltingState


@torch.library.custom_op(
    "rtm_kernels::halting_step", mutates_args=("steps", "active", "accumulated", "step_weight", "remainder")
)
def halting_step_op(
    steps: Tensor, active: Tensor, accumulated: Tensor, step_weight: Tensor, remainder: Tensor,
    y: Tensor, weight: Tensor | None, bias: Tensor | None, previous: Tensor | None,
    answer: Tensor | None, previous_answer: Tensor | None, min_steps_of: Tensor | None,
    policy: str, pool: str, tol: float, max_steps: int, min_steps: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """logits [B, U, K] (K = 0 without a head), order [B] int32 and count [1] int32."""
    from rtm_kernels.ops.halting.launchers import halting_step

    state = HaltingState(steps, active, accumulated, step_weight, remainder)
    logits = _empty_logits(y, weight, pool)
    head = None if weight is None else (weight.contiguous(), None if bias is None else bias.contiguous())
    answer, previous_answer = (None if t is None else t.contiguous() for t in (answer, previous_answer))
    latents = None if previous is None else (previous, answer, previous_answer)
    floor = min_steps if min_steps_of is None else min_steps_of.contiguous()
    with torch.cuda.device_of(y):
        order, count = halting_step(state, y, logits, head, latents, policy, pool, tol, max_steps, floor)
    return logits, order, count


def _empty_logits(y: Tensor, weight: Tensor | None, pool: str) -> Tensor:
    units = y.shape[1] if pool == "token" else 1
    return y.new_empty(y.shape[0], units, 0 if weight is None else weight.shape[0], dtype=torch.float32)


@halting_step_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    steps, y, weight, pool = arguments[0], arguments[5], arguments[6], arguments[13]
    return _empty_logits(y, weight, pool), steps.new_empty(steps.shape[0]), steps.new_empty(1)
