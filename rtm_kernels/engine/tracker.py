"""What the host remembers of each sample between ACT steps, and which samples leave after a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rtm_kernels.engine.policy import HaltingPolicy

Verify = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Token rows of inputs and answers [N, S] to bool [N]."""


def sigmoid(logits: np.ndarray | float) -> np.ndarray:
    """1 / (1 + exp(-logits)), without overflow."""
    return np.exp(-np.logaddexp(0, -np.asarray(logits, dtype=np.float64)))


@dataclass(frozen=True)
class Observation:
    """One ACT step as the host sees it, one row per sample of the batch."""

    answers: np.ndarray
    """Decoded tokens [n, S]."""
    finite: np.ndarray
    """bool [n], False where the sample's latents or logits hold NaN or infinity, and for free slots."""
    halt_logits: np.ndarray | None
    """float32 [n], p_halt = sigmoid of it; None without a halting head."""
    change: np.ndarray | None
    """float32 [n], |dy| / |y| of the output latent; None when the program does not carry it."""
    token_logits: np.ndarray | None = None
    """float32 [n, L], the halting logit of each position; only under the signal `cumulative_token`."""


class Tracker:
    """State of the samples in `capacity` slots, as arrays over the slots.

    `prefix_len` positions of a latent come before those of the `seq_len` tokens.
    """

    def __init__(self, policy: HaltingPolicy, verify: Verify, capacity: int, seq_len: int, prefix_len: int = 0) -> None:
        self.policy, self._verify = policy, verify
        self.inputs = np.zeros((capacity, seq_len), dtype=np.int32)
        self.answers = np.full((capacity, seq_len), -1, dtype=np.int32)
        self.best = np.zeros_like(self.answers)
        self.best_logit = np.full(capacity, -np.inf)
        self.best_step = np.zeros(capacity, dtype=np.int64)
        self.logits = np.full(capacity, np.nan)
        self.steps = np.zeros(capacity, dtype=np.int64)
        self.stable = np.zeros(capacity, dtype=np.int64)
        self.accumulated = np.zeros(capacity)
        self.residual = np.full(capacity, np.nan)
        self.limit = np.full(capacity, policy.max_steps)
        self.verified = np.zeros(capacity, dtype=bool)
        positions = prefix_len + seq_len if "cumulative_token" in policy.on else 0
        self.token_accumulated = np.zeros((capacity, positions))
        self.token_halted = np.zeros((capacity, positions), dtype=bool)

    def _arrays(self) -> list[np.ndarray]:
        return [v for v in vars(self).values() if isinstance(v, np.ndarray)]

    def reset(self, slots: np.ndarray, inputs: np.ndarray, limits: list[int | None]) -> None:
        """Fresh samples with tokens `inputs` [N, S] in `slots` [N], each with its own cap where `limits` has one."""
        for array in self._arrays():
            array[slots] = 0
        self.inputs[slots], self.answers[slots], self.best_logit[slots] = inputs, -1, -np.inf
        cap = self.policy.max_steps
        self.limit[slots] = [cap if limit is None else min(limit, cap) for limit in limits]

    def compact(self, order: np.ndarray) -> None:
        """Move the samples of slots `order` to the front, in this order."""
        for array in self._arrays():
            array[: len(order)] = array[order]

    def observe(self, seen: Observation) -> dict[str, np.ndarray]:
        """Take in a step of the first n slots; returns the signals that hold now, name -> bool [n]."""
        n, policy = len(seen.answers), self.policy
        self.steps[:n] += 1
        answers = seen.answers
        if seen.token_logits is not None:
            answers = self._halt_tokens(answers, seen.token_logits)
        changed = (answers != self.answers[:n]).any(1)
        self.answers[:n] = answers
        self.stable[:n] = np.where(changed, 0, self.stable[:n] + 1)
        logits = self.logits[:n]
        logits[:] = np.nan if seen.halt_logits is None else seen.halt_logits
        if "verified" in policy.on:
            self._confirm(np.flatnonzero(changed & seen.finite & ~self.verified[:n]))
        self._keep(np.flatnonzero(~self.verified[:n] & ~(logits < self.best_logit[:n])))
        self.residual[:n] = np.nan if seen.change is None else seen.change
        settled = self.stable[:n] >= policy.settle_steps
        if policy.settle_tolerance > 0:
            settled &= self.residual[:n] < policy.settle_tolerance
        signals = {"verified": self.verified[:n].copy(), "settle": settled}
        if seen.halt_logits is not None:
            self.accumulated[:n] += sigmoid(logits)
            signals["q"] = logits > math.log(policy.q_threshold / (1 - policy.q_threshold))
            signals["cumulative"] = self.accumulated[:n] >= 1
        if seen.token_logits is not None:
            signals["cumulative_token"] = self.token_halted[:n].all(1)
        return {name: signals[name] for name in policy.on if name in signals}

    def _halt_tokens(self, answers: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Let the tokens halt whose sum of p is 1 now; returns the answers, those of tokens halted before kept."""
        n, seq_len = answers.shape
        kept = self.token_halted[:n, -seq_len:]
        answers = np.where(kept, self.answers[:n], answers)
        self.token_accumulated[:n] += sigmoid(logits)
        may = (self.steps[:n] >= self.policy.min_steps)[:, None]
        self.token_halted[:n] |= may & (self.token_accumulated[:n] >= 1)
        return answers

    def _confirm(self, rows: np.ndarray) -> None:
        """Verify the current answers of `rows`; a confirmed one is kept whatever follows."""
        if rows.size:
            confirmed = rows[self._verify(self.inputs[rows], self.answers[rows])]
            self.verified[confirmed] = True
            self._keep(confirmed)

    def _keep(self, rows: np.ndarray) -> None:
        self.best[rows], self.best_step[rows] = self.answers[rows], self.steps[rows]
        self.best_logit[rows] = self.logits[rows]

    def leaving(self, signals: dict[str, np.ndarray], finite: np.ndarray) -> dict[int, str]:
        """Slots whose sample leaves after this step, with the reason, in slot order."""
        n = len(finite)
        reasons = np.full(n, "", dtype=object)
        reasons[self.steps[:n] >= self.limit[:n]] = "max_steps"
        for name in reversed(self.policy.on):
            if name in signals:
                reasons[signals[name] & (self.steps[:n] >= self.policy.min_steps)] = name
        reasons[~finite] = "non_finite"
        return {int(slot): str(reasons[slot]) for slot in np.flatnonzero(reasons != "")}

    def answer(self, slot: int, reason: str) -> tuple[np.ndarray, float, int]:
        """(tokens, halting logit, step) of what the sample answers: the confirmed answer; when no signal of the
        policy ended it, the one the head was most sure of, the latest among equals; else the current one, and always
        that where tokens halt on their own."""
        unasked = reason not in self.policy.on and self.policy.on and "cumulative_token" not in self.policy.on
        if self.verified[slot] or unasked:
            return self.best[slot].copy(), float(self.best_logit[slot]), int(self.best_step[slot])
        return self.answers[slot].copy(), float(self.logits[slot]), int(self.steps[slot])

    def sum_of_p(self, slot: int) -> float:
        """The sum of p over the steps of the sample so far; the smallest of its tokens' sums where those halt."""
        return float((self.token_accumulated if self.token_accumulated.size else self.accumulated)[slot].min())

    def confirmed(self, slots: list[int], answers: list[np.ndarray]) -> list[bool]:
        """Whether the verifier confirms the answers that the samples of `slots` leave with."""
        if not slots or "verified" in self.policy.on:
            return self.verified[slots].tolist()
        return self._verify(self.inputs[slots], np.stack(answers)).tolist()
