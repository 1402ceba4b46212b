"""The routes: solve, stream, models, health, metrics and the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from rtm_kernels import __version__, engine
from rtm_kernels.access import Token
from rtm_kernels.errors import one_line
from rtm_kernels.serve.front import Front
from rtm_kernels.serve.guard import OPEN_ROUTE, Guard
from rtm_kernels.serve.refusal import Refused
from rtm_kernels.serve.schema import Error, Health, Model, Models, Solution, SolveRequest, SolveResponse

CODES = {400: "not_json", 404: "not_found", 405: "method_not_allowed"}
MAX_ERRORS = 5
Responses = dict[int | str, dict[str, Any]]

REFUSALS: Responses = {
    "4XX": {"model": Error, "description": "The request is not allowed; `code` and `message` say why."},
    503: {"model": Error, "description": "Overloaded, unhealthy or stopping: try again after Retry-After seconds."},
}
EVENTS = "Events: `solution` with a Solution as data for each puzzle, then `done`, or `error` with an ErrorBody."
EVENT = {
    "type": "object",
    "description": "One server-sent event.",
    "properties": {
        "event": {"enum": ["solution", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}


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
    add_handlers(app)
    add_solving(app, front)
    add_state(app, front)
    if token is not None:
        document = app.openapi()
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        document["paths"][OPEN_ROUTE]["get"]["security"] = []
    return Guard(app, front.limits, token, front.metrics)


def add_solving(app: FastAPI, front: Front) -> None:
    """POST /v1/solve and /v1/stream."""

    async def submit(request: Request, asked: SolveRequest) -> tuple[Model, list[Future[engine.Solution]]]:
        model = front.choose(asked.model)
        request.state.log = {"model": model.name, "puzzles": len(asked.puzzles)}
        return model, await front.submit(model, asked)

    @app.post("/v1/solve", response_model=SolveResponse, operation_id="solve")
    async def solve(request: Request, asked: SolveRequest) -> Response:
        """Solve the puzzles and answer when all are done, in their order."""
        model, futures = await submit(request, asked)
        found = {index: solution async for index, solution in front.outcomes(model, futures)}
        solutions = [Solution.of(index, solution) for index, solution in sorted(found.items())]
        answer = SolveResponse(request_id=request.state.request_id, model=model.name, solutions=solutions)
        return Response(answer.model_dump_json(), media_type="application/json")

    async def events(request: Request, model: Model, futures: list[Future[engine.Solution]]) -> AsyncIterator[str]:
        request_id, last = request.state.request_id, "done"
        data: dict[str, Any] = {"request_id": request_id, "model": model.name, "solutions": len(futures)}
        try:
            async for index, solution in front.outcomes(model, futures):
                yield f"event: solution\ndata: {Solution.of(index, solution).model_dump_json()}\n\n"
        except Refused as error:
            last, data = "error", {"code": error.code, "message": error.message, "request_id": request_id}
        yield f"event: {last}\ndata: {json.dumps(data)}\n\n"

    streamed: Responses = {200: {"content": {"text/event-stream": {"schema": EVENT}}, "description": EVENTS}}

    @app.post("/v1/stream", response_class=StreamingResponse, responses=streamed, operation_id="stream")
    async def stream(request: Request, asked: SolveRequest) -> StreamingResponse:
        """Solve the puzzles and send each solution as it is done, as server-sent events."""
        return StreamingResponse(events(request, *await submit(request, asked)), media_type="text/event-stream")


def add_state(app: FastAPI, front: Front) -> None:
    """GET /v1/models, /healthz and /metrics."""

    @app.get("/v1/models", operation_id="models")
    async def models() -> Models:
        """Every model that is served."""
        return Models(models=list(front.models.values()))

    @app.get(OPEN_ROUTE, operation_id="health")
    async def health() -> Health:
        """200 when the golden puzzle of every model is solved with the same bits as at the start."""
        await front.probe()
        return Health(status="ok")

    page: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", response_class=Response, responses=page, operation_id="metrics")
    async def metrics() -> Response:
        """Counters in Prometheus's text format."""
        return Response(generate_latest(front.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})


def add_handlers(app: FastAPI) -> None:
    """Every error in the same JSON form, without paths, traces or input."""

    def told(request: Request, error: Refused, **headers: str) -> Response:
        request.state.code = error.code
        return Response(error.body(request.state.request_id), error.status, error.headers() | headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, found: Refused) -> Response:
        return told(request, found)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, found: RequestValidationError) -> Response:
        problems = found.errors()
        if any(problem["type"] == "json_invalid" for problem in problems):
            return told(request, Refused(400, "not_json", "the body is not valid JSON"))
        said = [f"{'.'.join(map(str, p['loc']))[:80]}: {p['msg']}"[:200] for p in problems[:MAX_ERRORS]]
        return told(request, Refused(422, "invalid_request", one_line("; ".join(said))))

    @app.exception_handler(HTTPException)
    async def http(request: Request, found: HTTPException) -> Response:
        code = CODES.get(found.status_code, "refused")
        return told(request, Refused(found.status_code, code, one_line(str(found.detail))), **(found.headers or {}))
