"""A solver for many callers at once: priorities, back-pressure, deadlines, cancellation, async."""

from __future__ import annotations

import asyncio
import bisect
import heapq
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from rtm_kernels.data.task import Puzzle
from rtm_kernels.engine.prediction import DepthEstimate
from rtm_kernels.engine.samples import Finished, Sample
from rtm_kernels.engine.solution import Solution
from rtm_kernels.engine.solver import Solver
from rtm_kernels.errors import RTMError, one_of, require


class Overloaded(RTMError, RuntimeError):
    """The queue is full; the puzzle was not taken."""


class Closed(RTMError, RuntimeError):
    """The service takes no more puzzles, or ended before it solved this one; the message says why."""


@dataclass(order=True)
class _Request:
    """One puzzle, ordered by priority and then by arrival."""

    rank: tuple[int, int]
    text: str = field(compare=False)
    sample: Sample = field(compare=False)
    deadline: float = field(compare=False)
    future: Future[Solution] = field(compare=False)


@dataclass(frozen=True)
class Stats:
    """What a service has done so far and does now. `depth_histogram`: ACT steps -> puzzles."""

    queued: int
    running: int
    statuses: dict[str, int]
    depth_histogram: dict[int, int]
    seconds: float
    puzzles_per_second: float


class _Bucket:
    """The queue and the latent buffer of one solver: puzzles of one task and length."""

    def __init__(self, solver: Solver, estimate: DepthEstimate) -> None:
        self.solver, self.slots, self.estimate = solver, solver.slots(), estimate
        self.queue: list[_Request] = []
        self.running: dict[Any, _Request] = {}

    def fill(self) -> None:
        """Move requests into free slots, the most urgent first."""
        batch: list[Sample] = []
        while self.queue and len(batch) < self.slots.free:
            request = heapq.heappop(self.queue)
            self.running[request.sample.key] = request
            batch.append(request.sample)
        self.slots.admit(batch)

    def drop(self, now: float) -> list[tuple[_Request, Finished | None]]:
        """Take out what was cancelled and what is late; returns the late ones, with their best answer if any."""
        late: list[tuple[_Request, Finished | None]] = [(r, None) for r in self.queue if r.deadline <= now]
        kept = [r for r in self.queue if r.deadline > now and not r.future.cancelled()]
        if len(kept) < len(self.queue):
            self.queue = kept
            heapq.heapify(self.queue)
        for key, request in list(self.running.items()):
            if request.deadline <= now or request.future.cancelled():
                del self.running[key]
                late.append((request, self.slots.evict(key, "deadline")))
        return late


