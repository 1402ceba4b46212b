"""Halting head and policy of the executors that halt on the device, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rtm_kernels.errors import InputError, one_of, require
from rtm_kernels.ops.halting.mixture import HaltingState

POLICIES = ("q", "q_continue", "settle", "cumulative_sequence", "cumulative_token", "fixed")
POOLS = ("first", "mean", "token")


@dataclass(frozen=True)
class HaltingHead:
    """Halting head and policy, with the meaning that `rtm_kernels.ops.halting` gives them.

    weight [2, D] gives (q_halt, q_continue), or [1, D] p_halt alone; bias [2] or [1]. The policies `settle`, which
    reads `tolerance`, and `fixed` have no head. `min_steps` is one number or one per sample [B].
    """

    policy: str
    max_steps: int
    weight: Tensor | None = None
    bias: Tensor | None = None
    pool: str = "first"
    min_steps: int | Tensor = 1
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        one_of("policy", self.policy, POLICIES)
        one_of("pool", self.pool, POOLS)
        require(self.max_steps >= 1, "max_steps", self.max_steps, "at least 1")
        if not self.reads_head:
            require(self.pool == "first", "pool", self.pool, f"the policy {self.policy} halts whole sequences")
            return
        if self.weight is None:
            raise InputError(f"weight=None is not allowed: the policy {self.policy} reads a halting head")
        rows = self.weight.shape[0]
        wanted = (2,) if self.policy == "q_continue" else (1, 2)
        require(self.weight.dim() == 2 and rows in wanted, "weight", tuple(self.weight.shape), f"{wanted} rows of D")
        if self.bias is not None:
            require(tuple(self.bias.shape) == (rows,), "bias", tuple(self.bias.shape), f"one per row of weight: {rows}")

    @property
    def reads_head(self) -> bool:
        """Whether the policy reads the halting logits."""
        return self.policy not in ("settle", "fixed")

    def units(self, length: int) -> int:
        """U: how many units of a sample of L tokens halt on their own."""
        return length if self.pool == "token" else 1

    def packed(self, width: int, device: torch.device) -> Tensor:
        """[2 * D + 2] float32: the two rows of the head, then their biases; what is absent is 0.

        Errors: `InputError` for a weight of another width.
        """
        packed = torch.zeros(2 * width + 2, dtype=torch.float32, device=device)
        if self.weight is not None:
            rows, columns = self.weight.shape
            require(columns == width, "weight", tuple(self.weight.shape), f"[{rows}, {width}]")
            packed[: rows * width].copy_(self.weight.detach().flatten())
            if self.bias is not None:
                packed[2 * width : 2 * width + rows].copy_(self.bias.detach())
        return packed


def reset_state(state: HaltingState, samples: int) -> None:
    """The first `samples` samples start afresh and the others have halted, in place and with no copy from the host."""
    for tensor in (state.steps, state.accumulated, state.weight):
        tensor.zero_()
    state.remainder.fill_(1)
    state.active.zero_()
    state.active[:samples].fill_(True)


def copy_state(target: HaltingState, source: HaltingState) -> None:
    """Copy `source` into the buffers of `target`. Errors: `InputError` for a state of other samples or units."""
    for field in fields(HaltingState):
        mine, given = getattr(target, field.name), getattr(source, field.name)
        require(mine.shape == given.shape, f"state.{field.name}", tuple(given.shape), f"[B, U] = {tuple(mine.shape)}")
        mine.copy_(given)
