"""The halting mixture of training: which units halt after an ACT step, with which weight; pure and differentiable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rtm_kernels.ops.halting.reference import halt_logit


@dataclass(frozen=True)
class HaltingState:
    """What training remembers of each unit between ACT steps; every tensor [B, U].

    A unit is what halts on its own: the sequence (U = 1), or each position (U = L) under `cumulative_token`.
    """

    steps: Tensor  # int32, ACT steps the unit has taken
    active: Tensor  # bool, whether the unit takes the next step
    accumulated: Tensor  # float32, the weights of its steps so far; they sum to 1 when a cumulative policy has halted
    weight: Tensor  # float32, weight of the step just taken in the halting mixture; 0 for a unit that did not take it
    remainder: Tensor
    """float32, `1 - accumulated` before the unit's last step: Graves' R(t) once it halted, ponder cost steps + R."""

    @property
    def sample_steps(self) -> Tensor:
        """[B] int32, steps of the sample: those of its slowest unit."""
        return self.steps.amax(-1)


def initial_state(batch: int, units: int = 1, device: torch.device | str | None = None) -> HaltingState:
    """The state of `batch` samples of `units` units each before their first step."""
    zeros = torch.zeros(batch, units, device=device)
    active = torch.ones(batch, units, dtype=torch.bool, device=device)
    return HaltingState(zeros.to(torch.int32), active, zeros, zeros, torch.ones_like(zeros))


def halting_update(
    state: HaltingState, policy: str, logits: Tensor, *, max_steps: int, min_steps: int = 1
) -> HaltingState:
    """The state after one more ACT step of the active units with the head's logits [B, U, K].

    With the halting logit h of `reference.halt_logit` and p = sigmoid(h), a unit wants to halt when h > 0 (`q`,
    `q_continue`) or when accumulated + p >= 1 (`cumulative`, `cumulative_token`). It halts when it wants to and has
    taken `min_steps`, or at `max_steps`. Under the cumulative policies the weight of the step is
    min(p, 1 - accumulated), and in the step that halts all of 1 - accumulated (the remainder), so the weights of a
    halted unit sum to 1 and are differentiable in the logits (arXiv 1603.08983, eq. 6 and 7). Else it is 1. Of
    inactive units only `weight` changes, to 0.
    """
    h, accumulated, remainder = halt_logit(logits, policy == "q_continue"), state.accumulated, state.remainder
    p = torch.sigmoid(h) if policy.startswith("cumulative") else torch.ones_like(h)
    wants = accumulated + p >= 1 if policy.startswith("cumulative") else h > 0
    steps = state.steps + state.active.to(torch.int32)
    halts = state.active & ((wants & (steps >= min_steps)) | (steps >= max_steps))
    if policy.startswith("cumulative"):
        left = 1 - accumulated
        p = torch.where(halts, left, torch.minimum(p, left))
        accumulated = torch.where(state.active, accumulated + p, accumulated)
        remainder = torch.where(state.active, left, remainder)
    return HaltingState(steps, state.active & ~halts, accumulated, torch.where(state.active, p, 0), remainder)
