"""The routes: solve, stream, models, health, metrics and the OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from rtm_kernels import __version__, engine
from rtm_kernels.access import Token
from rtm_kernels.errors import one_line
from rtm_kernels.serve.front import Front
from rtm_kernels.serve.guard import OPEN_ROUTE, Guard
from rtm_kernels.serve.schema import Error, Model, Refused, SolveRequest, SolveResponse, explained

CODES = {404: "not_found", 405: "method_not_allowed"}
Responses = dict[int | str, dict[str, Any]]
REFUSALS: Responses = {
    "4XX": {"model": Error, "description": "The request is not allowed; `code` and `message` say why."},
    503: {"model": Error, "description": "Overloaded, unhealthy or stopping: try again after Retry-After seconds."},
}
EVENTS: Responses = {
    200: {
        "content": {"text/event-stream": {}},
        "description": "Events: `solution` with a Solution as data for each puzzle, then `done`, or `error`.",
    }
}
PAGE: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def build_app(front: Front, token: Token | None) -> Guard:
    """The ASGI application: the routes behind the guard."""
    app = FastAPI(
        title="rtm serve",
        version=__version__,
        description="Solves puzzles with recursive reasoning models; only `verified` answers were confirmed.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=REFUSALS,
    )
    for kind in (Refused, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, refuse)

    async def submit(request: Request, asked: SolveRequest) -> tuple[Model, list[Future[engine.Solution]]]:
        model = front.choose(asked.model)
        request.state.log.update(model=model.name, puzzles=len(asked.puzzles))
        return model, await front.submit(model, asked)

    @app.post("/v1/solve", operation_id="solve")
    async def solve(request: Request, asked: SolveRequest) -> SolveResponse:
        """Solve the puzzles and answer when all are done, in their order."""
        model, futures = await submit(request, asked)
        found = [solution async for solution in front.outcomes(model, futures)]
        found.sort(key=lambda solution: solution.index)
        return SolveResponse(request_id=request.state.request_id, model=model.name, solutions=found)

    async def events(request: Request, model: Model, futures: list[Future[engine.Solution]]) -> AsyncIterator[str]:
        last, data = "done", {"model": model.name, "solutions": len(futures)}
        try:
            async for solution in front.outcomes(model, futures):
                yield f"event: solution\ndata: {to_json(solution, inf_nan_mode='null').decode()}\n\n"
        except Refused as error:
            last, data = "error", {"code": error.code, "message": error.message}
        data["request_id"] = request.state.request_id
        yield f"event: {last}\ndata: {to_json(data).decode()}\n\n"

    @app.post("/v1/stream", response_class=StreamingResponse, responses=EVENTS, operation_id="stream")
    async def stream(request: Request, asked: SolveRequest) -> StreamingResponse:
        """Solve the puzzles and send each solution as it is done, as server-sent events."""
        return StreamingResponse(events(request, *await submit(request, asked)), media_type="text/event-stream")

    @app.get("/v1/models", operation_id="models")
    async def models() -> dict[str, list[Model]]:
        """Every model that is served."""
        return {"models": list(front.models.values())}

    @app.get(OPEN_ROUTE, operation_id="health")
    async def health() -> dict[str, str]:
        """200 when the golden puzzle of every model is solved with the same bits as at the start."""
        await front.probe()
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses=PAGE, operation_id="metrics")
    async def metrics() -> Response:
        """Counters in Prometheus's text format."""
        return Response(generate_latest(front.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    return Guard(app, front.limits, token, front.metrics.record)


async def refuse(request: Request, found: Exception) -> Response:
    """Every error in the same JSON form, without paths, traces or input."""
    if isinstance(found, RequestValidationError):
        if any(fault["type"] == "json_invalid" for fault in found.errors()):
            found = Refused(400, "not_json", "the body is not valid JSON")
        else:
            found = Refused(422, "invalid_request", explained(list(found.errors())))
    elif isinstance(found, HTTPException):
        code, headers = CODES.get(found.status_code, "not_json"), dict(found.headers or {})
        found = Refused(found.status_code, code, one_line(str(found.detail)), headers)
    assert isinstance(found, Refused)
    request.state.log["code"] = found.code
    return found.response(request.state.request_id)
