"""Between HTTP and the solver: models by name, metrics, and the golden puzzles that /healthz solves."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rtm_kernels import engine
from rtm_kernels.data.examples import example_names, example_puzzles
from rtm_kernels.engine import Closed, Overloaded, Service, Solver
from rtm_kernels.engine.service import finished
from rtm_kernels.errors import BackendUnavailable, require
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.serve.schema import Limits, Model, Refused, Solution, SolveRequest, unavailable

log = logging.getLogger("rtm.serve")

GOLDEN_STEPS = 4
PROBE_AGE = 1.0
"""Seconds for which the result of a probe stands."""


class Front:
    """Solves the puzzles of requests with a `Service`; the golden puzzle of each model is solved at once.

    Errors: `BackendUnavailable` when a golden puzzle is not solved in time.
    """

    def __init__(self, solvers: Mapping[str, Solver], limits: Limits) -> None:
        self.limits, self.solvers = limits, dict(solvers)
        self.models = {name: Model.of(name, solver) for name, solver in solvers.items()}
        self.service = Service(solvers, max_queued=limits.queued)
        self.metrics = Metrics(self.service)
        try:
            self._golden = {name: self._bits(name, self._ask(name).result(limits.request)) for name in solvers}
        except (Closed, FutureTimeout):
            raise BackendUnavailable(self.service.failure or "a golden puzzle was not solved in time") from None
        self._probing, self._healthy_at = asyncio.Lock(), -PROBE_AGE

    @classmethod
    def load(cls, sources: Mapping[str, str], limits: Limits, **options: Any) -> Front:
        """The models of `from_pretrained` by name; `options` go to `Solver`. Errors: `InputError` for a large model."""
        solvers = {}
        for name, source in sources.items():
            model = RecursiveReasoner.from_pretrained(source)
            cells = model.config.seq_len
            require(cells <= limits.cells, f"model {name}", f"{cells} cells", f"at most {limits.cells} are served")
            solvers[name] = Solver(model, max_steps=limits.steps, **options)
        front = cls(solvers, limits)
        for found in front.models.values():
            log.info("model", extra={"fields": found.model_dump(exclude={"vocabulary"})})
        return front

    def choose(self, name: str | None) -> Model:
        """The model of that name, or the only one. Errors: `Refused` with 404."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Refused(404, "unknown_model", f"name one of: {', '.join(self.models)}")
        return self.models[name]

    async def submit(self, model: Model, asked: SolveRequest) -> list[Future[engine.Solution]]:
        """Queue all puzzles of a request or none.

        Errors: `Refused` with 503 when the queue is full or the service has ended.
        """
        steps = asked.max_steps or model.default_max_steps
        seconds = asked.deadline or self.limits.request
        try:
            return await self.service.queue_all(asked.puzzles, solver=model.name, max_steps=steps, deadline=seconds)
        except Overloaded as error:
            raise unavailable("overloaded", str(error)) from None
        except Closed:
            raise stopping() from None

    async def outcomes(self, model: Model, futures: Sequence[Future[engine.Solution]]) -> AsyncIterator[Solution]:
        """The solutions as they finish; leaving early cancels the others.

        Errors: `Refused` with 503 when the server stops.
        """
        try:
            async for index, solution in finished(futures):
                self.metrics.solved(model.name, solution)
                yield Solution(index=index, **vars(solution))
        except (asyncio.CancelledError, Closed):
            if self.service.closing:
                raise stopping() from None
            raise  # the client disconnected
        finally:
            for future in futures:
                future.cancel()

    async def probe(self) -> None:
        """Solve the golden puzzle of every model, unless that was done within the last second.

        A puzzle that is not solved in time is no error as long as the solver makes steps: then the server is busy.
        Errors: `Refused` with 503 when the solver stands still, or when the bits differ from those of the first time.
        """
        now, turns = asyncio.get_running_loop().time, self.service.turns
        async with self._probing:
            if now() - self._healthy_at < PROBE_AGE:
                return
            for name, expected in self._golden.items():
                try:
                    found = await asyncio.wait_for(asyncio.wrap_future(self._ask(name)), self.limits.probe)
                except asyncio.TimeoutError:
                    if self.service.turns > turns:
                        return
                    raise unavailable("probe_timeout", "the golden puzzle was not solved in time") from None
                except Closed:
                    raise stopping() from None
                if self._bits(name, found) != expected:
                    raise unavailable("golden_mismatch", "the golden puzzle was not solved as before")
            self._healthy_at = now()

    def _ask(self, name: str) -> Future[engine.Solution]:
        task = self.solvers[name].task
        text = example_puzzles(task.name)[0].text if task.name in example_names() else task.vocabulary[0] * task.seq_len
        return self.service.submit(text, solver=name, priority=1, max_steps=GOLDEN_STEPS)

    def _bits(self, name: str, found: engine.Solution) -> tuple[object, ...]:
        """The fields that must be equal in every run; numbers only where rounding does not depend on the batch."""
        exact = self.solvers[name].batch_invariant
        return (found.answer, found.status, *((found.steps, found.halt_probability, found.residual) if exact else ()))


class Metrics:
    """Prometheus counters and gauges. Labels take few values: routes, statuses, codes, and names of models."""

    def __init__(self, service: Service) -> None:
        self.registry = found = CollectorRegistry()
        self._requests = Counter("rtm_requests", "Requests.", ("route", "status", "code"), registry=found)
        self._seconds = Histogram("rtm_request_seconds", "Seconds of a request.", ("route",), registry=found)
        self._puzzles = Counter("rtm_puzzles", "Puzzles answered.", ("model", "status"), registry=found)
        self._steps = Counter("rtm_act_steps", "ACT steps of the puzzles answered.", ("model",), registry=found)
        Gauge("rtm_puzzles_queued", "Puzzles that wait.", registry=found).set_function(lambda: service.queued)
        Gauge("rtm_puzzles_running", "Puzzles in a slot.", registry=found).set_function(lambda: service.running)

    def record(self, route: str, status: int, code: str, seconds: float) -> None:
        """Count a request; `status` 0 means that the client had no answer, `code` is that of its error."""
        self._requests.labels(route, str(status or "none"), code).inc()
        self._seconds.labels(route).observe(seconds)

    def solved(self, model: str, solution: engine.Solution) -> None:
        """Count a puzzle."""
        self._puzzles.labels(model, solution.status).inc()
        self._steps.labels(model).inc(solution.steps)


def names(models: Sequence[str]) -> dict[str, str]:
    """Name -> source of the options --model: `sudoku`, `maze=runs/maze/model`; a folder alone is named by its end.

    Errors: `InputError` for a name with other characters, and for a name that comes twice.
    """
    found: dict[str, str] = {}
    for text in models:
        name, equals, source = text.partition("=")
        name, source = (name, source) if equals else (Path(text).name, text)
        valid = re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) and source
        require(bool(valid), "model", text, "a name of letters, digits, . _ and -, or NAME=FOLDER")
        require(name not in found, "model", text, "each name once (NAME=FOLDER gives another one)")
        found[name] = source
    return found


def stopping() -> Refused:
    """503: the service has ended, or is about to."""
    return unavailable("stopping", "the server is stopping", retry_after=5)