class Service:
    """Solves puzzles of many callers in shared batches, on a thread of its own.

    `solvers` is one solver, or several by name, each with its own latent buffer (mixed tasks and lengths); their
    batches take turns, one ACT step each. Among waiting puzzles the highest priority goes first, then the earliest.
    With `depth_bounds`, such as (4,), each solver has a buffer for every range of predicted steps (`DepthEstimate`), so
    that no shallow puzzle waits for slots that deep ones hold. At most `max_queued` wait. Cancelling a future frees its
    slot with the next step. What a puzzle is answered does not depend on priorities, buffers or arrival, beyond the
    executor's rounding (`Solver(batch_invariant=True)`: not at all).

    Use as a context manager, or call `close`.
    """

    def __init__(
        self, solvers: Solver | Mapping[str, Solver], *, max_queued: int = 1024, depth_bounds: Sequence[float] = ()
    ) -> None:
        require(isinstance(max_queued, int) and max_queued >= 1, "max_queued", max_queued, "an integer of at least 1")
        named = {solvers.task.name: solvers} if isinstance(solvers, Solver) else dict(solvers)
        require(len(named) > 0, "solvers", named, "at least one")
        bounds = [float(bound) for bound in depth_bounds]
        fits = bounds == sorted(set(bounds)) and all(bound >= 1 for bound in bounds)
        require(fits, "depth_bounds", tuple(depth_bounds), "rising numbers of at least 1")
        self._bounds = bounds
        self._buckets: dict[str, list[_Bucket]] = {}
        for name, solver in named.items():
            estimate = DepthEstimate(solver.policy.max_steps)
            self._buckets[name] = [_Bucket(solver, estimate) for _ in range(len(bounds) + 1)]
        self._max_queued, self._number = max_queued, 0
        self._changed = threading.Condition()
        self._closing: str | None = None
        self._failure: str | None = None
        self._statuses, self._depths, self._since = Counter[str](), Counter[int](), time.monotonic()
        self._thread = threading.Thread(target=self._work, name="rtm-service", daemon=True)
        self._thread.start()

    def submit(
        self,
        puzzle: str | Puzzle,
        *,
        solver: str | None = None,
        priority: int = 0,
        max_steps: int | None = None,
        deadline: float = math.inf,
        wait: float = 0.0,
    ) -> Future[Solution]:
        """Queue a puzzle; returns the future of its solution, which `cancel()` takes back at any time.

        `solver` names one of several; higher `priority` goes first; `max_steps` lowers the policy's cap. After
        `deadline` seconds the puzzle comes back `unverified` with its best answer so far and the reason `deadline`.
        `wait`: seconds to wait for room in the queue.

        Errors: `InputError` for an argument, `Overloaded` when the queue stays full, `Closed` after `close`.
        """
        name = next(iter(self._buckets)) if solver is None and len(self._buckets) == 1 else solver
        one_of("solver", name, self._buckets)
        require(max_steps is None or max_steps >= 1, "max_steps", max_steps, "at least 1")
        require(deadline > 0, "deadline", deadline, "more than 0 seconds")
        buckets = self._buckets[str(name)]
        cap = buckets[0].solver.policy.max_steps
        future: Future[Solution] = Future()
        with self._changed:
            self._number += 1
            number = self._number
        sample = buckets[0].solver.encode(number, puzzle)
        if isinstance(sample, Solution):
            self._count(sample)
            future.set_result(sample)
            return future
        request = _Request(
            rank=(-priority, number),
            text=buckets[0].solver.task.decode(sample.tokens),
            sample=replace(sample, max_steps=None if max_steps is None else min(max_steps, cap)),
            deadline=time.monotonic() + deadline,
            future=future,
        )
        with self._changed:
            if not self._changed.wait_for(lambda: self._closing or self._room(), timeout=wait):
                raise Overloaded(f"{self._max_queued} puzzles are waiting already")
            if self._closing:
                raise Closed(self._closing)
            bucket = buckets[bisect.bisect_left(self._bounds, buckets[0].estimate.predict(sample.tokens))]
            heapq.heappush(bucket.queue, request)
            self._changed.notify_all()
        return future

    async def solve(self, puzzle: str | Puzzle, **options: Any) -> Solution:
        """`submit` for coroutines; cancelling the awaiting task cancels the puzzle."""
        return await asyncio.wrap_future(self.submit(puzzle, **options))

    async def stream(
        self, puzzles: Iterable[str | Puzzle], *, ahead: int = 64, **options: Any
    ) -> AsyncIterator[tuple[int, Solution]]:
        """(index, solution) as they finish; at most `ahead` puzzles are taken and not yet given back.

        Errors: as `submit`; `Overloaded` when `ahead` and the puzzles of other callers do not fit the queue.
        """
        require(ahead >= 1, "ahead", ahead, "at least 1")
        source, pending = iter(enumerate(puzzles)), dict[asyncio.Task[Solution], int]()
        try:
            while True:
                while len(pending) < ahead and (following := next(source, None)) is not None:
                    index, puzzle = following
                    pending[asyncio.ensure_future(self.solve(puzzle, **options))] = index
                if not pending:
                    return
                done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=pending.__getitem__):
                    yield pending.pop(task), task.result()
        finally:
            for task in pending:
                task.cancel()

    def stats(self) -> Stats:
        """A snapshot."""
        with self._changed:
            seconds, solved = time.monotonic() - self._since, sum(self._statuses.values())
            return Stats(
                queued=sum(len(b.queue) for b in self._all()),
                running=sum(len(b.running) for b in self._all()),
                statuses=dict(self._statuses),
                depth_histogram=dict(sorted(self._depths.items())),
                seconds=seconds,
                puzzles_per_second=solved / seconds,
            )

    @property
    def failure(self) -> str | None:
        """Why no puzzle is solved any more, when the work itself failed; None while it goes on, and after `close`."""
        with self._changed:
            return self._failure

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more puzzles and end: after those already taken (`drain`), or cancelling them."""
        with self._changed:
            self._closing = self._closing or "the service is closed"
            if not drain:
                for request in self._requests():
                    request.future.cancel()
            self._changed.notify_all()
        self._thread.join(timeout)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(drain=kind is None)

    def _requests(self) -> list[_Request]:
        return [r for b in self._all() for r in (*b.queue, *b.running.values())]

    def _all(self) -> list[_Bucket]:
        return [bucket for buckets in self._buckets.values() for bucket in buckets]

    def _room(self) -> bool:
        return sum(len(b.queue) for b in self._all()) < self._max_queued

    def _work(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:
            with self._changed:
                self._closing = self._failure = f"the service failed: {error}"
                for request in self._requests():
                    if request.future.set_running_or_notify_cancel():
                        failure = Closed(self._closing)
                        failure.__cause__ = error
                        request.future.set_exception(failure)
                self._changed.notify_all()

    def _turn(self) -> bool:
        """One ACT step of every bucket that has work; False once the service is closed and has none."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._requests())
            if not self._requests():
                return False
            now = time.monotonic()
            late = [(bucket, *pair) for bucket in self._all() for pair in bucket.drop(now)]
            for bucket in self._all():
                bucket.fill()
            self._changed.notify_all()
        for bucket, request, done in late:
            self._resolve(bucket, request, done)
        for bucket in self._all():
            finished = bucket.slots.step()
            with self._changed:
                ended = [(bucket.running.pop(done.key), done) for done in finished]
                for request, done in ended:
                    bucket.estimate.learn(request.sample.tokens, done.total_steps)
            for request, done in ended:
                self._resolve(bucket, request, done)
        return True

    def _resolve(self, bucket: _Bucket, request: _Request, done: Finished | None) -> None:
        if done is None:
            name = bucket.solver.task.name
            solution = Solution(task=name, input=request.text, status="unverified", reason="deadline")
        else:
            solution = bucket.solver.solution(request.text, done)
        if request.future.set_running_or_notify_cancel():
            self._count(solution)
            request.future.set_result(solution)

    def _count(self, solution: Solution) -> None:
        with self._changed:
            self._statuses[solution.status] += 1
            if solution.status != "invalid":
                self._depths[solution.steps] += 1
