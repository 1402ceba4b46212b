"""The solver as a Ray Serve deployment: replicas that share the requests, each with one continuous batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from rtm_kernels.engine import Overloaded, Service, Solver
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.model import RecursiveReasoner

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle
    from starlette.requests import Request
    from starlette.responses import Response

MAX_ONGOING = 256
RETRIES = 8
DEADLINE = 30.0
"""Seconds until a puzzle is answered with the best answer so far."""


class SolverReplica:
    """One replica: a solver behind a `Service`."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self._service = Service(Solver(RecursiveReasoner.from_pretrained(model), **options), max_queued=MAX_ONGOING)

    async def solve(self, puzzle: str, max_steps: int | None = None, deadline: float = DEADLINE) -> dict[str, Any]:
        """The solution of one puzzle, as `Solution.to_dict` gives it."""
        return (await self._service.solve(puzzle, max_steps=max_steps, deadline=deadline)).to_dict()

    async def __call__(self, request: Request) -> Response:
        """POST a `SolveRequest` to {"solutions": [...]}; 400 says what is wrong, 503 when busy, as `rtm serve` does."""
        from pydantic import ValidationError
        from starlette.responses import JSONResponse

        from rtm_kernels.serve.schema import LIMITS, Refused, SolveRequest, explained, unavailable

        body, refused = bytearray(), Refused(413, "body_too_large", f"a body has at most {LIMITS.body} bytes")
        async for part in request.stream():
            body += part
            if len(body) > LIMITS.body:
                return refused.response(uuid4().hex)
        try:
            asked = SolveRequest.model_validate_json(bytes(body))
            options = {"max_steps": asked.max_steps, "deadline": asked.deadline or DEADLINE}
            solutions = await self._service.solve_all(asked.puzzles, solver=asked.model, **options)
            return JSONResponse({"solutions": [solution.to_dict() for solution in solutions]})
        except ValidationError as error:
            refused = Refused(400, "invalid_request", explained(error.errors()))
        except InputError as error:
            refused = Refused(400, "invalid_request", str(error))
        except Overloaded as error:
            refused = unavailable("overloaded", str(error))
        return refused.response(uuid4().hex)

    def check_health(self) -> None:
        """Raise when the solver's thread has ended, so that Ray replaces the replica."""
        if self._service.failure is not None:
            raise BackendUnavailable(self._service.failure)


def application(
    model: str = "sudoku", *, replicas: int = 1, num_cpus: float = 1, num_gpus: float = 0, **options: Any
) -> Application:
    """A Ray Serve application that solves puzzles: `serve.run(application("sudoku", replicas=2))`.

    `options` go to `Solver`; `batch_invariant` is on unless switched off, so that no replica changes an answer.
    Over HTTP, POST {"puzzles": [...]}; from Python, `solve_all` or `handle.solve.remote(puzzle)`.

    Errors: `BackendUnavailable` without the package ray.
    """
    try:
        from ray import serve
    except ImportError:
        raise BackendUnavailable("ray is not installed: pip install 'rtm-kernels[ray]'") from None
    replica = serve.deployment(
        name="solver",
        num_replicas=replicas,
        max_ongoing_requests=MAX_ONGOING,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
    )(SolverReplica)
    return replica.bind(model, {"batch_invariant": True} | options)


def solve_all(handle: DeploymentHandle, puzzles: Sequence[str], **options: Any) -> list[dict[str, Any]]:
    """The solutions of `puzzles` in order, from any replica. Puzzles of a crashed replica are retried.

    Errors: that of the last try, when a puzzle failed nine times.
    """
    from ray.exceptions import RayActorError

    solutions: dict[int, dict[str, Any]] = {}
    for attempt in range(RETRIES + 1):
        asked = {i: handle.solve.remote(text, **options) for i, text in enumerate(puzzles) if i not in solutions}
        for index, response in asked.items():
            try:
                solutions[index] = response.result()
            except RayActorError:
                if attempt == RETRIES:
                    raise
    return [solutions[i] for i in range(len(puzzles))]
