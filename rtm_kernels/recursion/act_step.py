"""One ACT step with halting, in place and without a host synchronisation: the body of every captured loop."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rtm_kernels.errors import require
from rtm_kernels.ops.halting.api import halting_step_
from rtm_kernels.ops.halting.reference import HaltingState
from rtm_kernels.program import Program
from rtm_kernels.ranges import ranged
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.head import HaltingHead


def require_latents(program: Program, head: HaltingHead, given: Mapping[str, Tensor]) -> None:
    """Errors: `InputError` for a latent that is read before it is written, and by `settle`, and not given."""
    needed = (*program.carried, *((program.output,) if head.policy == "settle" else ()))
    missing = sorted(set(needed) - set(given))
    require(not missing, "latents", sorted(given), f"{', '.join(missing)} is read and not given")


@ranged("ACT step")
@torch.no_grad()
def act_step_(
    program: Program,
    stacks: Mapping[str, reference.Stack],
    head: HaltingHead,
    latents: Mapping[str, Tensor],
    x: Tensor,
    state: HaltingState,
    logits: Tensor,
    impl: str = "auto",
) -> None:
    """`program` once, then halting head and update; latents and x [B, L, D], state [B, U], logits [B, U, 2] in place.

    Samples that are not active keep their latents, logits and state. `impl` is that of `ops.halting`.
    """
    active = state.active_samples[:, None, None]
    values = reference.run(program, latents, x, stacks)
    y = values[program.output]
    found = halting_step_(
        state, y, policy=head.policy, max_steps=head.max_steps, min_steps=head.min_steps,
        weight=head.weight if head.reads_head else None, bias=head.bias if head.reads_head else None, pool=head.pool,
        previous=latents[program.output] if head.policy == "settle" else None, tol=head.tolerance, impl=impl,
    )  # fmt: skip
    if found.logits.shape[-1]:
        mine = logits[..., : found.logits.shape[-1]]
        mine.copy_(torch.where(active, found.logits, mine))
    for name in dict.fromkeys(step.dst for step in program.steps):
        latents[name].copy_(torch.where(active, values[name], latents[name]))
