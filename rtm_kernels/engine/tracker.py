"""What is remembered of each sample between ACT steps, and which samples leave after one.

All of it is tensor code that works in place and never waits for the device, so that the host may call it step by step
and a CUDA graph may record it: what a sample answers and when it halts is decided by the same lines in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.engine.policy import HaltingPolicy

Verify = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Token rows of inputs and answers [N, S] to bool [N]."""

STAYS, MAX_STEPS, NON_FINITE, SIGNAL = range(4)
"""Values of `Remembered.reason`; SIGNAL + i is the i-th signal of the policy."""


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


@dataclass(frozen=True)
class Observation:
    """One ACT step, one row per sample of the batch."""

    answers: Tensor
    """Decoded tokens [n, S], int32."""
    finite: Tensor
    """bool [n], False where the sample's latents or logits hold NaN or infinity."""
    halt_logits: Tensor | None
    """float32 [n], p_halt = sigmoid of it; None without a halting head."""
    change: Tensor | None
    """float32 [n], |dy| / |y| of the output latent; None when the program does not carry it."""
    token_logits: Tensor | None = None
    """float32 [n, L], the halting logit of each position; only under the signal `cumulative_token`."""


class Remembered(NamedTuple):
    """The columns of `Tracker.rows` [n, W], each a view of its own dtype; [n] where there is one column."""

    accumulated: Tensor
    """float64, the sum of p so far."""
    token_accumulated: Tensor
    """float64 [n, P], that of every position under `cumulative_token`, else P = 0."""
    logit: Tensor
    """float32, the halting logit of the last step, NaN without a head."""
    best_logit: Tensor
    """float32, that of the step whose answer is `best`."""
    residual: Tensor
    """float32, |dy| / |y| of the last step."""
    sample: Tensor
    """Number that the caller recognises the sample by; this and all below are int32."""
    limit: Tensor
    """Its cap of steps."""
    steps: Tensor
    """ACT steps so far."""
    best_step: Tensor
    """The step whose answer is `best`."""
    stable: Tensor
    """Steps since the answer changed."""
    finite: Tensor
    """Whether the last step was."""
    asks: Tensor
    """Whether the verifier has to see the answer."""
    verified: Tensor
    """Whether it has confirmed `best`."""
    reason: Tensor
    """Why the sample leaves, or STAYS."""
    answers: Tensor
    """[n, S], tokens decoded in the last step."""
    best: Tensor
    """[n, S], the confirmed answer, or the one that the head was most sure of, the latest among equals."""
    token_halted: Tensor
    """[n, P], whether a position has halted."""


WIDE = ("accumulated", "token_accumulated")
FLOATS = ("logit", "best_logit", "residual")


def remembered(rows: Tensor, seq_len: int, positions: int) -> Remembered:
    """The columns of rows [n, W] int32, on any device."""
    found, start = {}, 0
    for name in Remembered._fields:
        width = {"answers": seq_len, "best": seq_len, "token_halted": positions, "token_accumulated": positions}
        size = width.get(name, 1) * (2 if name in WIDE else 1)
        column = rows[:, start : start + size]
        start += size
        if name in WIDE:
            column = column.view(torch.float64)
        elif name in FLOATS:
            column = column.view(torch.float32)
        found[name] = column if name in width else column[:, 0]
    return Remembered(**found)


def on_host(at: Remembered) -> Any:
    """The same columns as numpy arrays, for rows that lie on the host."""
    return Remembered(*(column.numpy() for column in at))  # type: ignore[arg-type]


def width_of(seq_len: int, positions: int) -> int:
    """W, even, so that the columns of eight bytes are aligned."""
    narrow = len(Remembered._fields) - len(WIDE) - 3
    size = 2 + 2 * positions + narrow + 2 * seq_len + positions
    return size + size % 2


