"""The persistent executor: a whole ACT step, or any program, in one launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.program import Program
from rtm_kernels.recursion.persistent.pack import PackedLayers, Stacks, why_not_stacks
from rtm_kernels.recursion.persistent.runner import Head, PersistentRecursion, why_not_here
from rtm_kernels.recursion.tape import why_not_program


def why_not(program: Program, stacks: Stacks, device: torch.device, dtype: torch.dtype, length: int) -> str | None:
    """What keeps the persistent kernel from running `program` on latents [B, L, D], or None when it can."""
    used = {name: stacks[name] for name in program.stacks if name in stacks}
    return why_not_program(program) or why_not_stacks(used) or why_not_here(device, dtype, length)


class Launched(NamedTuple):
    """What one launch left."""

    latents: dict[str, Tensor]
    """[B, L, D], those given and those written."""
    q: Tensor | None
    """float32 [B, L, 2], the halting head at every position of the output latent; None without a head."""
    change: Tensor | None
    """float32 [B], |dy| / |y| of the output latent; None where the program does not carry it."""


class PersistentExecutor:
    """`recursion.reference.run` for one program and its stacks, then the halting head, one launch per call.

    Weights are packed when it is built, in `dtype` (by default that of the weights); the head is read where it lies.
    Buffers are allocated for powers of two of samples when they are first needed. Inference only: results carry no
    gradient.

    Errors: `InputError` for a stack that is missing; `BackendUnavailable`, see `why_not`.
    """

    def __init__(
        self, program: Program, stacks: Stacks, dtype: torch.dtype | None = None, head: Head | None = None
    ) -> None:
        missing = [name for name in program.stacks if name not in stacks]
        if missing:
            raise InputError(f"stacks={sorted(stacks)} is not allowed: the program applies {', '.join(missing)}")
        reason = why_not_program(program)
        if reason is not None:
            raise BackendUnavailable(f"the persistent kernel cannot run: {reason}")
        self.program, self._head = program, head
        self.weights = PackedLayers({name: stacks[name] for name in program.stacks}, dtype)
        self._by_size: dict[int, PersistentRecursion] = {}

    def run(self, latents: Mapping[str, Tensor], x: Tensor) -> Launched:
        """One pass of the program from latents and input x [B, L, D]; nothing that is given is modified.

        Errors: `InputError` when a gradient is asked for, a latent is missing, or a shape is wrong.
        """
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*latents.values(), x)):
            raise InputError("requires_grad=True is not allowed: the persistent kernel has no backward; use no_grad()")
        size = 1 << (len(x) - 1).bit_length() if len(x) else 0
        if size not in self._by_size:
            self._by_size[size] = PersistentRecursion(self.program, self.weights, size, head=self._head)
        recursion = self._by_size[size]
        recursion.load(latents, x)
        recursion.step()
        values = {name: value.clone() for name, value in recursion.values(latents).items()}
        return Launched(values, *(None if t is None else t.clone() for t in (recursion.q, recursion.change)))
