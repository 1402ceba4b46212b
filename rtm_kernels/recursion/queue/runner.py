"""HaltingQueue: any number of samples through a fixed number of slots, with no decision of the host but the bucket."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rtm_kernels.errors import InputError, one_of, require
from rtm_kernels.ops.halting.reference import HaltingState, initial_state
from rtm_kernels.ops.launch import choose
from rtm_kernels.program import Program
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.act_graph import LOOPS
from rtm_kernels.recursion.act_step import act_step_, require_latents
from rtm_kernels.recursion.conditional import while_active
from rtm_kernels.recursion.graph import BUCKETS, Capture, CudaGraphs, bucket_of
from rtm_kernels.recursion.head import HaltingHead
from rtm_kernels.recursion.queue import schedule as by_torch
from rtm_kernels.recursion.queue.schedule import ACTIVE, Moved, Schedule


@dataclass(frozen=True)
class Halted:
    """How N samples ended: the output latent [N, L, D], their halting state [N, U], and their last logits [N, U, 2]."""

    output: Tensor
    state: HaltingState
    logits: Tensor


class HaltingQueue:
    """ACT steps of up to `capacity` samples through `slots` slots, halted, replaced and compacted on the device.

    After each step the samples that have halted hand in their result, the next ones of the queue take their slots,
    lowest first, and once the queue is empty the others move up in stable order, so that smaller buckets serve the
    rest. Step and exchange are one CUDA graph per bucket; the host reads one number, how many slots are occupied.
    With stacks whose results do not depend on the batch (the Triton ops), result and halting step of a sample are
    those of running it alone. Weights are read where they lie. Inference only.

    Args:
        stacks: as `recursion.reference.run` takes them, e.g. of `recursion.fused.stacks_of`.
        initial: what the latents of a new sample start from, [L, D] each.
        loop: `poll`, one launch per ACT step, or `while`, one launch until the batch shrinks to the next bucket.
        impl: `reference`, `triton` or `auto`, of the halting op and of the exchange.
        capture: the recorder, by default CUDA graphs on the device of `initial`.

    Errors: `BackendUnavailable` without a CUDA device or, for `while`, without what `conditional.why_not` names.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        program: Program,
        stacks: Mapping[str, reference.Stack],
        head: HaltingHead,
        initial: Mapping[str, Tensor],
        *,
        slots: int,
        capacity: int,
        loop: str = "poll",
        impl: str = "auto",
        buckets: Sequence[int] = BUCKETS,
        capture: Capture | None = None,
    ) -> None:
        one_of("loop", loop, LOOPS)
        require(isinstance(head.min_steps, int), "min_steps", head.min_steps, "one number, since samples change slots")
        require(capacity >= 1, "capacity", capacity, "at least 1")
        require_latents(program, head, initial)
        like = next(iter(initial.values()))
        self.program, self.stacks, self.head, self.loop, self.impl = program, stacks, head, loop, impl
        self.slots, self.capacity = slots, capacity
        self.buckets = tuple(b for b in buckets if b <= bucket_of(slots, buckets))
        size, shape = self.buckets[-1], tuple(like.shape)
        self._capture = CudaGraphs(like.device) if capture is None else capture
        self._how = _kernels() if choose(impl, like.device, like.dtype) == "triton" else by_torch
        self._queue, self._output = (like.new_zeros(capacity, *shape) for _ in range(2))
        self._x = like.new_zeros(size, *shape)
        names = dict.fromkeys((*program.latents, *initial))
        self._initial = {n: like.new_zeros(1, *shape).copy_(initial.get(n, torch.zeros_like(like))) for n in names}
        self._latents = {n: like.new_zeros(size, *shape) for n in names}
        units = head.units(shape[0])
        self._state, self._result = (initial_state(n, units, like.device) for n in (size, capacity))
        self._logits, self._last = (
            torch.zeros(n, units, 2, dtype=torch.float32, device=like.device) for n in (size, capacity)
        )
        self._fresh, self._no_logits = initial_state(1, units, like.device), torch.zeros_like(self._last[:1])
        self._steps = torch.zeros(1, dtype=torch.int32, device=like.device)
        self.schedule = Schedule.empty(size, like.device)
        self._launches: dict[int, Callable[[], None]] = {}
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self.taken: list[int] = []
        """Bucket of every launch of the last run: of each ACT step, or with `while` of each bucket's loop."""

    @torch.no_grad()
    def run(self, x: Tensor) -> Halted:
        """Let every sample of x [N, L, D] run until it halts. Errors: `InputError` for more than `capacity`."""
        count = len(x)
        wanted = tuple(self._queue.shape[1:])
        require(count <= self.capacity, "N", count, f"at most capacity={self.capacity}")
        require(tuple(x.shape[1:]) == wanted, "x", tuple(x.shape), f"[N, L, D] = [N, {wanted[0]}, {wanted[1]}]")
        self.taken = []
        with self._capture.exclusive():
            self._capture_first()
            self._queue[:count].copy_(x)
            self._start(count)
            active = self._active()
            while active:
                bucket = bucket_of(active, self.buckets)
                launch = self._launch(bucket)
                self.schedule.more.fill_(True)  # it was decided for the bucket before
                launch()
                self.taken.append(bucket)
                active = self._active()
            return Halted(
                self._output[:count].clone(),
                HaltingState(**{f.name: getattr(self._result, f.name)[:count].clone() for f in fields(HaltingState)}),
                self._last[:count].clone(),
            )

    def _start(self, count: int) -> None:
        self.schedule.start(count)
        self._state.active.zero_()
        self._exchange(self.buckets[-1])

    def _active(self) -> int:
        return int(self.schedule.counts[ACTIVE])

    def _capture_first(self) -> None:
        """The largest bucket first, so that its memory serves all others."""
        if not self._launches:
            self._launch(self.buckets[-1])

    def _launch(self, bucket: int) -> Callable[[], None]:
        if bucket not in self._launches:
            s = self.schedule
            small = [s.owner, s.following, s.total, s.counts, s.more, *(t for t in _tensors(self._state))]
            before = [tensor.clone() for tensor in small]
            s.start(0)
            self._state.active.zero_()  # while it is recorded nothing is active, leaves or enters
            self._launches[bucket] = self._record(lambda: self._step(bucket))
            for tensor, value in zip(small, before, strict=True):
                tensor.copy_(value)
        return self._launches[bucket]

    def _record(self, step: Callable[[], dict[str, Tensor]]) -> Callable[[], None]:
        if self.loop == "poll":
            return self._capture.capture(step)[0]
        if not isinstance(self._capture, CudaGraphs):
            raise InputError("loop='while' is not allowed: it nests CUDA graphs, and `capture` records others")
        graph, _ = self._capture.record(step)
        self._graphs.append(graph)  # a loop reads the memory of its graph
        return while_active(graph, self.schedule.more, self._steps, self.capacity * self.head.max_steps)

    def _step(self, bucket: int) -> dict[str, Tensor]:
        state = HaltingState(**{f.name: getattr(self._state, f.name)[:bucket] for f in fields(HaltingState)})
        latents = {name: t[:bucket] for name, t in self._latents.items()}
        x, logits = self._x[:bucket], self._logits[:bucket]
        act_step_(self.program, self.stacks, self.head, latents, x, state, logits, self.impl)
        self._exchange(bucket)
        return {}

    @torch.no_grad()
    def _exchange(self, bucket: int) -> None:
        """Between two ACT steps in this bucket: samples leave, enter and move up."""
        smaller = [b for b in self.buckets if b < bucket]
        alive = self._state.active_samples[: min(bucket, self.slots)]
        with torch.cuda.device_of(self._x):
            self._how.plan(self.schedule, alive, smaller[-1] if smaller else 0)
            self._how.carry_out(self.schedule, self._moved())

    def _moved(self) -> list[Moved]:
        output = self.program.output
        latents = [Moved(t, self._initial[n], self._output if n == output else None) for n, t in self._latents.items()]
        states = zip(*(_tensors(which) for which in (self._state, self._fresh, self._result)), strict=True)
        others = [Moved(self._x, self._queue), Moved(self._logits, self._no_logits, self._last)]
        return [*latents, *others, *(Moved(*three) for three in states)]


def _tensors(state: HaltingState) -> list[Tensor]:
    return [getattr(state, field.name) for field in fields(HaltingState)]


def _kernels() -> Any:
    from rtm_kernels.recursion.queue import kernels

    return kernels
