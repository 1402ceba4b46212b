"""The oracle: executes a program step by step. Every other executor must agree with it after any prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rtm_kernels.ops.shared import shared_weights
from rtm_kernels.program import INPUT, Program, Step
from rtm_kernels.ranges import ranged

ApplyStack = Callable[[Tensor, tuple[Tensor, ...]], Tensor]
"""`stack(state, injection) -> latent`: blocks applied in order to `state + (sum of injection)`; [B, L, D]."""


@ranged(lambda program, *_: f"recursion {program.name}")
def run(
    program: Program, latents: Mapping[str, Tensor], x: Tensor, stacks: Mapping[str, ApplyStack]
) -> dict[str, Tensor]:
    """Execute `program` from `latents` with input embedding `x`; returns the new latents, all [B, L, D].

    Each step computes `latent[dst] <- stack((sum of state) + (sum of inject))`, summing from left to right, or the
    moving average of it that its `keep` asks for.
    Steps without `grad` run under `no_grad`. Nothing is modified in place. Triton ops share their weights over the
    whole program (`ops.shared`).
    """
    values = {**latents, INPUT: x}
    with shared_weights():
        for step in program.steps:
            with torch.set_grad_enabled(step.grad and torch.is_grad_enabled()):
                values[step.dst] = _apply(step, values, stacks)
    del values[INPUT]
    return values


@ranged(lambda step, *_: f"step {step.dst} <- {step.stack}")
def _apply(step: Step, values: Mapping[str, Tensor], stacks: Mapping[str, ApplyStack]) -> Tensor:
    state = values[step.state[0]]
    for name in step.state[1:]:
        state = state + values[name]
    new = stacks[step.stack](state, tuple(values[name] for name in step.inject))
    return torch.lerp(new, values[step.dst], step.keep) if step.keep else new
