"""Between HTTP and the solver: models by name, limits on work, and the golden puzzles that /healthz solves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from rtm_kernels.data.examples import example_names, example_puzzles
from rtm_kernels.engine import Closed, Overloaded, Service, Solution, Solver
from rtm_kernels.engine.service import finished
from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.metrics import Metrics
from rtm_kernels.serve.refusal import Refused, unavailable
from rtm_kernels.serve.schema import Model, SolveRequest

GOLDEN_STEPS = 4
PROBE_AGE = 1.0
"""Seconds for which the result of a probe stands."""


class Front:
    """Solves the puzzles of requests with a `Service`; the golden puzzle of each model is solved at once.

    Errors: `BackendUnavailable` when a golden puzzle is not solved in time.
    """

    def __init__(self, solvers: Mapping[str, Solver], limits: Limits) -> None:
        self.limits, self.solvers = limits, dict(solvers)
        self.models = {name: describe(name, solver) for name, solver in solvers.items()}
        self.service = Service(solvers, max_queued=limits.queued)
        self.metrics = Metrics(self.service)
        try:
            self._golden = {name: self._bits(name, self._ask(name).result(limits.request)) for name in solvers}
        except (Closed, FutureTimeout):
            raise BackendUnavailable(self.service.failure or "a golden puzzle was not solved in time") from None
        self._probing, self._healthy_at, self._stopped = asyncio.Lock(), -PROBE_AGE, False

    def choose(self, name: str | None) -> Model:
        """The model of that name, or the only one. Errors: `Refused` with 404."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Refused(404, "unknown_model", f"name one of: {', '.join(self.models)}")
        return self.models[name]

    async def submit(self, model: Model, asked: SolveRequest) -> list[Future[Solution]]:
        """Queue all puzzles of a request or none.

        Errors: `Refused` with 413 for too much work, with 503 when the queue is full or the service has ended.
        """
        steps = asked.max_steps or model.default_max_steps
        work = len(asked.puzzles) * model.cells * steps
        if work > self.limits.work:
            raise Refused(413, "too_much_work", f"puzzles x cells x steps is {work}, at most {self.limits.work}")
        seconds = asked.deadline or self.limits.request
        try:
            return await self.service.queue_all(asked.puzzles, solver=model.name, max_steps=steps, deadline=seconds)
        except Overloaded as error:
            raise unavailable("overloaded", str(error)) from None
        except Closed:
            raise stopping() from None

    async def outcomes(self, model: Model, futures: Sequence[Future[Solution]]) -> AsyncIterator[tuple[int, Solution]]:
        """(index, solution) as they finish; leaving early cancels the others.

        Errors: `Refused` with 503 when the server stops.
        """
        try:
            async for index, solution in finished(futures):
                self.metrics.solved(model.name, solution)
                yield index, solution
        except (asyncio.CancelledError, Closed) as error:
            if self._stopped or isinstance(error, Closed):
                raise stopping() from None
            raise  # the client disconnected
        finally:
            for future in futures:
                future.cancel()

    async def probe(self) -> None:
        """Solve the golden puzzle of every model, unless that was done within the last second.

        Errors: `Refused` with 503 when that takes too long, or when the bits differ from those of the first time.
        """
        loop = asyncio.get_running_loop()
        async with self._probing:
            if loop.time() - self._healthy_at < PROBE_AGE:
                return
            for name, expected in self._golden.items():
                try:
                    found = await asyncio.wait_for(asyncio.wrap_future(self._ask(name)), self.limits.probe)
                except asyncio.TimeoutError:
                    raise unavailable("probe_timeout", "the golden puzzle was not solved in time") from None
                except Closed:
                    raise stopping() from None
                if self._bits(name, found) != expected:
                    raise unavailable("golden_mismatch", "the golden puzzle was not solved as before")
            self._healthy_at = loop.time()

    def stop(self) -> None:
        """Refuse all unsolved puzzles."""
        self._stopped = True
        self.service.close(drain=False, timeout=0)

    def _ask(self, name: str) -> Future[Solution]:
        task = self.solvers[name].task
        text = example_puzzles(task.name)[0].text if task.name in example_names() else task.vocabulary[0] * task.seq_len
        return self.service.submit(text, solver=name, priority=1, max_steps=GOLDEN_STEPS)

    def _bits(self, name: str, found: Solution) -> tuple[object, ...]:
        """The fields that must be equal in every run; numbers only where rounding does not depend on the batch."""
        exact = self.solvers[name].batch_invariant
        return (found.answer, found.status, *((found.steps, found.halt_probability, found.residual) if exact else ()))


def stopping() -> Refused:
    """503: the service has ended, or is about to."""
    return unavailable("stopping", "the server is stopping", retry_after=5)


def describe(name: str, solver: Solver) -> Model:
    """What GET /v1/models says of a model."""
    model, task = solver.model, solver.task
    return Model(
        name=name,
        task=task.name,
        arch=model.config.arch,
        parameters=sum(p.numel() for p in model.parameters()),
        cells=task.seq_len,
        vocabulary=task.vocabulary,
        default_max_steps=min(model.config.halt_max_steps, solver.policy.max_steps),
        executor=solver.executor.name,
        device=str(model.device),
        halting=str(solver.policy),
    )
