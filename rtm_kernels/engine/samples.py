"""What enters the slots of a batch, what an observer sees there, what leaves them, and what the solver makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rtm_kernels.data.task import PAD
from rtm_kernels.ops.halting.reference import SlotState, SlotStates, on_host

Verify = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Token rows of inputs and answers [N, S] to bool [N]."""


@dataclass(frozen=True)
class Sample:
    """One encoded puzzle: tokens [seq_len] and what the caller recognises it by.

    Before each step, `noise` times normal noise is added to its carried latents, drawn from `seed` and the step alone.
    With an `open_token`, positions of that token are guessed from the same (`guesses`). `max_steps` replaces the cap of
    the policy.
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


@dataclass(frozen=True)
class Step:
    """One ACT step of one sample. `number` counts from 1; `answer` [seq_len] holds the tokens decoded after it, under
    `cumulative_token` those of halted tokens as they were when they halted.

    `q` are the halting head's logits, `halt_probability` is p of this step and `accumulated` the sum of p so far, under
    `cumulative_token` the smallest of the tokens' sums. `change` is |dz| / |z| of each carried latent z. `active`
    samples took this step together, `seconds` after this one entered the batch.
    """

    key: Any
    number: int
    answer: np.ndarray
    finite: bool
    q: tuple[float, ...] | None
    halt_probability: float | None
    accumulated: float
    change: dict[str, float]
    active: int
    seconds: float


Observer = Callable[[Step], None]
"""What sees every ACT step of every sample, as it is taken."""


STATUSES = ("verified", "unverified", "non_finite", "invalid")
"""`verified`: the rules of the task hold; `unverified`: an answer that breaks them or cannot be checked;
`non_finite`: the sample's latents or logits held NaN or infinity; `invalid`: the puzzle could not be read."""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """One puzzle's outcome. `answer` is text in the task's own format, None unless the status has an answer.

    `steps` counts ACT steps, `seconds` the time from entering the batch to leaving it. `halt_probability` is the
    head's p at the step that gave the answer, None for a model without a head. `reason` says why it stopped: a
    signal of the halting policy, `max_steps`, `non_finite`, or `deadline`. `answer_step` is the step whose answer
    this is: the last one, or when no signal ended the sample the one that the head was most sure of. `residual` is
    |dy| / |y| of the last step: a trajectory that has not settled warns. With several rollouts `rollout` numbers
    the one chosen, and `total_steps` counts the steps of all. `error` says what is wrong with an invalid puzzle.
    """

    task: str
    input: str
    answer: str | None = None
    status: str
    steps: int = 0
    halt_probability: float | None = None
    seconds: float = 0.0
    reason: str | None = None
    answer_step: int = 0
    residual: float | None = None
    rollout: int = 0
    total_steps: int = 0
    error: str | None = None

    @property
    def confidence(self) -> float | None:
        """How likely the answer is right: 1 where the rules confirm it, else what the halting head says of it.

        For tasks and policies without a verdict; None without an answer, or without a head. The residual is left out,
        because it tells little: docs/solving.md has the figures of the bundled model.
        """
        if self.answer is None:
            return None
        return 1.0 if self.status == "verified" else self.halt_probability

    def to_dict(self) -> dict[str, Any]:
        """The fields and `confidence` as JSON types; `error` only where there is one."""
        values = asdict(self) | {"confidence": self.confidence}
        if self.error is None:
            del values["error"]
        return values


def finish(
    states: SlotStates,
    state: SlotState,
    samples: Sequence[Sample],
    seconds: Sequence[float],
    verify: Verify,
    reason: str | None = None,
) -> list[Finished]:
    """What the samples leave with that have this state [k], which is on the host by now.

    A sample answers with its confirmed answer; when no signal of the policy ended it, with the one the head was most
    sure of, the latest among equals; else with its last one, and always with that where tokens halt on their own.
    """
    at, on = on_host(state), states.policy.on
    reasons = [reason or states.reasons[which] for which in at.reason]
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
