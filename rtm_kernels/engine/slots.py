"""Slots of a latent buffer: samples enter free ones, run ACT steps together, and leave one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.data.task import PAD
from rtm_kernels.engine.executor import ActStep, Executor
from rtm_kernels.engine.tracker import Observation, Tracker, Verify, on_host
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.reference import halting_logits, relative_change


@dataclass(frozen=True)
class Sample:
    """One encoded puzzle: tokens [seq_len] and what the caller recognises it by.

    Before each step, noise * N(0, 1) is added to its carried latents, drawn from `seed` and the step alone.
    With an `open_token` positions of that token are guessed from the same (`guesses`). `max_steps` takes the place of
    the policy's cap.
    """

    key: Any
    tokens: np.ndarray
    puzzle_identifier: int = 0
    noise: float = 0.0
    seed: int = 0
    open_token: int = PAD
    max_steps: int | None = None

    def limit(self, cap: int) -> int:
        """Its own cap, else that of the policy."""
        return cap if self.max_steps is None else self.max_steps


@dataclass(frozen=True)
class Finished:
    """A sample that left the batch. `answer` [seq_len] is None when it was not finite, or took no step.

    `residual` is |dy| / |y| of its last step: large where the trajectory has not settled. `total_steps` counts the
    steps of all `rollouts` of the puzzle.
    """

    key: Any
    answer: np.ndarray | None
    verified: bool
    reason: str
    steps: int
    answer_step: int
    halt_probability: float | None
    residual: float | None
    seconds: float
    rollout: int = 0
    total_steps: int = 0


class Slots(Protocol):
    """Slots over one latent buffer; a step runs all occupied ones as one batch.

    `HostSlots` decides on the host who enters and leaves, `DeviceSlots` on the device. A sample gets the same answer
    after the same steps in both.
    """

    @property
    def free(self) -> int:
        """How many samples `admit` takes now."""
        ...

    @property
    def active(self) -> int:
        """How many samples are here."""
        ...

    def admit(self, samples: Sequence[Sample]) -> None:
        """Take samples, at most `free`: fresh latents, embedded input, zero steps."""
        ...

    def step(self) -> list[Finished]:
        """One ACT step of every sample, or several; returns those that left."""
        ...

    def tighten(self, key: Any, max_steps: int) -> None:
        """Lower the cap of the sample of `key`, if it is here: it leaves with the next step that reaches it."""
        ...

    def evict(self, key: Any, reason: str) -> Finished | None:
        """Take the sample of `key` out with its best answer so far; None when it is not here."""
        ...


def observation(
    model: RecursiveReasoner, executor: Executor, tracker: Tracker, before: Mapping[str, Tensor], step: ActStep
) -> Observation:
    """What the ACT step from the latents `before` showed, with no wait for the device."""
    after, output, q = step.latents, model.program.output, step.q
    finite, change, tokens = step.finite, step.change, step.token_q if tracker.positions else None
    if finite is None:
        finite = torch.isfinite(_peak(step.logits))
        for name in before:
            finite = finite & torch.isfinite(_peak(after[name]))
        if q is not None:
            finite = finite & torch.isfinite(q).all(-1)
    if change is None and output in before:
        change = relative_change(after[output], before[output]).float()
    if tokens is None and tracker.positions:
        head = model.q_head
        apart = after[output].split(1) if executor.batch_invariant else (after[output],)
        tokens = torch.cat([halting_logits(part, head.weight, head.bias, "token") for part in apart])
    compares = model.config.halting == "q_continue"
    return Observation(
        answers=step.logits.argmax(-1).to(torch.int32) if step.answers is None else step.answers,
        finite=finite,
        halt_logits=None if q is None else _halting(q, compares).float(),
        change=change,
        token_logits=None if tokens is None else _halting(tokens, compares).float(),
    )


def _halting(q: Tensor, compares: bool) -> Tensor:
    return q[..., 0] - q[..., 1] if compares else q[..., 0]


def _peak(values: Tensor) -> Tensor:
    """Largest magnitude of each sample [B], which is NaN or infinite when one of its values is."""
    return torch.linalg.vector_norm(values.flatten(1), ord=math.inf, dim=1)


def finish(
    tracker: Tracker,
    verify: Verify,
    rows: Tensor,
    samples: Sequence[Sample],
    seconds: Sequence[float],
    reason: str | None = None,
) -> list[Finished]:
    """What the samples leave with that had the tracker's rows [k, W], which are on the host by now.

    A sample answers with its confirmed answer; when no signal of the policy ended it, with the one the head was most
    sure of, the latest among equals; else with its last one, and always with that where tokens halt on their own.
    """
    at = on_host(tracker.read(rows))
    on = tracker.policy.on
    reasons = [reason or tracker.reasons[which] for which in at.reason]
    answered = [k for k, why in enumerate(reasons) if why != "non_finite" and at.steps[k]]
    ended = [why in on or not on or "cumulative_token" in on for why in reasons]
    last = [ended[k] and not at.verified[k] for k in range(len(samples))]
    answers = {k: (at.answers if last[k] else at.best)[k].copy() for k in answered}
    verified = {k: bool(at.verified[k]) for k in answered}
    if answered and "verified" not in on:
        inputs = np.stack([samples[k].tokens for k in answered])
        verified = dict(zip(answered, verify(inputs, np.stack(list(answers.values()))).tolist(), strict=True))
    finished = []
    for k, sample in enumerate(samples):
        steps, residual, logit = int(at.steps[k]), float(at.residual[k]), math.nan
        if k in answers:
            logit = float((at.logit if last[k] else at.best_logit)[k])
        finished.append(
            Finished(
                key=sample.key,
                answer=answers.get(k),
                verified=verified.get(k, False),
                reason=reasons[k],
                steps=steps,
                answer_step=int((at.steps if last[k] else at.best_step)[k]) if k in answers else 0,
                halt_probability=None if math.isnan(logit) else probability(logit),
                residual=None if k not in answers or math.isnan(residual) else residual,
                seconds=seconds[k],
                total_steps=steps,
            )
        )
    return finished


def probability(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow."""
    return float(np.exp(-np.logaddexp(0, -logit)))
