"""The oracle: executes a program step by step. Every other executor must agree with it after any prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rtm_kernels.ops.shared import shared_weights
from rtm_kernels.program import INPUT, SEED, Program, Step
from rtm_kernels.ranges import ranged
from rtm_kernels.recursion.noise import normal

ApplyStack = Callable[[Tensor, tuple[Tensor, ...]], Tensor]
"""`stack(state, injection) -> latent`: blocks applied in order to `state + (sum of injection)`; [B, L, D]."""


class ActStep(NamedTuple):
    """What one ACT step found: latents [B, L, D], at least the carried ones and the output, and of each sample

    logits [B, seq_len, V] of the tokens, and q float32 [B, 2] of the halting head, None without one. What an executor
    leaves None of the others, halting computes from these: answers int32 [B, seq_len], the first of the largest
    logits; finite bool [B], False where a latent, a logit or q is NaN or infinite; change float32 [B], |dy| / |y| of
    the output latent; token_q float32 [B, L, 2], the halting head at every position.
    """

    latents: dict[str, Tensor]
    logits: Tensor
    q: Tensor | None
    answers: Tensor | None = None
    finite: Tensor | None = None
    change: Tensor | None = None
    token_q: Tensor | None = None


Act = Callable[[Mapping[str, Tensor], Tensor], ActStep]
"""One ACT step from latents and x [B, L, D]; the latents given are not modified. `SEED` may stand beside them."""


@ranged(lambda program, *_: f"recursion {program.name}")
def run(
    program: Program, latents: Mapping[str, Tensor], x: Tensor, stacks: Mapping[str, ApplyStack]
) -> dict[str, Tensor]:
    """Execute `program` from `latents` with input embedding `x`; returns the new latents, all [B, L, D].

    Each step computes `latent[dst] <- stack((sum of state) + (sum of inject))`, summing from left to right, or the
    moving average of it that its `keep` asks for. Its `noise` is drawn from the `SEED` of the latents, 0 without.
    Steps without `grad` run under `no_grad`. Nothing is modified in place. Triton ops share their weights over the
    whole program (`ops.shared`).
    """
    values = {**latents, INPUT: x}
    seed = values.pop(SEED, None)
    with shared_weights():
        for number, step in enumerate(program.steps):
            with torch.set_grad_enabled(step.grad and torch.is_grad_enabled()):
                new = _apply(step, values, stacks)
                if step.noise:
                    seed = x.new_zeros(x.shape[0], dtype=torch.int64) if seed is None else seed
                    new = new + step.noise * normal(seed, seed.new_full(seed.shape, number), x.shape[1:], 0).to(
                        new.dtype
                    )
                values[step.dst] = new
    del values[INPUT]
    return values


@ranged(lambda step, *_: f"step {step.dst} <- {step.stack}")
def _apply(step: Step, values: Mapping[str, Tensor], stacks: Mapping[str, ApplyStack]) -> Tensor:
    state = values[step.state[0]]
    for name in step.state[1:]:
        state = state + values[name]
    new = stacks[step.stack](state, tuple(values[name] for name in step.inject))
    return torch.lerp(new, values[step.dst], step.keep) if step.keep else new
