"""HaltingQueue: samples through a fixed number of slots, with no decision of the host but the bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rtm_kernels.ops.launch import choose
from rtm_kernels.recursion.graph import CudaGraphs, bucket_of, record, while_active
from rtm_kernels.recursion.queue import schedule as by_torch
from rtm_kernels.recursion.queue.schedule import ACTIVE, FINISHED, WAITING, Moved, Schedule

Stage = Callable[[int], None]
"""Launches over the first b slots of the caller's tensors, in place, with no wait for the device."""


class Counts(NamedTuple):
    """What the host reads after a launch: occupied slots, samples finished in it, samples that still wait."""

    active: int
    finished: int
    waiting: int


class HaltingQueue:
    """ACT steps of samples that are halted, replaced and compacted on the device.

    The caller's `stages` take one ACT step of the first b slots and then say in `alive` whose sample goes on. After
    them the samples that have halted hand in their rows, the next of the line take their slots, lowest first, and once
    nobody waits the others move up in stable order, so that smaller buckets serve the rest. All of it is one CUDA graph
    per bucket; between several stages, one graph each, `between` runs on the host. Without a recorder the caller runs
    the stages and exchanges samples itself (`run`, `exchange`). Inference only.

    Args:
        alive: [S] bool, of the first S slots; S is the largest bucket.
        moved: what belongs to a sample, see `Moved`; contiguous, and nothing else is kept while a graph is recorded.
        capacity: samples held, in slots and waiting: C.
        buckets: ascending, the last one S.
        limit: None for one ACT step per launch; else a WHILE node repeats the only stage on the device, at most so
            often, until at most `floor` slots are occupied.
        impl: `reference`, `triton` or `auto`, of the exchange.
        capture: the recorder, or None.

    Errors: `BackendUnavailable` for a `limit` without what `graph.why_not_loop` names.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        stages: Sequence[Stage],
        alive: Tensor,
        moved: Sequence[Moved],
        *,
        capacity: int,
        buckets: Sequence[int],
        between: Callable[[], None] | None = None,
        limit: int | None = None,
        impl: str = "auto",
        capture: CudaGraphs | None = None,
    ) -> None:
        self.stages, self.between, self.limit = tuple(stages), between, limit
        self.alive, self.moved, self.buckets = alive, tuple(moved), tuple(buckets)
        self._capture = capture
        self._how = _kernels() if choose(impl, alive.device, torch.float32) == "triton" else by_torch
        self.schedule = Schedule.empty(len(alive), capacity, alive.device)
        self._steps = torch.zeros(1, dtype=torch.int32, device=alive.device)
        self._launches: dict[int, list[Callable[[], None]]] = {}
        self._graphs: list[torch.cuda.CUDAGraph] = []

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Everything that touches the samples runs inside, and is ordered whichever stream it is on."""
        if self._capture is None:
            with torch.inference_mode():
                yield
        else:
            with self._capture.exclusive(), torch.no_grad():
                yield

    def exchange(self) -> None:
        """Without an ACT step: the line enters free slots, and the others move up."""
        self.alive.fill_(True)
        self.schedule.counts[FINISHED].zero_()
        self._exchange(self.buckets[-1])

    def run(self, n: int) -> None:
        """The stages of an ACT step over the first n slots, as they are; nobody leaves or enters."""
        for stage in self.stages:
            if stage is not self.stages[0] and self.between is not None:
                self.between()
            stage(n)

    def launch(self, active: int, floor: int = 0) -> Counts:
        """One launch over the bucket of `active` >= 1 occupied slots: an ACT step, or with a `limit` as many as it
        takes until at most `floor` slots are occupied. The host waits for its counts."""
        self._recorded(self.buckets[-1])  # first, so that its memory serves all others
        first, *others = self._recorded(bucket_of(active, self.buckets))
        self.schedule.counts[FINISHED].zero_()
        if self.limit is not None:
            self.schedule.floor.fill_(floor)
            self.schedule.more.fill_(True)  # it was decided for the bucket before
        first()
        for stage in others:
            if self.between is not None:
                self.between()
            stage()
        counts = self.schedule.counts.tolist()
        return Counts(counts[ACTIVE], counts[FINISHED], counts[WAITING])

    def _recorded(self, bucket: int) -> list[Callable[[], None]]:
        if bucket not in self._launches:
            kept = [*(getattr(self.schedule, f.name) for f in fields(Schedule)), *(m.rows for m in self.moved)]
            before = [tensor.clone() for tensor in kept]
            self.schedule.owner.fill_(-1)  # while it is recorded nobody leaves or enters
            self.schedule.line.zero_()
            try:
                self._launches[bucket] = [self._record(stage, bucket) for stage in self.stages]
            finally:
                for tensor, value in zip(kept, before, strict=True):
                    tensor.copy_(value)
        return self._launches[bucket]

    def _record(self, stage: Stage, bucket: int) -> Callable[[], None]:
        def step() -> dict[str, Tensor]:
            stage(bucket)
            if stage is self.stages[-1]:
                self._exchange(bucket)
            return {}

        assert self._capture is not None, "nothing is recorded without a recorder"
        if self.limit is None:
            return record(self._capture, step, (), f"a step of the queue, batch {bucket}")[0]
        assert isinstance(self._capture, CudaGraphs), "a WHILE node nests CUDA graphs"
        graph, _ = self._capture.record(step)
        self._graphs.append(graph)  # a loop reads the memory of its graph
        return while_active(graph, self.schedule.more, self._steps, self.limit)

    def _exchange(self, bucket: int) -> None:
        with torch.cuda.device_of(self.alive):
            self._how.plan(self.schedule, self.alive[:bucket])
            self._how.carry_out(self.schedule, self.moved)


def _kernels() -> Any:
    from rtm_kernels.recursion.queue import kernels

    return kernels