class Tracker:
    """State of the samples in `capacity` slots: `rows` [capacity, W] int32, one row per sample.

    `prefix_len` positions of a latent come before those of the `seq_len` tokens. The sum of p is kept under the signal
    `cumulative`, and with `sums` under every policy.
    """

    @torch.inference_mode(False)  # rows that may be written in any mode
    def __init__(
        self,
        policy: HaltingPolicy,
        capacity: int,
        seq_len: int,
        prefix_len: int = 0,
        device: torch.device | None = None,
        sums: bool = False,
    ) -> None:
        self.policy, self.seq_len, self._sums = policy, seq_len, sums or "cumulative" in policy.on
        self.positions = prefix_len + seq_len if "cumulative_token" in policy.on else 0
        self.reasons = ("", "max_steps", "non_finite", *policy.on)
        width = width_of(seq_len, self.positions)
        self.rows, self.fresh = (torch.zeros(n, width, dtype=torch.int32, device=device) for n in (capacity, 1))
        self._first: dict[int, Remembered] = {}
        new = self.read(self.fresh)
        new.best_logit.fill_(-math.inf)
        new.answers.fill_(-1)
        new.limit.fill_(policy.max_steps)

    def read(self, rows: Tensor) -> Remembered:
        """The columns of some rows, on any device."""
        return remembered(rows, self.seq_len, self.positions)

    @torch.inference_mode(False)
    def first(self, n: int) -> Remembered:
        """The columns of the first n slots; those of all slots and of one other n are kept."""
        if n not in self._first:
            self._first = {size: at for size, at in self._first.items() if size == len(self.rows)}
            self._first[n] = self.read(self.rows[:n])
        return self._first[n]

    def observe(self, seen: Observation) -> None:
        """Take in a step of the first n slots. Under `verified`, those that `asks` then have to be verified."""
        at = self.first(len(seen.answers))
        at.steps.add_(1)
        answers = seen.answers if seen.token_logits is None else self._halt_tokens(at, seen.answers, seen.token_logits)
        changed = (answers != at.answers).any(1)
        at.answers.copy_(answers)
        at.stable.copy_((at.stable + 1).masked_fill(changed, 0))
        at.finite.copy_(seen.finite)
        _fill(at.logit, seen.halt_logits)
        _fill(at.residual, seen.change)
        if "verified" in self.policy.on:
            at.asks.copy_(changed & seen.finite & (at.verified == 0))
        if self._sums and seen.halt_logits is not None:
            at.accumulated.add_(sigmoid(at.logit))

    def _halt_tokens(self, at: Remembered, answers: Tensor, logits: Tensor) -> Tensor:
        """Let the tokens halt whose sum of p is 1 now; returns the answers, those of tokens halted before kept."""
        answers = torch.where(at.token_halted[:, -self.seq_len :] != 0, at.answers, answers)
        at.token_accumulated.add_(sigmoid(logits))
        may = (at.steps >= self.policy.min_steps)[:, None]
        at.token_halted.copy_((at.token_halted != 0) | (may & (at.token_accumulated >= 1)))
        return answers

    def decide(self, n: int, confirmed: Tensor | None = None) -> Tensor:
        """After `observe`: bool [n], which of the first n samples go on, `reason` saying why the others leave.

        confirmed [n] bool: whose answer the verifier has just confirmed; it is kept whatever follows.
        """
        at, policy = self.first(n), self.policy
        better = ~(at.logit < at.best_logit)
        if confirmed is not None:
            at.verified.copy_((at.verified != 0) | confirmed)
            better = (better & (at.verified == 0)) | confirmed
        at.best.copy_(torch.where(better[:, None], at.answers, at.best))
        at.best_step.copy_(torch.where(better, at.steps, at.best_step))
        at.best_logit.copy_(torch.where(better, at.logit, at.best_logit))
        reason = torch.zeros_like(at.reason).masked_fill(at.steps >= at.limit, MAX_STEPS)
        may = at.steps >= policy.min_steps
        for place, name in reversed(list(enumerate(policy.on))):
            reason = reason.masked_fill(may & self._signal(name, at), SIGNAL + place)
        at.reason.copy_(reason.masked_fill(at.finite == 0, NON_FINITE))
        return at.reason == STAYS

    def _signal(self, name: str, at: Remembered) -> Tensor:
        """bool [n], where the signal holds."""
        policy = self.policy
        if name == "verified":
            return at.verified != 0
        if name == "q":
            return at.logit.double() > math.log(policy.q_threshold / (1 - policy.q_threshold))
        if name == "cumulative":
            return at.accumulated >= 1
        if name == "cumulative_token":
            return (at.token_halted != 0).all(1)
        settled = at.stable >= policy.settle_steps
        if policy.settle_tolerance > 0:
            settled = settled & (at.residual.double() < policy.settle_tolerance)
        return settled

    def sum_of_p(self, at: Remembered) -> Tensor:
        """float64 [n], the sum of p so far; the smallest of the tokens' sums where those halt."""
        return at.token_accumulated.amin(1) if self.positions else at.accumulated


def _fill(column: Tensor, values: Tensor | None) -> None:
    if values is None:
        column.fill_(math.nan)
    else:
        column.copy_(values)
