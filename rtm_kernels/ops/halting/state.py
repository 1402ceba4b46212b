"""What halting remembers of each sample between ACT steps: rows of int32, with columns of several dtypes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rtm_kernels.ops.halting.policy import HaltingPolicy

STAYS, MAX_STEPS, NON_FINITE, SIGNAL = range(4)
"""Values of `SlotState.reason`; SIGNAL + i is the i-th signal of the policy."""


class SlotState(NamedTuple):
    """Rows [n, W] int32 and their columns, each a view of its own dtype: [n] where no other shape is given."""

    rows: Tensor
    """[n, W], contiguous: all columns that follow."""
    accumulated: Tensor
    """float64, the sum of p so far."""
    logit: Tensor
    """float32, the halting logit of the last step, NaN without a head."""
    best_logit: Tensor
    """float32, the halting logit of the step whose answer is `best`."""
    residual: Tensor
    """float32, |dy| / |y| of the last step, NaN where y is not carried."""
    sample: Tensor
    """Number that the caller recognises the sample by; int32, as all below but one."""
    limit: Tensor
    """Its cap of steps."""
    steps: Tensor
    """ACT steps so far."""
    best_step: Tensor
    """The step whose answer is `best`."""
    stable: Tensor
    """Steps since the answer changed."""
    finite: Tensor
    """Whether all values of the last step were finite."""
    asks: Tensor
    """Whether the verifier has to see the answer."""
    verified: Tensor
    """Whether the verifier has confirmed `best`."""
    reason: Tensor
    """Why the sample leaves, or STAYS."""
    token_accumulated: Tensor
    """[n, P] float64, the sum of p of every position under `cumulative_token`; else P = 0."""
    answers: Tensor
    """[n, S], tokens decoded in the last step."""
    best: Tensor
    """[n, S], the confirmed answer, or the one that the head was most sure of, the latest among equals."""
    token_halted: Tensor
    """[n, P], whether a position has halted."""


WIDE = ("accumulated", "token_accumulated")
FLOATS = ("logit", "best_logit", "residual")


def columns(rows: Tensor, seq_len: int, positions: int) -> SlotState:
    """The columns of rows [n, W], on any device."""
    found, start = [rows], 0
    for name in SlotState._fields[1:]:
        width = {"answers": seq_len, "best": seq_len, "token_halted": positions, "token_accumulated": positions}
        size = width.get(name, 1) * (2 if name in WIDE else 1)
        column = rows[:, start : start + size]
        start += size
        if name in WIDE:
            column = column.view(torch.float64)
        elif name in FLOATS:
            column = column.view(torch.float32)
        found.append(column if name in width else column[:, 0])
    return SlotState(*found)


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
        """The columns of some rows, on any device."""
        return columns(rows, self.seq_len, self.positions)

    @torch.inference_mode(False)
    def first(self, n: int) -> SlotState:
        """The columns of the first n slots; those of all slots and of one other n are kept."""
        if n not in self._first:
            self._first = {size: at for size, at in self._first.items() if size == len(self.rows)}
            self._first[n] = self.read(self.rows[:n])
        return self._first[n]
