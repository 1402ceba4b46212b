"""A solver for many callers at once: turns, priorities, back-pressure, deadlines, cancellation, async."""

from __future__ import annotations

import asyncio
import heapq
import math
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from rtm_kernels.data.task import Puzzle
from rtm_kernels.engine.samples import Finished, Sample, Solution
from rtm_kernels.engine.solver import Solver
from rtm_kernels.errors import RTMError, one_of, require


class Overloaded(RTMError, RuntimeError):
    """The queue has no room; no puzzle of the call was taken."""


class Closed(RTMError, RuntimeError):
    """The service takes no more puzzles, or ended before it solved this one; the message says why."""


@dataclass(order=True)
class _Request:
    """One puzzle; `rank` is (-priority, turn, arrival), the lowest goes first."""

    rank: tuple[int, int, int]
    sample: Sample = field(compare=False)
    deadline: float = field(compare=False)
    future: Future[Solution] = field(compare=False)


class _Bucket:
    """The queue and the slots of one solver. `turn` is the highest turn that has entered a slot."""

    def __init__(self, solver: Solver) -> None:
        self.solver, self.slots, self.turn = solver, solver.slots(), 0
        self.queue: list[_Request] = []
        self.running: dict[Any, _Request] = {}

    def take(self, count: int) -> list[Sample]:
        """Move at most `count` requests from the queue to the slots, the most urgent first."""
        taken = [heapq.heappop(self.queue) for _ in range(min(count, len(self.queue)))]
        self.turn = max([self.turn, *(request.rank[1] for request in taken)])
        self.running |= {request.sample.key: request for request in taken}
        return [request.sample for request in taken]

    def drop(self, now: float) -> list[_Request]:
        """Take out what is late or was cancelled."""
        waiting, going = list(self.queue), list(self.running.values())
        gone = [r for r in (*waiting, *going) if r.deadline <= now or r.future.cancelled()]
        if gone:
            self.queue = [r for r in waiting if r not in gone]
            self.running = {r.sample.key: r for r in going if r not in gone}
            heapq.heapify(self.queue)
        return gone


