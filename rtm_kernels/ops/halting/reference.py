"""Halting heads, policies and their state in plain PyTorch: the specification of every kernel of this op."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels.errors import one_of, require

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
    """float32, weight of the unit's last step in the halting mixture; 1 under the policies that do not accumulate."""

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
        )


def initial_state(batch: int, units: int = 1, device: torch.device | str | None = None) -> HaltingState:
    """The state of `batch` samples of `units` units each before their first step."""
    shape = (batch, units)
    return HaltingState(
        torch.zeros(shape, dtype=torch.int32, device=device),
        torch.ones(shape, dtype=torch.bool, device=device),
        torch.zeros(shape, dtype=torch.float32, device=device),
        torch.zeros(shape, dtype=torch.float32, device=device),
    )


def halting_logits(y: Tensor, weight: Tensor, bias: Tensor | None = None, pool: str = "first") -> Tensor:
    """`pooled(y) weight^T + bias` in float32 or wider: the logits [B, U, K] of the halting head.

    y [B, L, D], weight [K, D], bias [K]. `pool`: "first" reads y[:, 0] (TRM, HRM), "mean" the mean over L, and
    "token" every position (U = L; the others U = 1). K = 2 is (q_halt, q_continue), K = 1 is p_halt alone.
    """
    one_of("pool", pool, POOLS)
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    pooled = {"first": wide[:, :1], "mean": wide.mean(1, keepdim=True) if pool == "mean" else wide, "token": wide}[pool]
    return F.linear(pooled, weight.to(wide.dtype), None if bias is None else bias.to(wide.dtype))


def relative_change(y: Tensor, previous: Tensor) -> Tensor:
    """`|y - previous| / |y|` per sample [B], Frobenius norms over [L, D], in float32 or wider."""
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=(1, 2))
    return torch.linalg.vector_norm(wide - previous.to(wide.dtype), dim=(1, 2)) / norm.clamp_min(1e-30)


def settled(y: Tensor, previous: Tensor, tol: float, answer: Tensor | None = None,
            previous_answer: Tensor | None = None) -> Tensor:  # fmt: skip
    """[B, 1] bool: `relative_change(y, previous) < tol`, or the answer [B, ...] equals the one of the step before."""
    quiet = relative_change(y, previous) < tol
    if answer is not None and previous_answer is not None:
        quiet = quiet | (answer == previous_answer).flatten(1).all(1)
    return quiet.unsqueeze(-1)


def halting_update(
    state: HaltingState,
    policy: str,
    *,
    logits: Tensor | None = None,
    quiet: Tensor | None = None,
    max_steps: int,
    min_steps: int | Tensor = 1,
) -> HaltingState:
    """The state after one more ACT step of the active units; inactive units do not change.

    A unit wants to halt when: `q`: q_halt > 0; `q_continue`: q_halt > q_continue; `settle`: `quiet` [B, U];
    `cumulative_*`: accumulated + p >= 1 with p = sigmoid(logits[..., 0]); `fixed`: never. It halts when it wants to
    and has taken `min_steps` (an int, or one per sample [B]), or when it has taken `max_steps`, which wins.

    Under the cumulative policies the step's weight is min(p, 1 - accumulated), and 1 - accumulated (the remainder)
    in the step that halts, so the weights of a halted unit sum to 1 (arXiv 1603.08983, eq. 6 and 7) and are
    differentiable in `logits`; elsewhere the weight is 1 and nothing accumulates.
    """
    one_of("policy", policy, POLICIES)
    accumulates = policy.startswith("cumulative")
    if policy == "settle":
        require(quiet is not None, "quiet", quiet, "the settle policy needs it")
    elif policy != "fixed":
        require(logits is not None, "logits", logits, f"the policy {policy} needs them")
    steps = state.steps + state.active.to(torch.int32)
    left = 1 - state.accumulated
    p = torch.ones_like(state.accumulated)
    if policy == "settle":
        wants = quiet
    elif policy == "fixed":
        wants = torch.zeros_like(state.active)
    elif policy == "q":
        wants = logits[..., 0] > 0
    elif policy == "q_continue":
        wants = logits[..., 0] > logits[..., 1]
    else:
        p = torch.sigmoid(logits[..., 0])
        wants = state.accumulated + p >= 1
    floor = min_steps.unsqueeze(-1) if isinstance(min_steps, Tensor) else min_steps
    halts = state.active & ((wants & (steps >= floor)) | (steps >= max_steps))
    weight = torch.where(halts, left, torch.minimum(p, left)) if accumulates else p
    accumulated = torch.where(state.active, state.accumulated + weight, state.accumulated) if accumulates else state.accumulated
    return HaltingState(steps, state.active & ~halts, accumulated, torch.where(state.active, weight, state.weight))


def compaction(active: Tensor) -> tuple[Tensor, Tensor]:
    """Stable partition of the samples: `order` [B] int32 lists the active ones first, each part in batch order.

    active [B] bool. Returns (order, count) with count [1] int32 the number of active samples:
    `y[order[:count]]` is the compacted batch.
    """
    order = torch.argsort((~active).to(torch.int32), stable=True).to(torch.int32)
    return order, active.sum(dtype=torch.int32).reshape(1)
