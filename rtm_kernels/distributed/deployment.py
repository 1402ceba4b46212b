"""The solver as a Ray Serve deployment: replicas that share the requests, each with one continuous batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rtm_kernels.engine import Overloaded, Service, Solver
from rtm_kernels.errors import BackendUnavailable, InputError, printable, require
from rtm_kernels.model import RecursiveReasoner

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle
    from starlette.requests import Request
    from starlette.responses import Response

MAX_ONGOING = 256
MAX_BODY = 1 << 20
MAX_PUZZLES = 64
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
        """POST {"puzzles": [...], "max_steps": N?} to {"solutions": [...]}; 400 says what is wrong, 503 when busy."""
        from starlette.responses import JSONResponse

        try:
            puzzles, max_steps = await read(request)
            solutions = await self._service.solve_all(puzzles, max_steps=max_steps, deadline=DEADLINE)
        except InputError as error:
            return JSONResponse({"error": printable(str(error))}, status_code=400)
        except Overloaded as error:
            return JSONResponse({"error": str(error)}, status_code=503, headers={"Retry-After": "1"})
        return JSONResponse({"solutions": [solution.to_dict() for solution in solutions]})

    def check_health(self) -> None:
        """Raise when the solver's thread has ended, so that Ray replaces the replica."""
        if self._service.failure is not None:
            raise BackendUnavailable(self._service.failure)


async def read(request: Request) -> tuple[list[str], int | None]:
    """The puzzles and the cap of a request. Raises `InputError` for anything else."""
    size = 0
    parts: list[bytes] = []
    async for part in request.stream():
        size += len(part)
        require(size <= MAX_BODY, "body", f"{size} bytes", f"at most {MAX_BODY}")
        parts.append(part)
    try:
        body = json.loads(b"".join(parts))
    except (ValueError, RecursionError):
        raise InputError("the body is not JSON") from None
    fits = isinstance(body, dict) and set(body) <= {"puzzles", "max_steps"} and isinstance(body.get("puzzles"), list)
    require(fits, "body", "...", 'expected {"puzzles": [...], "max_steps": N}')
    puzzles, max_steps = body["puzzles"], body.get("max_steps")
    require(1 <= len(puzzles) <= MAX_PUZZLES, "puzzles", len(puzzles), f"from 1 to {MAX_PUZZLES}")
    require(all(isinstance(puzzle, str) for puzzle in puzzles), "puzzles", "...", "expected strings")
    whole = isinstance(max_steps, int) and not isinstance(max_steps, bool)
    require(max_steps is None or whole, "max_steps", max_steps, "an integer")
    return puzzles, max_steps


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
    failure: Exception | None = None
    for _ in range(RETRIES + 1):
        asked = {i: handle.solve.remote(text, **options) for i, text in enumerate(puzzles) if i not in solutions}
        if not asked:
            return [solutions[i] for i in range(len(puzzles))]
        for index, response in asked.items():
            try:
                solutions[index] = response.result()
            except RayActorError as error:
                failure = error
    if failure is not None and len(solutions) < len(puzzles):
        raise failure
    return [solutions[i] for i in range(len(puzzles))]
