"""The persistent executor: whole ACT steps, or the run until every sample has halted, in one launch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.ops.halting.mixture import HaltingState
from rtm_kernels.program import Program
from rtm_kernels.recursion.head import HaltingHead
from rtm_kernels.recursion.persistent.pack import PackedWeights, Stacks, why_not_stacks
from rtm_kernels.recursion.persistent.runner import PersistentRecursion, why_not_here
from rtm_kernels.recursion.tape import why_not_program


def why_not(program: Program, stacks: Stacks, device: torch.device, dtype: torch.dtype, length: int) -> str | None:
    """What keeps the persistent kernel from running `program` on latents [B, L, D], or None when it can."""
    used = {name: stacks[name] for name in program.stacks if name in stacks}
    return why_not_program(program) or why_not_stacks(used) or why_not_here(device, dtype, length)


class PersistentExecutor:
    """`recursion.reference.run` for one program and its stacks, one launch per call.

    Weights are packed when it is built, in `dtype` (by default that of the weights); buffers are allocated for powers
    of two of samples when it first needs them. `update` takes changed weights in. Inference only: results carry no
    gradient.

    Errors: `BackendUnavailable`, see `why_not`.
    """

    def __init__(self, program: Program, stacks: Stacks | PackedWeights, dtype: torch.dtype | None = None) -> None:
        self.program = program
        self.weights = pack(program, stacks, dtype)
        self._by_size: dict[int, PersistentRecursion] = {}

    def update(self, stacks: Stacks) -> None:
        """Copy the weights of `stacks` over the packed ones."""
        self.weights.update({name: stacks[name] for name in self.program.stacks})

    def run(self, latents: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """The latents [B, L, D] after the program; nothing that is given is modified. Errors: see `run`."""
        refuse_gradient(latents, x)
        size = next_power_of_two(x.shape[0])
        if size not in self._by_size:
            self._by_size[size] = PersistentRecursion(self.program, self.weights, size)
        recursion = self._by_size[size]
        recursion.load(latents, x)
        recursion.step()
        return {name: value.clone() for name, value in recursion.values(latents).items()}


def run(
    program: Program, latents: Mapping[str, Tensor], x: Tensor, stacks: Stacks | PackedWeights
) -> dict[str, Tensor]:
    """`recursion.reference.run` in one launch: the new latents [B, L, D]; nothing that is given is modified.

    Packing weights and allocating buffers costs more than the launch: keep a `PersistentExecutor` to repeat it.

    Errors: `BackendUnavailable`, see `why_not`; `InputError` when a gradient is asked for, a latent is missing, or a
    shape is wrong.
    """
    refuse_gradient(latents, x)
    if len(program) == 0:
        return dict(latents)
    return PersistentExecutor(program, stacks, x.dtype).run(latents, x)


def run_act_step(
    program: Program,
    latents: Mapping[str, Tensor],
    x: Tensor,
    stacks: Stacks | PackedWeights,
    head: HaltingHead,
    state: HaltingState | None = None,
    act_steps: int = 1,
) -> tuple[dict[str, Tensor], HaltingState, Tensor]:
    """Up to `act_steps` ACT steps with the halting head and update, in one launch.

    Returns the latents, the halting state, and the halting logits [B, U, 2] of each sample's last step (0 where the
    policy has no head, and q_continue 0 for a head of one row). Samples that are not active keep their latents, and
    once none is active nothing changes any more.

    Errors: as `run`.
    """
    refuse_gradient(latents, x)
    recursion = PersistentRecursion(program, pack(program, stacks, x.dtype), x.shape[0], head=head)
    recursion.load(latents, x, state)
    recursion.step(act_steps)
    return recursion.values(latents), recursion.state, recursion.logits


def pack(program: Program, stacks: Stacks | PackedWeights, dtype: torch.dtype | None = None) -> PackedWeights:
    """The packed weights of the stacks that `program` applies, as they are when packed already.

    Errors: `InputError` for a stack that is missing, `BackendUnavailable` for one that the kernel cannot run.
    """
    if isinstance(stacks, PackedWeights):
        return stacks
    missing = [name for name in program.stacks if name not in stacks]
    if missing:
        raise InputError(f"stacks={sorted(stacks)} is not allowed: the program applies {', '.join(missing)}")
    reason = why_not_program(program)
    if reason is not None:
        raise BackendUnavailable(f"the persistent kernel cannot run: {reason}")
    return PackedWeights({name: stacks[name] for name in program.stacks}, dtype)


def next_power_of_two(n: int) -> int:
    """The least power of two that is at least n; 0 for 0."""
    return 1 << (n - 1).bit_length() if n else 0


def refuse_gradient(latents: Mapping[str, Tensor], x: Tensor) -> None:
    """Errors: `InputError` when the result would have to carry a gradient to the latents or the input."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*latents.values(), x)):
        raise InputError("requires_grad=True is not allowed: the persistent kernel has no backward; use no_grad()")
