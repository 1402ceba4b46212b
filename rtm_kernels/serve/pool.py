"""The front's side of the worker: the queue, feeding slots, and a new worker whenever one ends."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from itertools import count
from multiprocessing.process import BaseProcess
from typing import Any

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.serve.child import Setup, start
from rtm_kernels.serve.jobs import FairQueue, Job, Outcome, Ticket
from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.metrics import Metrics
from rtm_kernels.serve.refusal import Refused, unavailable

log = logging.getLogger("rtm.serve")

MAX_CRASHES = 3
"""A puzzle that so many workers held when they ended is refused: it may be what ends them."""

MAX_LINE = 1 << 20
GOLDEN_STEPS = 4
GOLDEN_BITS = ("answer", "status", "steps", "halt_probability", "residual")
PROBE_AGE = 1.0


class Worker:
    """One worker process and the streams to it."""

    def __init__(self, process: BaseProcess, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.process, self.reader, self.writer = process, reader, writer
        self.running: dict[int, Ticket] = {}
        self.solved = 0

    def send(self, message: dict[str, Any]) -> None:
        self.writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        """The next message, None at the end of the worker."""
        try:
            line = await self.reader.readline()
        except (OSError, ValueError):
            return None
        return dict(json.loads(line)) if line.endswith(b"\n") else None

    async def end(self) -> None:
        """Close the streams, kill the process and free what the system keeps of it."""
        self.writer.close()
        self.process.kill()
        await asyncio.to_thread(self.process.join)
        self.process.close()


class Pool:
    """Solves puzzles of requests in one worker process, which is replaced whenever it ends.

    Puzzles are kept here until their solution has arrived, so a worker that dies loses nothing: what it held goes
    back to the head of its request's queue. Everything runs on one event loop.
    """

    def __init__(self, setup: Setup, limits: Limits, metrics: Metrics) -> None:
        self.setup, self.limits, self.metrics = setup, limits, metrics
        self.models: dict[str, dict[str, Any]] = {}
        self._queues = {name: FairQueue(setup.slots) for name, _ in setup.models}
        self._numbers = count()
        self._worker: Worker | None = None
        self._life: asyncio.Task[None] | None = None
        self._stopping = self._draining = False
        self._golden: dict[str, tuple[Any, ...]] = {}
        self._probe: asyncio.Task[None] | None = None
        self._healthy_at = -PROBE_AGE
        metrics.waiting.set_function(lambda: self.waiting)
        metrics.running.set_function(lambda: sum(queue.running for queue in self._queues.values()))
        metrics.up.set_function(lambda: float(self._worker is not None))

    @property
    def waiting(self) -> int:
        """Puzzles that wait for a slot."""
        return sum(queue.waiting for queue in self._queues.values())

    async def start(self) -> None:
        """Start the first worker and solve the golden puzzles, whose answers every later probe must repeat.

        Errors: `InputError` when a model cannot be loaded, `BackendUnavailable` when the worker ends by itself.
        """
        worker = await self._spawn()
        self._life = asyncio.create_task(self._keep_alive(worker))
        try:
            await self._solve_golden(self.limits.request)
        except Refused as error:
            raise BackendUnavailable(f"the worker does not solve its golden puzzle: {error.message}") from None

    def submit(self, model: str, texts: list[str], max_steps: int, seconds: float) -> Job:
        """Queue the puzzles of one request, all or none; `outcomes` gives their solutions.

        Errors: `Refused` with 503 while the server drains and when the queue has no room for all of them.
        """
        if self._draining:
            raise unavailable("draining", "the server is shutting down", retry_after=5)
        queue = self._queues[model]
        free = queue.slots - queue.reserve - queue.running if self._worker is not None and not queue.waiting else 0
        if self.waiting + len(texts) - max(0, free) > self.limits.queued:
            raise unavailable("overloaded", f"{self.waiting} puzzles are waiting, of at most {self.limits.queued}")
        job = Job(model, max_steps, asyncio.get_running_loop().time() + seconds)
        job.add(texts)
        queue.jobs.append(job)
        self._feed()
        return job

    async def outcomes(self, job: Job) -> AsyncIterator[Outcome]:
        """(index, solution) as they finish; leaving early takes the other puzzles back.

        Errors: `Refused` with 503 when the worker kept crashing or the server stopped before the end.
        """
        loop = asyncio.get_running_loop()
        timers = [
            loop.call_at(job.expires, self._expire, job),
            loop.call_at(job.expires + self.limits.grace, self._give_up, job),
        ]
        try:
            for _ in range(job.unfinished + job.results.qsize()):
                outcome = await job.results.get()
                if isinstance(outcome, Refused):
                    raise outcome
                self._count(job.model, outcome[1])
                yield outcome
        finally:
            for timer in timers:
                timer.cancel()
            self._withdraw(job)

    async def probe(self) -> None:
        """Solve the golden puzzle of every model, unless that was done within the last second.

        Errors: `Refused` with 503 while no worker is ready, when it is too slow, and when the bits differ, which
        also replaces the worker.
        """
        if self._worker is None:
            raise unavailable("worker_starting", "the worker is starting")
        if asyncio.get_running_loop().time() - self._healthy_at < PROBE_AGE:
            return
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._solve_golden(self.limits.probe))
        await asyncio.shield(self._probe)

    def drain(self) -> None:
        """Take no more puzzles; those not solved within `limits.drain` seconds are refused."""
        if not self._draining:
            self._draining = True
            asyncio.get_running_loop().call_later(self.limits.drain, self._refuse_all)

    async def stop(self) -> None:
        """End the worker."""
        self._draining = self._stopping = True
        self._refuse_all()
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)

    def kill_worker(self, reason: str) -> None:
        """End a worker that does not do its work; a new one takes over."""
        if self._worker is not None:
            log.error("worker killed", extra={"reason": reason})
            self._worker.process.kill()

    async def _spawn(self) -> Worker:
        loop = asyncio.get_running_loop()
        began = loop.time()
        starting = asyncio.ensure_future(asyncio.to_thread(start, self.setup, self.limits))
        try:
            process, ours = await asyncio.shield(starting)
        except asyncio.CancelledError:  # the thread goes on and hands over a process that nobody wants
            process, ours = await starting
            ours.close()
            process.kill()
            raise
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
        worker = Worker(process, reader, writer)
        try:
            first = await worker.receive()
            if first is None:
                raise BackendUnavailable("the worker process ended while it loaded its models")
            if "failed" in first:
                raise InputError(first["failed"])
        except BaseException:
            await worker.end()
            raise
        self.models = {model["name"]: model for model in first["ready"]}
        log.info("worker ready", extra={"worker": process.pid, "seconds": round(loop.time() - began, 3)})
        return worker

    async def _keep_alive(self, worker: Worker) -> None:
        failures = 0
        while True:
            self._worker, self._healthy_at = worker, -PROBE_AGE
            self._feed()
            try:
                while (message := await worker.receive()) is not None:
                    worker.solved += 1
                    self._resolve(worker, message["solved"], message["solution"])
            finally:
                self._worker = None
                await worker.end()
            log.error("worker ended", extra={"held": len(worker.running)})
            self.metrics.restarts.inc()
            self._take_back(worker)
            failures = 0 if worker.solved else failures + 1
            worker = await self._respawn(failures)

    async def _respawn(self, failures: int) -> Worker:
        """A new worker: at once after the first failure, then after longer and longer pauses."""
        while True:
            await asyncio.sleep(min(5.0, 0.1 * 2**failures) if failures > 1 else 0)
            try:
                return await self._spawn()
            except (InputError, BackendUnavailable) as error:
                failures += 1
                log.error("worker not started", extra={"reason": str(error)})

    def _feed(self) -> None:
        """Fill the free slots of the worker."""
        worker = self._worker
        if worker is None:
            return
        now = asyncio.get_running_loop().time()
        for queue in self._queues.values():
            for ticket in queue.take():
                job, number = ticket.job, next(self._numbers)
                job.running[number] = worker.running[number] = ticket
                worker.send({
                    "solve": number, "model": job.model, "text": ticket.text, "max_steps": job.max_steps,
                    "deadline": max(0.001, job.expires - now), "priority": job.priority,
                })  # fmt: skip

    def _resolve(self, worker: Worker, number: int, solution: dict[str, Any]) -> None:
        ticket = worker.running.pop(number, None)
        if ticket is not None:
            ticket.job.running.pop(number)
            ticket.job.results.put_nowait((ticket.index, solution))
            self._feed()

    def _take_back(self, worker: Worker) -> None:
        """What an ended worker held waits again, ahead of the rest of its job."""
        for number, ticket in reversed(worker.running.items()):
            ticket.crashes += 1
            ticket.job.running.pop(number)
            if ticket.crashes < MAX_CRASHES:
                ticket.job.waiting.appendleft(ticket)
            else:
                ticket.job.results.put_nowait(unavailable("worker_failed", "the worker kept failing on this request"))

    def _expire(self, job: Job) -> None:
        """Answer the puzzles that still wait; those in slots come back from the worker with what they have."""
        task = self.models[job.model]["task"]
        while job.waiting:
            ticket = job.waiting.popleft()
            job.results.put_nowait((ticket.index, {
                "task": task, "input": ticket.text, "answer": None, "status": "unverified", "steps": 0,
                "halt_probability": None, "seconds": 0.0, "reason": "deadline", "answer_step": 0, "residual": None,
            }))  # fmt: skip

    def _give_up(self, job: Job) -> None:
        """The worker is past the deadline and the grace: it is stuck, unless this process was stopped meanwhile."""
        loop, grace = asyncio.get_running_loop(), self.limits.grace
        self._expire(job)
        if loop.time() - job.expires > 2 * grace:
            job.expires = loop.time()
            loop.call_later(grace, self._give_up, job)
            return
        if job.running:
            job.results.put_nowait(unavailable("deadline", "the worker did not answer in time"))
            self.kill_worker("no answer past the deadline")

    def _withdraw(self, job: Job) -> None:
        """Forget a job; the worker drops what it holds of it with its next step."""
        if job.unfinished:
            self.metrics.cancelled.inc(job.unfinished)
        job.waiting.clear()
        for number in list(job.running):
            del job.running[number]
            if self._worker is not None and self._worker.running.pop(number, None) is not None:
                self._worker.send({"cancel": number})
        jobs = self._queues[job.model].jobs
        if job in jobs:
            jobs.remove(job)
        self._feed()

    def _refuse_all(self) -> None:
        for queue in self._queues.values():
            for job in list(queue.jobs):
                job.results.put_nowait(unavailable("draining", "the server is shutting down", retry_after=5))

    def _count(self, model: str, solution: dict[str, Any]) -> None:
        self.metrics.puzzles.labels(model, solution["status"]).inc()
        if solution["status"] != "invalid":
            self.metrics.steps.labels(model).observe(solution["steps"])

    async def _solve_golden(self, seconds: float) -> None:
        for name, model in self.models.items():
            bits = await self._golden_bits(name, model["golden"], seconds)
            expected = self._golden.setdefault(name, bits)
            if bits != expected:
                self.kill_worker(f"the golden puzzle of {name} came out differently")
                raise unavailable("golden_mismatch", "the golden puzzle was not solved as before")
        self._healthy_at = asyncio.get_running_loop().time()

    async def _golden_bits(self, name: str, text: str, seconds: float) -> tuple[Any, ...]:
        job = Job(name, GOLDEN_STEPS, asyncio.get_running_loop().time() + seconds, priority=1)
        job.add([text])
        self._queues[name].jobs.append(job)
        self._feed()
        try:
            solution = await asyncio.wait_for(job.results.get(), seconds)
        except asyncio.TimeoutError:
            raise unavailable("probe_timeout", "the golden puzzle was not solved in time") from None
        finally:
            self._withdraw(job)
        if isinstance(solution, Refused):
            raise solution
        fields = GOLDEN_BITS if self.setup.batch_invariant else GOLDEN_BITS[:2]
        return tuple(solution[1][field] for field in fields)
