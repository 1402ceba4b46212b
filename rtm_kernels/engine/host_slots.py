"""Slots whose samples the host moves: for every executor and device, for observers, and for noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.data.task import PAD
from rtm_kernels.engine.executor import Executor
from rtm_kernels.engine.guesses import Guesses
from rtm_kernels.engine.observer import Observer, Step
from rtm_kernels.engine.policy import HaltingPolicy
from rtm_kernels.engine.slots import Finished, Sample, finish, observation, probability
from rtm_kernels.engine.tracker import Tracker, Verify, on_host
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.reference import relative_change


class HostSlots:
    """`Slots` of `capacity` samples.

    Free slots are filled by `admit`. Those still free at the next step are closed by moving the others up, in
    order, so that the batch shrinks; with `fixed_shape` they stay and the batch always has `capacity` rows, which
    keeps the shapes of every step, and so the rounding of a sample, independent of how many others there are.
    `observer` is called with every step of every sample, in slot order. After a step the host reads who leaves, in one
    copy for all samples, and the rows of those in another; under `verified` also the answers that have changed.
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
        config, device = model.config, model.device
        self.model, self.executor, self.verify = model, executor, verify
        self.capacity, self.fixed_shape, self.observer = capacity, fixed_shape, observer
        self.tracker = Tracker(policy, capacity, config.seq_len, config.prefix_len, device, sums=observer is not None)
        with torch.inference_mode():
            self.latents = {k: v.clone() for k, v in model.initial_latents(capacity).items()}
            shape = (capacity, config.latent_len, config.hidden_size)
            self.x = torch.zeros(shape, dtype=model.dtype, device=device)
        self.guesses: Guesses | None = None
        """Made when the first sample comes that guesses."""
        self._samples: list[Sample | None] = [None] * capacity
        self._since = np.zeros(capacity)
        self._occupied = np.zeros(capacity, dtype=bool)

    @property
    def free(self) -> int:
        """See `Slots`."""
        return int(self.capacity - self._occupied.sum())

    @property
    def active(self) -> int:
        """See `Slots`."""
        return int(self._occupied.sum())

    @torch.inference_mode()
    def admit(self, samples: Sequence[Sample]) -> None:
        """See `Slots`."""
        if not samples:
            return
        slots = np.flatnonzero(~self._occupied)[: len(samples)]
        cap = self.tracker.policy.max_steps
        own = [(s.puzzle_identifier, s.limit(cap), *s.tokens) for s in samples]
        new = torch.from_numpy(np.array(own, dtype=np.int32)).to(self.model.device)
        rows = torch.from_numpy(slots).to(self.model.device)
        self.x[rows] = self.model.embed(new[:, 2:], new[:, 0])
        for name, fresh in self.model.initial_latents(len(samples)).items():
            self.latents[name][rows] = fresh
        self.tracker.rows[rows] = self.tracker.fresh
        self.tracker.first(self.capacity).limit[rows] = new[:, 1]
        if self.guesses is None and any(s.open_token != PAD for s in samples):
            self.guesses = Guesses(self.model, self.capacity)
        if self.guesses is not None:
            self.guesses.rows[rows] = torch.from_numpy(Guesses.fresh(samples)).to(self.model.device)
        self._occupied[slots], self._since[slots] = True, time.perf_counter()
        for slot, sample in zip(slots.tolist(), samples, strict=True):
            self._samples[slot] = sample

    def tighten(self, key: Any, max_steps: int) -> None:
        """See `Slots`."""
        for slot in self._slots_of(key):
            self.tracker.first(self.capacity).limit[slot].clamp_(max=max_steps)

    def evict(self, key: Any, reason: str) -> Finished | None:
        """See `Slots`."""
        for slot in self._slots_of(key):
            return self._finish([slot], reason)[0]
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
        start = self._perturbed(before)
        step = self.executor.step(start, self.x[:n])
        if start is not before:
            step = step._replace(change=None)  # it counts from the latents without noise
        after = step.latents
        self.tracker.observe(observation(self.model, self.executor, self.tracker, before, step))
        changes = {} if self.observer is None else {k: relative_change(after[k], before[k]).tolist() for k in before}
        for name, buffer in self.latents.items():
            buffer[:n] = after[name]
        if self.guesses is not None:
            self.guesses.take(self.tracker.first(n).steps, step.logits, before, self.x[:n])
        alive = self.tracker.decide(n, self._confirmed(n)).cpu().numpy()
        if self.observer is not None:
            self._report(self.observer, n, step.q, changes)
        return self._finish(np.flatnonzero(~alive & self._occupied[:n]).tolist())

    def _confirmed(self, n: int) -> Tensor | None:
        """bool [n], whose answer the verifier confirms now, of those that changed."""
        if "verified" not in self.tracker.policy.on:
            return None
        confirmed = torch.zeros(n, dtype=torch.bool)
        at = self.tracker.first(n)
        rows = np.flatnonzero(at.asks.cpu().numpy() & self._occupied[:n])
        if rows.size:
            answers = at.answers[torch.from_numpy(rows).to(at.answers.device)].cpu().numpy()
            inputs = np.stack([sample.tokens for row in rows if (sample := self._samples[row]) is not None])
            confirmed[torch.from_numpy(rows)] = torch.from_numpy(self.verify(inputs, answers))
        return confirmed.to(at.answers.device)

    def _perturbed(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """`latents` with the noise of this step added to the samples that have any."""
        noisy = [(i, s) for i, s in enumerate(self._samples) if s is not None and s.noise > 0]
        if not noisy:
            return latents
        latents = {name: latent.clone() for name, latent in latents.items()}
        steps = self.tracker.first(self.capacity).steps.tolist()
        generator = torch.Generator(self.model.device)
        for slot, sample in noisy:
            generator.manual_seed((sample.seed << 16) + steps[slot])
            for latent in latents.values():
                row = latent[slot]
                noise = torch.randn(row.shape, generator=generator, device=row.device)
                row += (sample.noise * noise).to(row.dtype)
        return latents

    def _close_gaps(self) -> int:
        order = np.flatnonzero(self._occupied)
        n = len(order)
        if n and order[-1] != n - 1:
            rows = torch.from_numpy(order).to(self.model.device)
            guesses = () if self.guesses is None else self.guesses.buffers
            for buffer in (self.x, self.tracker.rows, *guesses, *self.latents.values()):
                buffer[:n] = buffer[rows]
            self._since[:n] = self._since[order]
            self._samples[:n] = [self._samples[i] for i in order]
            self._samples[n:] = [None] * (self.capacity - n)
            self._occupied[:n], self._occupied[n:] = True, False
        return n

    def _report(self, observer: Observer, n: int, q: Tensor | None, changes: dict[str, list[float]]) -> None:
        now, head = time.perf_counter(), None if q is None else q.tolist()
        rows = self.tracker.read(self.tracker.rows[:n].cpu())
        sums = self.tracker.sum_of_p(rows).tolist()
        at = on_host(rows)
        for slot in np.flatnonzero(self._occupied[:n]).tolist():
            sample = self._samples[slot]
            assert sample is not None
            observer(
                Step(
                    key=sample.key,
                    number=int(at.steps[slot]),
                    answer=at.answers[slot].copy(),
                    finite=bool(at.finite[slot]),
                    q=None if head is None else tuple(head[slot]),
                    halt_probability=None if head is None else probability(at.logit[slot]),
                    accumulated=sums[slot],
                    change={name: values[slot] for name, values in changes.items()},
                    active=self.active,
                    seconds=float(now - self._since[slot]),
                )
            )

    def _finish(self, slots: list[int], reason: str | None = None) -> list[Finished]:
        if not slots:
            return []
        rows = self.tracker.rows[torch.tensor(slots, device=self.model.device)].cpu()
        samples = [sample for slot in slots if (sample := self._samples[slot]) is not None]
        seconds = (time.perf_counter() - self._since[slots]).tolist()
        for slot in slots:
            self._occupied[slot], self._samples[slot] = False, None
        return finish(self.tracker, self.verify, rows, samples, seconds, reason)
