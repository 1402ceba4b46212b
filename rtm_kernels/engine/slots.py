"""Slots of a latent buffer: samples enter free ones, run ACT steps together, and leave one by one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.data.task import PAD, Groups
from rtm_kernels.engine.executor import Executor
from rtm_kernels.engine.guesses import SEED_MASK, Guesses, Noise
from rtm_kernels.engine.samples import Finished, Observer, Sample, Step, Verify, finish, probability
from rtm_kernels.errors import require
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.api import halting_step_
from rtm_kernels.ops.halting.policy import HaltingPolicy
from rtm_kernels.ops.halting.reference import STAYS, Outputs, SlotStates, on_host, relative_change
from rtm_kernels.program import SEED
from rtm_kernels.recursion import graph
from rtm_kernels.recursion.graph import BUCKETS, CudaGraphs
from rtm_kernels.recursion.noise import hashed
from rtm_kernels.recursion.queue.runner import HaltingQueue
from rtm_kernels.recursion.queue.schedule import Moved
from rtm_kernels.recursion.reference import ActStep


class Slots:
    """`capacity` slots; a step runs all occupied ones as one batch, in place.

    Free slots take new samples, lowest first; those still free at the next step are closed by moving the others up, in
    order, so that the batch shrinks. With `fixed_shape` the batch always has `capacity` rows, which keeps the shapes of
    every step, and so the rounding of a sample, independent of how many others there are.

    On a CUDA device the ACT step, the decision who leaves and the exchange of samples are captured
    (`recursion.queue`): after a launch the host reads one counter and, if samples finished, their rows in one copy.
    Elsewhere, and with an observer, the same code runs eagerly. Under `verified` the host also reads all answers that
    changed in one copy, and writes what the verifier says of them in another. A sample gets the same answer after the
    same steps either way, whoever else is there.

    Args:
        ahead: how many more samples wait in device memory; only where steps are captured. With it one launch takes
            many steps where it can (`graph.why_not_loop`): it is for callers that neither prefer nor evict samples.
        kind: what samples may do beside: `guesses` or `noise`, see `Rollouts`.
        groups: those of the task (`Task.groups`), by whose rules guesses are chosen.
        observer: called with every step of every sample, in slot order.
        capture: the recorder; by default CUDA graphs on a CUDA device, and nothing is captured elsewhere.
        impl: of the halting step and of the exchange of samples.
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
        ahead: int = 0,
        kind: str = "",
        groups: Groups = (),
        *,
        observer: Observer | None = None,
        capture: CudaGraphs | None = None,
        impl: str = "auto",
    ) -> None:
        config, device = model.config, model.device
        self.recipe = executor, policy, verify, capacity, fixed_shape, ahead, kind, groups
        """What slots of one model are made of; those of equal recipes are interchangeable when empty."""
        self.model, self.executor, self.policy, self.verify = model, executor, policy, verify
        self.capacity, self.fixed_shape, self.observer, self._impl = capacity, fixed_shape, observer, impl
        recorded = executor.recorded if observer is None else None
        if recorded is not None and capture is None and device.type == "cuda":
            capture = CudaGraphs(device)
        self.captured = recorded is not None and capture is not None
        """Whether steps are captured."""
        self._act = recorded if self.captured and recorded is not None else executor.step
        self._held = held = capacity + (ahead if self.captured else 0)
        self.states = states = SlotStates(policy, capacity, config.seq_len, config.prefix_len, device)

        def rows(count: int, *shape: int, like: Tensor) -> Tensor:
            return torch.zeros(count, *shape, dtype=like.dtype, device=device)

        count = held if config.random_latents else 1
        self._initial = initial = {name: t.clone() for name, t in model.initial_latents(count).items()}
        shape, like = (config.latent_len, config.hidden_size), torch.empty(0, dtype=model.dtype, device="cpu")
        self._latents = {name: rows(capacity, *shape, like=t) for name, t in initial.items()}
        self._x, self._embedded = (rows(n, *shape, like=like) for n in (capacity, held))
        self._fresh, self._results = (rows(held, *states.rows[0].shape, like=states.rows) for _ in range(2))
        self._entering = states.read(self._fresh)
        self._guesses = Guesses(model, capacity, groups, device.type == "cpu") if kind == "guesses" else None
        noisy = kind == "noise" or (config.noise > 0 and kind != "guesses")
        self._noise = Noise(capacity, device) if noisy else None
        self._kind = self._guesses or self._noise
        drawn = () if self._kind is None else self._kind.buffers  # all but the first are blank in new samples
        new = [rows(1 if i else held, *buffer.shape[1:], like=buffer) for i, buffer in enumerate(drawn)]
        self._fresh_drawn = new[:1]
        self._alive = torch.zeros(capacity, dtype=torch.bool, device=device)
        self._asked = rows(capacity + 1, 1 + config.seq_len, like=states.rows)
        self._asking, self._place = rows(1, like=states.rows), rows(capacity, like=states.rows).long()
        self._verdict = torch.zeros(capacity + 1, dtype=torch.bool, device=device)
        self._asks = "verified" in policy.on
        loops = isinstance(capture, CudaGraphs) and ahead > 0 and not self._asks and graph.why_not_loop() is None
        self._queue = HaltingQueue(
            (self._observe, self._decide) if self._asks else (self._observe_and_decide,),
            self._alive,
            [
                *(Moved(self._latents[name], fresh) for name, fresh in initial.items()),
                Moved(self._x, self._embedded),
                Moved(states.rows, self._fresh, self._results if self.captured else None),
                *(Moved(buffer, fresh) for buffer, fresh in zip(drawn, new, strict=True)),
            ],
            capacity=held,
            buckets=(capacity,) if fixed_shape else (*(b for b in BUCKETS if b < capacity), capacity),
            between=self._ask if self._asks else None,
            limit=policy.max_steps if loops else None,
            impl=impl,
            capture=capture if self.captured else None,
        )
        self._samples: dict[int, tuple[Sample, float]] = {}
        self._unused, self._waiting = list(range(held))[::-1], deque[int]()
        self._moved = False
        with self._queue.exclusive():
            pass  # a first use on another stream waits for what was written here

    @property
    def free(self) -> int:
        """How many samples `admit` takes now."""
        return self._held - len(self._samples)

    @property
    def active(self) -> int:
        """How many samples are here; those that wait are counted."""
        return len(self._samples)

    def admit(self, samples: Sequence[Sample]) -> None:
        """Take samples, at most `free`: fresh latents, embedded input, zero steps.

        Errors: `InputError` for more than are free, and for noise or guesses in slots of another `kind`.
        """
        if not samples:
            return
        require(len(samples) <= self.free, "samples", len(samples), f"at most the {self.free} that are free")
        for sample in samples:
            may = self._noise is not None or sample.noise == 0
            require(may, "noise", sample.noise, "0 in slots that were made without kind='noise'")
            may = self._guesses is not None or sample.open_token == PAD
            require(may, "open_token", sample.open_token, "padding in slots that were made without kind='guesses'")
        cap, now, taken = self.policy.max_steps, time.perf_counter(), self._unused[-len(samples) :]
        own = [(i, s.puzzle_identifier, s.limit(cap), *s.tokens) for i, s in zip(taken, samples, strict=True)]
        with self._queue.exclusive():
            new = torch.from_numpy(np.array(own, dtype=np.int32)).to(self.model.device)
            numbers = new[:, 0].long()
            seeds = torch.tensor([sample.seed & SEED_MASK for sample in samples], device=self.model.device)
            where = numbers if self.model.config.random_latents else slice(None)
            for name, fresh in self.model.initial_latents(len(where) if where is numbers else 1, seeds).items():
                self._initial[name][where] = fresh  # weights may have been loaded since
            self._embedded[numbers] = self.model.embed(new[:, 3:], new[:, 1])
            self._fresh[numbers] = self.states.fresh
            self._entering.sample[numbers] = new[:, 0]
            self._entering.limit[numbers] = new[:, 2]
            for fresh in self._fresh_drawn:
                fresh[numbers] = torch.from_numpy(self._kind.fresh(samples)).to(self.model.device)  # type: ignore[union-attr]
            del self._unused[-len(samples) :]
            self._samples |= {number: (sample, now) for number, sample in zip(taken, samples, strict=True)}
            self._waiting.extend(taken)
            self._queue.schedule.wait(self._waiting)
            self._changed()

    def _changed(self) -> None:
        """Samples wait or have left: let those that wait enter, and the others move up; eagerly, before a step."""
        if self.captured:
            self._exchange()
        else:
            self._moved = True

    def _exchange(self) -> None:
        free = self.capacity - (self.active - len(self._waiting))
        if free > 0:
            self._queue.exchange()
            self._entered(max(0, len(self._waiting) - free))

    def _entered(self, waiting: int) -> None:
        while len(self._waiting) > waiting:
            self._waiting.popleft()

    def step(self) -> list[Finished]:
        """One ACT step of every sample, or several; returns those that finished, step by step in slot order."""
        if not self._samples:
            return []
        with self._queue.exclusive():
            if not self.captured:
                return self._eager()
            active = self.active - len(self._waiting)
            smaller = max(bucket for bucket in (0, *self._queue.buckets) if bucket < active)
            counts = self._queue.launch(active, floor=smaller if self.free else self.capacity - 1)
            self.executor.check()
            self._entered(counts.waiting)
            return self._finish(self._results[: counts.finished].cpu()) if counts.finished else []

    def _eager(self) -> list[Finished]:
        if self._moved:
            self._exchange()
        n = self.capacity if self.fixed_shape else self.active
        self._queue.run(n)
        halted = self.states.first(n).reason != STAYS
        finished = self._take(halted & (self._queue.schedule.owner[:n] >= 0))
        self._moved = bool(finished)
        return finished

    def tighten(self, key: Any, max_steps: int) -> None:
        """Lower the cap of the sample of `key`, if it is here: it leaves with the next step that reaches it."""
        for number in self._numbers_of(key):
            with self._queue.exclusive():
                limit, mine = self.states.first(self.capacity).limit, self._queue.schedule.owner == number
                limit.copy_(torch.where(mine, limit.clamp(max=max_steps), limit))
                self._entering.limit[number : number + 1].clamp_(max=max_steps)

    def evict(self, key: Any, reason: str) -> Finished | None:
        """Take the sample of `key` out with its best answer so far; None when it is not here."""
        for number in self._numbers_of(key):
            with self._queue.exclusive():
                if number in self._waiting:
                    self._waiting.remove(number)
                    self._queue.schedule.wait(self._waiting)
                    return self._finish(self._fresh[number : number + 1].cpu(), reason)[0]
                finished = self._take(self._queue.schedule.owner == number, reason)
                self._changed()
                return finished[0]
        return None

    def _numbers_of(self, key: Any) -> list[int]:
        return [number for number, (sample, _) in self._samples.items() if sample.key == key]

    def _take(self, leaving: Tensor, reason: str | None = None) -> list[Finished]:
        """Empty the slots where bool leaving [n] holds; the host waits for it."""
        slots = leaving.nonzero()[:, 0]
        self.executor.check()
        if not len(slots):
            return []
        rows = self.states.rows[slots].cpu()
        self._queue.schedule.owner[slots] = -1
        return self._finish(rows, reason)

    def _observe(self, n: int) -> None:
        """An ACT step of the first n slots, and the answers that the verifier has to see, one after the other."""
        latents = {name: t[:n] for name, t in self._latents.items()}
        at = self.states.first(n)
        given = latents if self._noise is None else self._noise.added(at.steps, latents)
        if self.model.config.noise and self._kind is not None:
            given = {**given, SEED: hashed(self._kind.rows[:n, 1], at.steps, ())}
        step = self._act(given, self._x[:n])
        if self._noise is not None:
            step = step._replace(change=None)  # it counts from the latents without noise
        sums = self.observer is not None
        halting_step_(at, self.policy, self._outputs(latents, step), sums=sums, impl=self._impl)
        changes = {name: relative_change(step.latents[name], t) for name, t in latents.items()} if sums else {}
        for name, buffer in latents.items():
            buffer.copy_(step.latents[name])
        if self._guesses is not None:
            self._guesses.take(at.steps, step.logits, latents, self._x[:n])
        if self._asks:
            asks = (at.asks != 0) & (self._queue.schedule.owner[:n] >= 0)
            count, place = asks.cumsum(0), self._place[:n]
            torch.sub(count, 1, out=place).masked_fill_(~asks, self.capacity)  # the last row, which nobody reads
            self._asked[place] = torch.cat([at.sample[:, None], at.answers], 1)
            self._asking.copy_(count[-1:])
        if self.observer is not None:
            self._report(self.observer, n, step.q, changes)

    def _outputs(self, before: Mapping[str, Tensor], step: ActStep) -> Outputs:
        """The step as the halting op reads it."""
        config, output, after = self.model.config, self.model.program.output, step.latents
        head = (self.model.q_head.weight, self.model.q_head.bias) if config.has_q_head else None
        others = tuple(after[name] for name in before if name != output)
        return Outputs(
            step.logits, step.q, after[output], before.get(output), others, head, config.halting == "q_continue",
            step.answers, step.finite, step.change, step.token_q,
        )  # fmt: skip

    def _ask(self) -> None:
        """The verifier's part, on the host: one counter, and one copy each way when an answer has changed."""
        count = int(self._asking)
        if count:
            asked = self._asked[:count].cpu().numpy()
            inputs = np.stack([self._samples[number][0].tokens for number in asked[:, 0].tolist()])
            self._verdict[:count].copy_(torch.from_numpy(self.verify(inputs, asked[:, 1:])))

    def _decide(self, n: int) -> None:
        at = self.states.first(n)
        if self._asks:
            halting_step_(at, self.policy, None, self._verdict[self._place[:n]], impl=self._impl)
        torch.eq(at.reason, STAYS, out=self._alive[:n])

    def _observe_and_decide(self, n: int) -> None:
        self._observe(n)
        self._decide(n)

    def _report(self, observer: Observer, n: int, q: Tensor | None, changes: Mapping[str, Tensor]) -> None:
        now, head = time.perf_counter(), None if q is None else q.tolist()
        rows = self.states.read(self.states.rows[:n].cpu())
        sums = rows.token_accumulated.amin(1) if self.states.positions else rows.accumulated
        change, at = {name: t.tolist() for name, t in changes.items()}, on_host(rows)
        for slot in (self._queue.schedule.owner[:n] >= 0).nonzero()[:, 0].tolist():
            sample, since = self._samples[int(at.sample[slot])]
            observer(
                Step(
                    key=sample.key,
                    number=int(at.steps[slot]),
                    answer=at.answers[slot].copy(),
                    finite=bool(at.finite[slot]),
                    q=None if head is None else tuple(head[slot]),
                    halt_probability=None if head is None else probability(at.logit[slot]),
                    accumulated=float(sums[slot]),
                    change={name: values[slot] for name, values in change.items()},
                    active=self.active,
                    seconds=now - since,
                )
            )

    def _finish(self, rows: Tensor, reason: str | None = None) -> list[Finished]:
        """What the samples of these rows of the states, on the host by now, leave with; their numbers are free."""
        at, now = self.states.read(rows), time.perf_counter()
        numbers = at.sample.tolist()
        samples, since = zip(*(self._samples.pop(number) for number in numbers), strict=True)
        self._unused.extend(numbers)
        return finish(self.states, at, samples, [now - t for t in since], self.verify, reason)
