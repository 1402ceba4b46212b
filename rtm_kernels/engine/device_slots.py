"""Slots whose samples the device moves: they halt, leave and enter without the host, which reads one small counter."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.data.task import PAD
from rtm_kernels.engine.executor import Executor
from rtm_kernels.engine.guesses import Guesses
from rtm_kernels.engine.policy import HaltingPolicy
from rtm_kernels.engine.slots import Finished, Sample, finish, observation
from rtm_kernels.engine.tracker import Tracker, Verify
from rtm_kernels.errors import BackendUnavailable, require
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.recursion.graph import BUCKETS, Capture
from rtm_kernels.recursion.queue.runner import Counts, HaltingQueue
from rtm_kernels.recursion.queue.schedule import Moved


def why_not(model: RecursiveReasoner, executor: Executor) -> str | None:
    """What keeps samples of this executor from halting on the device, or None when they can."""
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}, and the queue of samples in the memory of a CUDA device"
    return why_not_recorded(executor)


def why_not_recorded(executor: Executor) -> str | None:
    """What keeps the steps of `executor` from being recorded, or None when they can."""
    return None if executor.recorded is not None else f"the executor {executor.name} cannot be recorded as a graph"


class DeviceSlots:
    """`Slots` of `capacity` samples, and of `ahead` more that wait for them in device memory.

    One launch is an ACT step, the decision who leaves, and the exchange of samples (`recursion.queue`); after it the
    host reads one counter and, when samples have finished, the rows of all of them in one copy. Under `verified` the
    launch has two parts, and between them the host reads all answers that have changed in one copy and writes what the
    verifier says of them in another. The bucket shrinks with the samples; with `fixed_shape` it does not.

    Args:
        loop: `poll`, or `while`, where one launch runs until the host is needed: until a slot is free that nobody waits
            for, or, when fewer samples are here than there is room for, until a smaller bucket holds them.
        guesses: whether samples may guess.
        capture, impl: of the `HaltingQueue`. recipe: what the owner knows these slots by.

    Errors: `BackendUnavailable`, see `why_not` and `HaltingQueue`; `InputError` for `while` under `verified`.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: RecursiveReasoner,
        executor: Executor,
        policy: HaltingPolicy,
        verify: Verify,
        capacity: int,
        fixed_shape: bool = False,
        *,
        ahead: int = 0,
        guesses: bool = False,
        loop: str = "poll",
        capture: Capture | None = None,
        impl: str = "auto",
        recipe: tuple[object, ...] = (),
    ) -> None:
        reason = why_not_recorded(executor)
        if reason is not None or executor.recorded is None:
            raise BackendUnavailable(f"samples cannot halt on the device: {reason}")
        config, self._held = model.config, capacity + ahead
        self.model, self.executor, self.verify, self.capacity = model, executor, verify, capacity
        self._act, self.recipe = executor.recorded, recipe
        self.tracker = tracker = Tracker(policy, capacity, config.seq_len, config.prefix_len, model.device)

        def rows(count: int, *shape: int, like: Tensor) -> Tensor:
            return torch.zeros(count, *shape, dtype=like.dtype, device=like.device)

        self._initial = initial = {name: t.clone() for name, t in model.initial_latents(1).items()}
        shape = (config.latent_len, config.hidden_size)
        like = torch.empty(0, dtype=model.dtype, device=model.device)
        self._latents = {name: rows(capacity, *shape, like=t) for name, t in initial.items()}
        self._x, self._embedded = (rows(n, *shape, like=like) for n in (capacity, self._held))
        self._fresh, self._results = (rows(self._held, *tracker.rows[0].shape, like=tracker.rows) for _ in range(2))
        self.guesses = Guesses(model, capacity) if guesses else None
        guessed = () if self.guesses is None else self.guesses.buffers  # all but the first are blank in new samples
        new = [rows(1 if i else self._held, *buffer.shape[1:], like=buffer) for i, buffer in enumerate(guessed)]
        self._fresh_guesses = new[:1]
        self._alive = torch.zeros(capacity, dtype=torch.bool, device=model.device)
        self._asked = rows(capacity + 1, 1 + config.seq_len, like=tracker.rows)
        self._asking, self._place = rows(1, like=tracker.rows), rows(capacity, like=tracker.rows).long()
        self._verdict = torch.zeros(capacity + 1, dtype=torch.bool, device=model.device)
        asks = "verified" in policy.on
        self._queue = HaltingQueue(
            (self._observe, self._decide) if asks else (self._step,),
            self._alive,
            [
                *(Moved(self._latents[name], fresh) for name, fresh in initial.items()),
                Moved(self._x, self._embedded),
                Moved(tracker.rows, self._fresh, self._results),
                *(Moved(buffer, fresh) for buffer, fresh in zip(guessed, new, strict=True)),
            ],
            capacity=self._held,
            buckets=(capacity,) if fixed_shape else (*(b for b in BUCKETS if b < capacity), capacity),
            between=self._ask if asks else None,
            loop=loop,
            limit=self._held * policy.max_steps,
            impl=impl,
            capture=capture,
        )
        self._samples: dict[int, tuple[Sample, float]] = {}
        self._unused, self._waiting = list(range(self._held))[::-1], deque[int]()

    @property
    def free(self) -> int:
        """See `Slots`."""
        return self._held - len(self._samples)

    @property
    def active(self) -> int:
        """See `Slots`; those that wait are counted."""
        return len(self._samples)

    @property
    def buckets_taken(self) -> list[int]:
        """Buckets of the last launches."""
        return list(self._queue.taken)

    def admit(self, samples: Sequence[Sample]) -> None:
        """See `Slots`. Errors: `InputError` for a sample with noise, or with guesses in slots without."""
        if not samples:
            return
        require(len(samples) <= self.free, "samples", len(samples), f"at most the {self.free} that are free")
        for sample in samples:
            require(
                sample.noise == 0, "noise", sample.noise, "0 on the device, where it cannot be drawn; halting='host'"
            )
            may = self.guesses is not None or sample.open_token == PAD
            require(may, "open_token", sample.open_token, "that of padding in slots that were made without guesses")
        cap, now = self.tracker.policy.max_steps, time.perf_counter()
        occupied, own = self.active - len(self._waiting), []
        for sample in samples:
            number = self._unused.pop()
            self._samples[number] = sample, now
            self._waiting.append(number)
            own.append((number, sample.puzzle_identifier, sample.limit(cap), *sample.tokens))
        with self._queue.exclusive():
            new = torch.from_numpy(np.array(own, dtype=np.int32)).to(self.model.device)
            numbers = new[:, 0].long()
            for name, fresh in self.model.initial_latents(1).items():
                self._initial[name].copy_(fresh)  # weights may have been loaded since
            self._embedded[numbers] = self.model.embed(new[:, 3:], new[:, 1])
            rows = self.tracker.fresh.repeat(len(samples), 1)
            at = self.tracker.read(rows)
            at.sample.copy_(new[:, 0])
            at.limit.copy_(new[:, 2])
            self._fresh[numbers] = rows
            for fresh in self._fresh_guesses:
                fresh[numbers] = torch.from_numpy(Guesses.fresh(samples)).to(self.model.device)
            self._queue.schedule.wait(self._waiting)
            if occupied < self.capacity:
                self._queue.exchange()
                self._entered(max(0, len(self._waiting) - (self.capacity - occupied)))

    def step(self) -> list[Finished]:
        """One launch; returns the samples that finished in it, step by step in slot order."""
        if not self._samples:
            return []
        with self._queue.exclusive():
            active = self.active - len(self._waiting)
            smaller = max(bucket for bucket in (0, *self._queue.buckets) if bucket < active)
            return self._collect(self._queue.launch(active, floor=smaller if self.free else self.capacity - 1))

    def tighten(self, key: Any, max_steps: int) -> None:
        """See `Slots`."""
        for number in self._numbers_of(key):
            with self._queue.exclusive():
                limit, mine = self.tracker.first(self.capacity).limit, self._queue.schedule.owner == number
                limit.copy_(torch.where(mine, limit.clamp(max=max_steps), limit))
                self.tracker.read(self._fresh[number : number + 1]).limit.clamp_(max=max_steps)

    def evict(self, key: Any, reason: str) -> Finished | None:
        """See `Slots`."""
        for number in self._numbers_of(key):
            with self._queue.exclusive():
                if number not in self._waiting:
                    self._queue.exchange(leaving=number)
                    return self._collect(self._queue.counts(), reason)[0]
                self._waiting.remove(number)
                self._queue.schedule.wait(self._waiting)
                return self._finish(self._fresh[number : number + 1].cpu(), reason)[0]
        return None

    def _numbers_of(self, key: Any) -> list[int]:
        return [number for number, (sample, _) in self._samples.items() if sample.key == key]

    def _observe(self, n: int) -> None:
        """An ACT step of the first n slots, and the answers that the verifier has to see, one after the other."""
        latents = {name: t[:n] for name, t in self._latents.items()}
        step = self._act(latents, self._x[:n])
        self.tracker.observe(observation(self.model, self.executor, self.tracker, latents, step))
        for name, buffer in latents.items():
            buffer.copy_(step.latents[name])
        if self.guesses is not None:
            self.guesses.take(self.tracker.first(n).steps, step.logits, latents, self._x[:n])
        if "verified" in self.tracker.policy.on:
            at = self.tracker.first(n)
            asks = (at.asks != 0) & (self._queue.schedule.owner[:n] >= 0)
            place = (asks.cumsum(0) - 1).masked_fill(~asks, self.capacity)  # a row that nobody reads
            self._place[:n].copy_(place)
            self._asked[place] = torch.cat([at.sample[:, None], at.answers], 1)
            self._asking.copy_(asks.sum())

    def _ask(self) -> None:
        """The verifier's part, on the host: one counter, and one copy each way when an answer has changed."""
        count = int(self._asking)
        if count:
            asked = self._asked[:count].cpu().numpy()
            inputs = np.stack([self._samples[number][0].tokens for number in asked[:, 0].tolist()])
            self._verdict[:count].copy_(torch.from_numpy(self.verify(inputs, asked[:, 1:])))

    def _decide(self, n: int) -> None:
        confirmed = self._verdict[self._place[:n]] if "verified" in self.tracker.policy.on else None
        self._alive[:n].copy_(self.tracker.decide(n, confirmed))

    def _step(self, n: int) -> None:
        self._observe(n)
        self._decide(n)

    def _entered(self, waiting: int) -> None:
        while len(self._waiting) > waiting:
            self._waiting.popleft()

    def _collect(self, counts: Counts, reason: str | None = None) -> list[Finished]:
        self._entered(counts.waiting)
        return self._finish(self._results[: counts.finished].cpu(), reason) if counts.finished else []

    def _finish(self, rows: Tensor, reason: str | None = None) -> list[Finished]:
        numbers, now = self.tracker.read(rows).sample.tolist(), time.perf_counter()
        samples, since = zip(*(self._samples.pop(number) for number in numbers), strict=True)
        self._unused.extend(numbers)
        return finish(self.tracker, self.verify, rows, samples, [now - t for t in since], reason)
