"""Halting after an ACT step in plain PyTorch: what is remembered of each sample, and the specification of the kernel.

All of it is tensor code that never waits for the device, so the host may call it step by step and a CUDA graph may
record it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels.ops.halting.policy import HaltingPolicy

STAYS, MAX_STEPS, NON_FINITE, SIGNAL = range(4)
"""Values of `SlotState.reason`; SIGNAL + i is the i-th signal of the policy."""


class SlotState(NamedTuple):
    """Rows [n, W] int32 and their columns, each a view of its own dtype: [n] where no other shape is given."""

    rows: Tensor  # [n, W], contiguous: all columns that follow
    accumulated: Tensor  # float64, the sum of p so far
    logit: Tensor  # float32, the halting logit of the last step, NaN without a head
    best_logit: Tensor  # float32, the halting logit of the step whose answer is `best`
    residual: Tensor  # float32, |dy| / |y| of the last step, NaN where y is not carried
    sample: Tensor  # Number that the caller recognises the sample by; int32, as all below but one
    limit: Tensor  # Its cap of steps
    steps: Tensor  # ACT steps so far
    best_step: Tensor  # The step whose answer is `best`
    stable: Tensor  # Steps since the answer changed
    finite: Tensor  # Whether all values of the last step were finite
    asks: Tensor  # Whether the verifier has to see the answer
    verified: Tensor  # Whether the verifier has confirmed `best`
    reason: Tensor  # Why the sample leaves, or STAYS
    token_accumulated: Tensor  # [n, P] float64, the sum of p of every position under `cumulative_token`; else P = 0
    answers: Tensor  # [n, S], tokens decoded in the last step
    best: Tensor  # [n, S], the confirmed answer, or the one that the head was most sure of, the latest among equals
    token_halted: Tensor  # [n, P], whether a position has halted


WIDE = ("accumulated", "token_accumulated")
FLOATS = ("logit", "best_logit", "residual")


def on_host(state: SlotState) -> Any:
    """The same columns as numpy arrays, for rows that lie on the host."""
    return SlotState(*(column.numpy() for column in state))  # type: ignore[arg-type]


class SlotStates:
    """The state of `capacity` slots under a policy: `rows` [capacity, W], and `fresh` [1, W], that of a new sample.

    `prefix_len` positions of a latent come before those of the `seq_len` tokens.
    """

    @torch.inference_mode(False)  # rows that may be written in any mode
    def __init__(
        self, policy: HaltingPolicy, capacity: int, seq_len: int, prefix_len: int = 0,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.policy, self.seq_len = policy, seq_len
        self.positions = prefix_len + seq_len if "cumulative_token" in policy.on else 0
        self.reasons = ("", "max_steps", "non_finite", *policy.on)
        width = 14 + 2 * seq_len + 3 * self.positions
        width += width % 2  # columns of eight bytes are aligned
        self.rows, self.fresh = (torch.zeros(n, width, dtype=torch.int32, device=device) for n in (capacity, 1))
        self._first: dict[int, SlotState] = {}
        new = self.read(self.fresh)
        new.best_logit.fill_(-math.inf)
        new.answers.fill_(-1)
        new.limit.fill_(policy.max_steps)

    def read(self, rows: Tensor) -> SlotState:
        """The columns of rows [n, W], on any device."""
        several = {"answers": self.seq_len, "best": self.seq_len}
        several |= {"token_halted": self.positions, "token_accumulated": self.positions}
        found, start = [rows], 0
        for name in SlotState._fields[1:]:
            size = several.get(name, 1) * (2 if name in WIDE else 1)
            column = rows[:, start : start + size]
            start += size
            if name in WIDE or name in FLOATS:
                column = column.view(torch.float64 if name in WIDE else torch.float32)
            found.append(column if name in several else column[:, 0])
        return SlotState(*found)

    @torch.inference_mode(False)
    def first(self, n: int) -> SlotState:
        """The columns of the first n slots; those of all slots and of one other n are kept."""
        if n not in self._first:
            self._first = {size: at for size, at in self._first.items() if size == len(self.rows)}
            self._first[n] = self.read(self.rows[:n])
        return self._first[n]


@dataclass(frozen=True)
class Outputs:
    """What one ACT step computed, one row per sample of the batch; what is None is derived or absent."""

    logits: Tensor  # [n, S, V] of a float dtype, the token logits
    q: Tensor | None  # [n, 1 or 2] float32, the halting head at position 0: q_halt, q_continue
    output: Tensor  # [n, L, D] of a float dtype, the output latent y
    previous: Tensor | None = None
    """[n, L, D], the output latent before the step; None where the program does not carry it."""
    others: tuple[Tensor, ...] = ()  # The other carried latents after the step
    head: tuple[Tensor, Tensor | None] | None = None
    """Weight [K, D] and bias [K] of the halting head, which `cumulative_token` reads at every position."""
    compares: bool = False
    """Whether the halting logit is q_halt - q_continue (`ModelConfig.halting="q_continue"`), else q_halt."""
    answers: Tensor | None = None  # [n, S] integers, the decoded tokens, where the executor gave them
    finite: Tensor | None = None  # [n] bool, whether all of the above is finite, where the executor gave it
    change: Tensor | None = None  # [n] float32, |dy| / |y|, where the executor gave it
    token_q: Tensor | None = None
    """[n, L, 1 or 2] float32, the halting head at every position, where the executor gave it."""


def halting_logits(y: Tensor, weight: Tensor, bias: Tensor | None = None, per_token: bool = False) -> Tensor:
    """`y weight^T + bias` in float32 or wider: the logits [B, U, K] of the halting head.

    y [B, L, D], weight [K, D], bias [K]. The head reads y[:, 0] (U = 1; TRM, HRM), or every position (U = L).
    """
    wide = (y if per_token else y[:, :1]).to(torch.promote_types(y.dtype, torch.float32))
    return F.linear(wide, weight.to(wide.dtype), None if bias is None else bias.to(wide.dtype))


def halt_logit(q: Tensor, compares: bool) -> Tensor:
    """q [..., K] to [...]: q_halt, or q_halt - q_continue. Above 0 the head wants to halt; p is its sigmoid."""
    return q[..., 0] - q[..., 1] if compares else q[..., 0]


def relative_change(y: Tensor, previous: Tensor) -> Tensor:
    """`|y - previous| / |y|` per sample [B], Frobenius norms over [L, D], in float32 or wider."""
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=(1, 2))
    return torch.linalg.vector_norm(wide - previous.to(wide.dtype), dim=(1, 2)) / norm.clamp_min(1e-30)


def sigmoid(logits: Tensor) -> Tensor:
    """1 / (1 + exp(-logits)) in float64, by additions, products and one division alone: each is rounded correctly, so
    that the bits depend neither on the place in a tensor nor on the device.

    The relative error is below 1e-11 for |logits| <= 64; beyond, p is that of 64.
    """
    t = logits.double().abs().clamp(max=64) * (-1 / 4096)
    exponential = torch.ones_like(t)
    for n in range(6, 0, -1):  # Taylor's series of exp(t), |t| <= 1/64
        exponential = exponential * t * (1 / n) + 1
    for _ in range(12):
        exponential = exponential * exponential
    small = exponential / (exponential + 1)
    return torch.where(logits < 0, small, 1 - small)


def all_finite(seen: Outputs) -> Tensor:
    """bool [n], whether logits, halting logits and carried latents of a sample are all finite."""
    found = (seen.logits, seen.q, None if seen.previous is None else seen.output, *seen.others)
    return torch.isfinite(torch.stack([peak(t) for t in found if t is not None])).all(0)


def peak(values: Tensor) -> Tensor:
    """Largest magnitude of each sample of values [n, ...]: [n], NaN or infinite where one of its values is."""
    return torch.linalg.vector_norm(values.flatten(1), ord=math.inf, dim=1)


def observe(state: SlotState, policy: HaltingPolicy, seen: Outputs, sums: bool = False) -> None:
    """Take in an ACT step of every row; `sums`: add up p also where no signal needs it.

    Under `verified` the samples whose answer changed then `asks` the verifier. A halted token keeps its answer.
    """
    answers = seen.logits.argmax(-1) if seen.answers is None else seen.answers
    answers, finite = answers.to(torch.int32), all_finite(seen) if seen.finite is None else seen.finite
    state.steps.add_(1)
    if "cumulative_token" in policy.on:
        answers = torch.where(state.token_halted[:, -answers.shape[1] :] != 0, state.answers, answers)
        state.token_accumulated.add_(sigmoid(halt_logit(_token_q(seen), seen.compares).float()))
        may = (state.steps >= policy.min_steps)[:, None]
        state.token_halted.copy_((state.token_halted != 0) | (may & (state.token_accumulated >= 1)))
    changed = (answers != state.answers).any(1)
    state.answers.copy_(answers)
    state.stable.add_(1).masked_fill_(changed, 0)
    state.finite.copy_(finite)
    if "verified" in policy.on:
        state.asks.copy_(changed & finite & (state.verified == 0))
    change = seen.change
    if change is None and seen.previous is not None:
        change = relative_change(seen.output, seen.previous)
    state.residual.fill_(math.nan) if change is None else state.residual.copy_(change)
    if seen.q is None:
        state.logit.fill_(math.nan)
        return
    state.logit.copy_(halt_logit(seen.q, seen.compares))
    if sums or "cumulative" in policy.on:
        state.accumulated.add_(sigmoid(state.logit))


def _token_q(seen: Outputs) -> Tensor:
    """[n, L, K], sample by sample, so that the bits do not depend on the batch."""
    if seen.token_q is not None:
        return seen.token_q
    assert seen.head is not None
    found = seen.output.new_zeros(*seen.output.shape[:2], len(seen.head[0]), dtype=torch.float32)
    for sample, y in enumerate(seen.output):
        found[sample] = halting_logits(y[None], *seen.head, per_token=True)[0]
    return found


def decide(state: SlotState, policy: HaltingPolicy, confirmed: Tensor | None = None) -> None:
    """After `observe`: keep the best answer, and write to `reason` who leaves, and why.

    confirmed [n] bool: whose answer the verifier has just confirmed; it stays the best one from then on.
    """
    better = ~(state.logit < state.best_logit)
    if confirmed is not None:
        better = (better & (state.verified == 0)) | confirmed
        state.verified.masked_fill_(confirmed, 1)
    torch.where(better[:, None], state.answers, state.best, out=state.best)
    torch.where(better, state.steps, state.best_step, out=state.best_step)
    torch.where(better, state.logit, state.best_logit, out=state.best_logit)
    state.reason.fill_(STAYS).masked_fill_(state.steps >= state.limit, MAX_STEPS)
    may = state.steps >= policy.min_steps
    for place, name in reversed(list(enumerate(policy.on))):
        state.reason.masked_fill_(may & _signal(name, state, policy), SIGNAL + place)
    state.reason.masked_fill_(state.finite == 0, NON_FINITE)


def _signal(name: str, state: SlotState, policy: HaltingPolicy) -> Tensor:
    """bool [n], where the signal holds."""
    if name == "verified":
        return state.verified != 0
    if name in ("q", "q_continue"):
        return state.logit.double() > math.log(policy.q_threshold / (1 - policy.q_threshold))
    if name == "cumulative":
        return state.accumulated >= 1
    if name == "cumulative_token":
        return (state.token_halted != 0).all(1)
    settled = state.stable >= policy.settle_steps
    if policy.settle_tolerance > 0:
        settled = settled & (state.residual.double() < policy.settle_tolerance)
    return settled