class Service:
    """Solves puzzles of many callers in shared batches, on a thread of its own.

    `solvers` is one solver, or several by name, each with slots of its own (mixed tasks and lengths); their batches
    take turns, one ACT step each. The highest priority goes first. Calls of equal priority take turns: the first
    puzzle of a new call goes before the later puzzles of the calls that wait. At most `max_queued` puzzles wait.
    Cancelling a future frees its slot with the next step. An answer does not depend on priorities or arrival, beyond
    the executor's rounding (`Solver(batch_invariant=True)`: not at all).

    Use as a context manager, or call `close`. `closing` says why no more puzzles are taken; `failure` says the same,
    but only when solving itself has failed. `turns` counts steps of all batches: it grows while puzzles are solved.
    """

    closing: str | None = None
    failure: str | None = None
    turns: int = 0

    def __init__(self, solvers: Solver | Mapping[str, Solver], *, max_queued: int = 1024) -> None:
        require(isinstance(max_queued, int) and max_queued >= 1, "max_queued", max_queued, "an integer of at least 1")
        named = {solvers.task.name: solvers} if isinstance(solvers, Solver) else dict(solvers)
        require(len(named) > 0, "solvers", named, "at least one")
        self._buckets = {name: _Bucket(solver) for name, solver in named.items()}
        self._max_queued, self._number = max_queued, 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="rtm-service", daemon=True)
        self._thread.start()

    def submit(self, puzzle: str | Puzzle, **options: Any) -> Future[Solution]:
        """`submit_all` for one puzzle."""
        return self.submit_all([puzzle], **options)[0]

    def submit_all(
        self,
        puzzles: Sequence[str | Puzzle],
        *,
        solver: str | None = None,
        priority: int = 0,
        max_steps: int | None = None,
        deadline: float = math.inf,
    ) -> list[Future[Solution]]:
        """Queue all the puzzles or none; returns the futures of their solutions. `cancel()` takes one back any time.

        `solver` names one of several; higher `priority` goes first, and above 0 it is taken even when the queue is
        full; `max_steps` lowers the policy's cap. After `deadline` seconds a puzzle comes back `unverified` with its
        best answer so far and the reason `deadline`.

        Errors: `InputError` for an argument, `Overloaded` when the queue has no room, `Closed` after `close`.
        """
        name = next(iter(self._buckets)) if solver is None and len(self._buckets) == 1 else solver
        one_of("solver", name, self._buckets)
        require(max_steps is None or max_steps >= 1, "max_steps", max_steps, "at least 1")
        require(deadline > 0, "deadline", deadline, "more than 0 seconds")
        bucket = self._buckets[str(name)]
        cap = None if max_steps is None else min(max_steps, bucket.solver.policy.max_steps)
        with self._changed:
            first = self._number
            self._number += len(puzzles)
        futures: list[Future[Solution]] = [Future() for _ in puzzles]
        samples = [bucket.solver.encode(first + i, puzzle) for i, puzzle in enumerate(puzzles)]
        latest, readable = time.monotonic() + deadline, sum(isinstance(sample, Sample) for sample in samples)
        with self._changed:
            if self.closing:
                raise Closed(self.closing)
            if priority <= 0 and readable and self.queued + readable > self._max_queued:
                raise Overloaded(f"{self.queued} puzzles are waiting, of at most {self._max_queued}")
            for i, (sample, future) in enumerate(zip(samples, futures, strict=True)):
                if isinstance(sample, Solution):
                    future.set_result(sample)
                    continue
                rank = (-priority, bucket.turn + i, first + i)
                heapq.heappush(bucket.queue, _Request(rank, replace(sample, max_steps=cap), latest, future))
            self._changed.notify_all()
        return futures

    async def queue_all(self, puzzles: Sequence[str | Puzzle], **options: Any) -> list[Future[Solution]]:
        """`submit_all` for coroutines: it reads the puzzles on another thread, so that no event loop waits."""
        queued = asyncio.ensure_future(asyncio.to_thread(self.submit_all, puzzles, **options))
        try:
            return await asyncio.shield(queued)
        except asyncio.CancelledError:
            queued.add_done_callback(_take_back)
            raise

    async def solve(self, puzzle: str | Puzzle, **options: Any) -> Solution:
        """`solve_all` for one puzzle."""
        return (await self.solve_all([puzzle], **options))[0]

    async def solve_all(self, puzzles: Sequence[str | Puzzle], **options: Any) -> list[Solution]:
        """The solutions in the order of the puzzles; cancelling the awaiting task cancels the puzzles."""
        pairs = [pair async for pair in finished(await self.queue_all(puzzles, **options))]
        return [solution for _, solution in sorted(pairs, key=lambda pair: pair[0])]

    @property
    def queued(self) -> int:
        """Puzzles that wait for a slot."""
        with self._changed:
            return sum(not r.future.cancelled() for b in self._buckets.values() for r in b.queue)

    @property
    def running(self) -> int:
        """Puzzles in a slot."""
        with self._changed:
            return sum(not r.future.cancelled() for b in self._buckets.values() for r in b.running.values())

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more puzzles and end: after those already taken (`drain`), or cancelling them."""
        with self._changed:
            self.closing = self.closing or "the service is closed"
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
        return [r for b in self._buckets.values() for r in (*b.queue, *b.running.values())]

    def _work(self) -> None:
        try:
            while self._turn():
                self.turns += 1
        except Exception as error:
            with self._changed:
                self.closing = self.failure = f"the service failed: {error}"
                for request in self._requests():
                    if request.future.set_running_or_notify_cancel():
                        failure = Closed(self.closing)
                        failure.__cause__ = error
                        request.future.set_exception(failure)
                self._changed.notify_all()

    def _turn(self) -> bool:
        """One ACT step of every bucket that has work; False once the service is closed and has none.

        Only this thread uses the slots, outside the lock, so that no caller waits for a step.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.closing or self._requests())
            if not self._requests():
                return False
        for bucket in self._buckets.values():
            with self._changed:
                gone = bucket.drop(time.monotonic())
            for request in gone:
                _resolve(bucket.solver, request, bucket.slots.evict(request.sample.key, "deadline"))
            with self._changed:
                batch = bucket.take(bucket.slots.free)
            bucket.slots.admit(batch)
            left = bucket.slots.step()
            with self._changed:
                ended = [(bucket.running.pop(done.key), done) for done in left]
            for request, done in ended:
                _resolve(bucket.solver, request, done)
        return True


def _resolve(solver: Solver, request: _Request, done: Finished | None) -> None:
    """Set the future of a request; `done` is None for a puzzle that its deadline met in the queue."""
    text = solver.task.decode(request.sample.tokens)
    late = Solution(task=solver.task.name, input=text, status="unverified", reason="deadline")
    if request.future.set_running_or_notify_cancel():
        request.future.set_result(late if done is None else solver.solution(text, done))


def _cancel(futures: Sequence[Future[Solution]]) -> None:
    for future in futures:
        future.cancel()


def _take_back(queued: asyncio.Future[list[Future[Solution]]]) -> None:
    if not queued.cancelled() and queued.exception() is None:
        _cancel(queued.result())


async def finished(futures: Sequence[Future[Solution]]) -> AsyncIterator[tuple[int, Solution]]:
    """(index, solution) of each future as it ends; leaving early cancels the others."""
    pending = {asyncio.wrap_future(future): index for index, future in enumerate(futures)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for future in sorted(done, key=pending.__getitem__):
                yield pending.pop(future), future.result()
    finally:
        _cancel(futures)
        for future in pending:
            if not future.cancel() and not future.cancelled():
                future.exception()  # or asyncio logs that nobody looked at it
