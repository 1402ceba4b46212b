"""The latent buffer: samples enter free slots, run ACT steps together, and leave one by one."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.engine.executor import Executor
from rtm_kernels.engine.observer import Observer, Step
from rtm_kernels.engine.policy import HaltingPolicy
from rtm_kernels.engine.tracker import Observation, Tracker, Verify, sigmoid
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.reference import halting_logits, relative_change


@dataclass(frozen=True)
class Sample:
    """One encoded puzzle: tokens [seq_len] and what the caller recognises it by.

    Before each step, noise * N(0, 1) is added to its carried latents, drawn from `seed` and the step alone.
    `max_steps` lowers the policy's cap.
    """

    key: Any
    tokens: np.ndarray
    puzzle_identifier: int = 0
    noise: float = 0.0
    seed: int = 0
    max_steps: int | None = None


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


class Slots:
    """`capacity` slots over one latent buffer; a step runs all occupied slots as one batch.

    Free slots are filled by `admit`. Those still free at the next step are closed by moving the others up, in
    order, so that the batch shrinks; with `fixed_shape` they stay and the batch always has `capacity` rows, which
    keeps the shapes of every step, and so the rounding of a sample, independent of how many others there are.
    `observer` is called with every step of every sample, in slot order.
    """

    def __init__(
        self,
        model: RecursiveReasoner,
        executor: Executor,
        policy: HaltingPolicy,
        verify: Verify,
        capacity: int,
        fixed_shape: bool = False,
        observer: Observer | None = None,
    ) -> None:
        config = model.config
        self.model, self.executor, self.policy = model, executor, policy
        self.capacity, self.fixed_shape, self.observer = capacity, fixed_shape, observer
        self.tracker = Tracker(policy, verify, capacity, config.seq_len, config.prefix_len)
        with torch.inference_mode():
            self.latents = {k: v.clone() for k, v in model.initial_latents(capacity).items()}
            shape = (capacity, config.latent_len, config.hidden_size)
            self.x = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self._samples: list[Sample | None] = [None] * capacity
        self._generator = torch.Generator(model.device)
        self._since = np.zeros(capacity)
        self._occupied = np.zeros(capacity, dtype=bool)

    @property
    def free(self) -> int:
        """How many samples `admit` takes now."""
        return int(self.capacity - self._occupied.sum())

    @property
    def active(self) -> int:
        """How many samples are in the batch."""
        return int(self._occupied.sum())

    @torch.inference_mode()
    def admit(self, samples: Sequence[Sample]) -> None:
        """Put samples, at most `free`, into free slots: fresh latents, embedded input, zero steps."""
        if not samples:
            return
        slots = np.flatnonzero(~self._occupied)[: len(samples)]
        tokens = np.stack([s.tokens for s in samples]).astype(np.int32)
        device = self.model.device
        identifiers = torch.tensor([s.puzzle_identifier for s in samples], dtype=torch.int32, device=device)
        rows = torch.from_numpy(slots).to(device)
        self.x[rows] = self.model.embed(torch.from_numpy(tokens).to(device), identifiers)
        for name, fresh in self.model.initial_latents(len(samples)).items():
            self.latents[name][rows] = fresh
        self.tracker.reset(slots, tokens, [s.max_steps for s in samples])
        self._occupied[slots], self._since[slots] = True, time.perf_counter()
        for slot, sample in zip(slots.tolist(), samples, strict=True):
            self._samples[slot] = sample

    def tighten(self, key: Any, max_steps: int) -> None:
        """Lower the cap of the sample of `key`, if it is in the batch: it leaves with the next step that reaches it."""
        for slot in self._slots_of(key):
            self.tracker.limit[slot] = min(self.tracker.limit[slot], max_steps)

    def evict(self, key: Any, reason: str) -> Finished | None:
        """Take the sample of `key` out with its best answer so far; None when it is not in the batch."""
        for slot in self._slots_of(key):
            return self._finish({slot: reason})[0]
        return None

    def _slots_of(self, key: Any) -> list[int]:
        return [slot for slot, sample in enumerate(self._samples) if sample is not None and sample.key == key]

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """One ACT step of every sample; returns those that leave, in slot order."""
        if not self.active:
            return []
        n = self.capacity if self.fixed_shape else self._close_gaps()
        before = {k: v[:n] for k, v in self.latents.items()}
        after, logits, q = self.executor.step(self._perturbed(before), self.x[:n])
        seen = self._observe(before, after, logits, q)
        changes = {} if self.observer is None else {k: relative_change(after[k], before[k]).tolist() for k in before}
        for name, buffer in self.latents.items():
            buffer[:n] = after[name]
        signals = self.tracker.observe(seen)
        if self.observer is not None:
            self._report(self.observer, seen, q, changes)
        leaving = self.tracker.leaving(signals, seen.finite)
        return self._finish({slot: reason for slot, reason in leaving.items() if self._occupied[slot]})

    def _perturbed(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """`latents` with the noise of this step added to the samples that have any."""
        noisy = [(i, s) for i, s in enumerate(self._samples) if s is not None and s.noise > 0]
        if not noisy:
            return latents
        latents = {name: latent.clone() for name, latent in latents.items()}
        for slot, sample in noisy:
            self._generator.manual_seed((sample.seed << 16) + int(self.tracker.steps[slot]))
            for latent in latents.values():
                row = latent[slot]
                noise = torch.randn(row.shape, generator=self._generator, device=row.device)
                row += (sample.noise * noise).to(row.dtype)
        return latents

    def _close_gaps(self) -> int:
        order = np.flatnonzero(self._occupied)
        n = len(order)
        if n and order[-1] != n - 1:
            rows = torch.from_numpy(order).to(self.model.device)
            for buffer in (self.x, *self.latents.values()):
                buffer[:n] = buffer[rows]
            self.tracker.compact(order)
            self._since[:n] = self._since[order]
            self._samples[:n] = [self._samples[i] for i in order]
            self._samples[n:] = [None] * (self.capacity - n)
            self._occupied[:n], self._occupied[n:] = True, False
        return n

    def _observe(
        self, before: dict[str, Tensor], after: dict[str, Tensor], logits: Tensor, q: Tensor | None
    ) -> Observation:
        finite = torch.isfinite(_peak(logits))
        for name in self.latents:
            finite &= torch.isfinite(_peak(after[name]))
        halt = None
        if q is not None:
            finite &= torch.isfinite(q).all(-1)
            halt = q[..., 0] - q[..., 1] if self.model.config.halting == "q_continue" else q[..., 0]
        change = None
        output = self.model.program.output
        if output in before:
            change = relative_change(after[output], before[output])
        tokens = self._token_logits(after[output])
        return Observation(
            answers=logits.argmax(-1).to(torch.int32).cpu().numpy(),
            finite=finite.cpu().numpy() & self._occupied[: len(logits)],
            halt_logits=None if halt is None else halt.float().cpu().numpy(),
            change=None if change is None else change.float().cpu().numpy(),
            token_logits=None if tokens is None else tokens.float().cpu().numpy(),
        )

    def _token_logits(self, y: Tensor) -> Tensor | None:
        """Halting logit of each position [n, L], where the policy reads it."""
        if "cumulative_token" not in self.policy.on:
            return None
        head = self.model.q_head
        apart = y.split(1) if self.executor.batch_invariant else (y,)
        logits = torch.cat([halting_logits(part, head.weight, head.bias, "token") for part in apart])
        return logits[..., 0] - logits[..., 1] if self.model.config.halting == "q_continue" else logits[..., 0]

    def _report(self, observer: Observer, seen: Observation, q: Tensor | None, changes: dict[str, list[float]]) -> None:
        tracker, now = self.tracker, time.perf_counter()
        head = None if q is None else q.tolist()
        for slot in np.flatnonzero(self._occupied).tolist():
            sample = self._samples[slot]
            assert sample is not None
            logits = seen.halt_logits
            observer(
                Step(
                    key=sample.key,
                    number=int(tracker.steps[slot]),
                    answer=tracker.answers[slot].copy(),
                    finite=bool(seen.finite[slot]),
                    q=None if head is None else tuple(head[slot]),
                    halt_probability=None if logits is None else float(sigmoid(logits[slot])),
                    accumulated=tracker.sum_of_p(slot),
                    change={name: values[slot] for name, values in changes.items()},
                    active=self.active,
                    seconds=float(now - self._since[slot]),
                )
            )

    def _finish(self, leaving: dict[int, str]) -> list[Finished]:
        tracker, now = self.tracker, time.perf_counter()
        slots = [slot for slot, reason in leaving.items() if reason != "non_finite" and tracker.steps[slot]]
        answers = {slot: tracker.answer(slot, leaving[slot]) for slot in slots}
        verified = dict(zip(slots, tracker.confirmed(slots, [answers[slot][0] for slot in slots]), strict=True))
        finished = []
        for slot, reason in leaving.items():
            sample = self._samples[slot]
            assert sample is not None
            tokens, logit, answer_step = answers.get(slot, (None, math.nan, 0))
            steps, residual = int(tracker.steps[slot]), float(tracker.residual[slot])
            finished.append(
                Finished(
                    key=sample.key,
                    answer=tokens,
                    verified=verified.get(slot, False),
                    reason=reason,
                    steps=steps,
                    answer_step=answer_step,
                    halt_probability=None if math.isnan(logit) else float(sigmoid(logit)),
                    residual=None if tokens is None or math.isnan(residual) else residual,
                    seconds=float(now - self._since[slot]),
                    total_steps=steps,
                )
            )
            self._occupied[slot], self._samples[slot] = False, None
        return finished


def _peak(values: Tensor) -> Tensor:
    """Largest magnitude of each sample [B], which is NaN or infinite when one of its values is."""
    return torch.linalg.vector_norm(values.flatten(1), ord=math.inf, dim=1)
