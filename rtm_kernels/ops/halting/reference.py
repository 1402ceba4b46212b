"""Halting heads, policies and their state in plain PyTorch: the specification of every kernel of this op."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels.errors import InputError, one_of

POLICIES = ("q", "q_continue", "settle", "cumulative_sequence", "cumulative_token", "fixed")
POOLS = ("first", "mean", "token")


@dataclass(frozen=True)
class HaltingState:
    """What halting remembers of each unit between ACT steps; every tensor [B, U].

    A unit is what halts on its own: the sequence (U = 1), or each token (U = L) under `cumulative_token`.
    A sample is active while any of its units is.
    """

    steps: Tensor
    """int32, ACT steps the unit has taken."""
    active: Tensor
    """bool, whether the unit takes the next step."""
    accumulated: Tensor
    """float32, the weights of its steps so far; they sum to 1 when a cumulative policy has halted."""
    weight: Tensor
    """float32, weight of the step just taken in the halting mixture; 0 for a unit that did not take it."""
    remainder: Tensor
    """float32, `1 - accumulated` before the unit's last step: Graves' R(t) once it halted, ponder cost steps + R."""

    @property
    def active_samples(self) -> Tensor:
        """[B] bool, whether any unit of the sample is active."""
        return self.active.any(-1)

    @property
    def sample_steps(self) -> Tensor:
        """[B] int32, steps of the sample: those of its slowest unit."""
        return self.steps.amax(-1)

    def reset(self, samples: Tensor) -> HaltingState:
        """A state in which the samples [B] bool have taken no step yet and are active; the others are unchanged."""
        fresh = samples.unsqueeze(-1)
        return HaltingState(
            self.steps.masked_fill(fresh, 0),
            self.active | fresh,
            self.accumulated.masked_fill(fresh, 0),
            self.weight.masked_fill(fresh, 0),
            self.remainder.masked_fill(fresh, 1),
        )


def initial_state(batch: int, units: int = 1, device: torch.device | str | None = None) -> HaltingState:
    """The state of `batch` samples of `units` units each before their first step."""
    shape = (batch, units)
    return HaltingState(
        torch.zeros(shape, dtype=torch.int32, device=device),
        torch.ones(shape, dtype=torch.bool, device=device),
        torch.zeros(shape, dtype=torch.float32, device=device),
        torch.zeros(shape, dtype=torch.float32, device=device),
        torch.ones(shape, dtype=torch.float32, device=device),
    )


def halting_logits(y: Tensor, weight: Tensor, bias: Tensor | None = None, pool: str = "first") -> Tensor:
    """`pooled(y) weight^T + bias` in float32 or wider: the logits [B, U, K] of the halting head.

    y [B, L, D], weight [K, D], bias [K]. `pool`: "first" reads y[:, 0] (TRM, HRM), "mean" the mean over L, and
    "token" every position (U = L; the others U = 1). K = 2 is (q_halt, q_continue), K = 1 is p_halt alone.
    """
    one_of("pool", pool, POOLS)
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    if pool == "first":
        wide = wide[:, :1]
    elif pool == "mean":
        wide = wide.mean(1, keepdim=True)
    return F.linear(wide, weight.to(wide.dtype), None if bias is None else bias.to(wide.dtype))


def relative_change(y: Tensor, previous: Tensor) -> Tensor:
    """`|y - previous| / |y|` per sample [B], Frobenius norms over [L, D], in float32 or wider."""
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=(1, 2))
    return torch.linalg.vector_norm(wide - previous.to(wide.dtype), dim=(1, 2)) / norm.clamp_min(1e-30)


def settled(
    y: Tensor, previous: Tensor, tol: float, answer: Tensor | None = None, previous_answer: Tensor | None = None
) -> Tensor:
    """[B, 1] bool: `relative_change(y, previous) < tol`, or the answer [B, ...] equals the one of the step before."""
    quiet = relative_change(y, previous) < tol
    if answer is not None and previous_answer is not None:
        quiet = quiet | (answer == previous_answer).flatten(1).all(1)
    return quiet.unsqueeze(-1)


def wants_to_halt(
    state: HaltingState, policy: str, logits: Tensor | None = None, quiet: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """[B, U] bool whether the policy asks a unit to halt after this step, and the halting probability p (1 if none).

    `q`: q_halt > 0; `q_continue`: q_halt > q_continue; `settle`: `quiet` [B, U]; `fixed`: never;
    `cumulative_*`: accumulated + p >= 1 with p = sigmoid(logits[..., 0]). logits [B, U, K].
    """
    one_of("policy", policy, POLICIES)
    p = torch.ones_like(state.accumulated)
    if policy == "fixed":
        return torch.zeros_like(state.active), p
    if policy == "settle":
        if quiet is None:
            raise InputError("quiet=None is not allowed: the policy settle needs it")
        return quiet, p
    if logits is None:
        raise InputError(f"logits=None is not allowed: the policy {policy} needs them")
    if policy == "q":
        return logits[..., 0] > 0, p
    if policy == "q_continue":
        return logits[..., 0] > logits[..., 1], p
    p = torch.sigmoid(logits[..., 0])
    return state.accumulated + p >= 1, p


def halting_update(
    state: HaltingState,
    policy: str,
    *,
    logits: Tensor | None = None,
    quiet: Tensor | None = None,
    max_steps: int,
    min_steps: int | Tensor = 1,
) -> HaltingState:
    """The state after one more ACT step of the active units; of inactive units only `weight` changes, to 0.

    A unit halts when `wants_to_halt` and it has taken `min_steps` (an int, or one per sample [B]), or when it has
    taken `max_steps`, which wins. Under the cumulative policies the weight of the step is min(p, 1 - accumulated),
    and all of 1 - accumulated (the remainder) in the step that halts, so the weights of a halted unit sum to 1 and
    stay differentiable in `logits` (arXiv 1603.08983, eq. 6 and 7). Elsewhere the weight is 1.
    """
    wants, p = wants_to_halt(state, policy, logits, quiet)
    steps = state.steps + state.active.to(torch.int32)
    floor = min_steps.unsqueeze(-1) if isinstance(min_steps, Tensor) else min_steps
    halts = state.active & ((wants & (steps >= floor)) | (steps >= max_steps))
    accumulated, remainder = state.accumulated, state.remainder
    if policy.startswith("cumulative"):
        left = 1 - accumulated
        p = torch.where(halts, left, torch.minimum(p, left))
        accumulated = torch.where(state.active, accumulated + p, accumulated)
        remainder = torch.where(state.active, left, remainder)
    return HaltingState(steps, state.active & ~halts, accumulated, torch.where(state.active, p, 0), remainder)


def compaction(active: Tensor) -> tuple[Tensor, Tensor]:
    """Stable partition of the samples: `order` [B] int32 lists the active ones first, each part in batch order.

    active [B] bool. Returns (order, count) with count [1] int32 the number of active samples:
    `y[order[:count]]` is the compacted batch.
    """
    order = torch.argsort((~active).to(torch.int32), stable=True).to(torch.int32)
    return order, active.sum(dtype=torch.int32).reshape(1)
