"""The routes: solve, stream, models, health, metrics and the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from rtm_kernels import __version__
from rtm_kernels.access import Token
from rtm_kernels.errors import one_line
from rtm_kernels.serve.guard import Guard
from rtm_kernels.serve.jobs import Job
from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.metrics import CONTENT_TYPE_LATEST, Metrics
from rtm_kernels.serve.pool import Pool
from rtm_kernels.serve.refusal import Refused, body_of, headers_of
from rtm_kernels.serve.schema import Error, Health, Model, Models, SolveRequest, SolveResponse, solution_of

STATUSES = {
    400: "not valid JSON, or nested too deep", 401: "the token is missing or wrong", 404: "no such model",
    408: "the body came too slowly", 413: "the body, or puzzles x cells x steps, is too large",
    415: "the body is not application/json", 421: "not a loopback name in Host", 422: "a field is not allowed",
    431: "too many or too large headers", 503: "overloaded, starting or draining: try again after Retry-After",
}  # fmt: skip
CODES = {404: "not_found", 405: "method_not_allowed", 400: "not_json"}
MAX_ERRORS = 5


def build_app(pool: Pool, limits: Limits, metrics: Metrics, token: Token | None) -> Guard:
    """The ASGI application: the routes behind the guard."""
    app = FastAPI(
        title="rtm serve",
        version=__version__,
        description="Solves puzzles with recursive reasoning models; only `verified` answers were confirmed.",
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = Route
    add_handlers(app)
    add_solving(app, pool, limits)
    add_looking(app, pool, metrics)
    if token is not None:
        require_token(app)
    return Guard(app, limits, metrics, token)


class Body(Request):
    """A request whose body is parsed as the bytes that it is: a text made of it first could be four times as large."""

    async def json(self) -> Any:
        """See `Request.json`."""
        return from_json(await self.body(), cache_strings=False)


class Route(APIRoute):
    """A route that reads its body so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute.get_route_handler`."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(Body(request.scope, request.receive))

        return handler


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Error, "description": STATUSES[status]} for status in statuses}


def add_solving(app: FastAPI, pool: Pool, limits: Limits) -> None:
    """POST /v1/solve and /v1/stream."""
    refusals = responses(*STATUSES)

    def submit(request: Request, asked: SolveRequest) -> tuple[str, Job]:
        name = choose_model(pool, asked.model)
        model = pool.models[name]
        steps = asked.max_steps or model["default_max_steps"]
        work = len(asked.puzzles) * model["cells"] * steps
        if work > limits.work:
            raise Refused(413, "too_much_work", f"puzzles x cells x steps is {work}, at most {limits.work} is taken")
        request.state.log = {"model": name, "puzzles": len(asked.puzzles)}
        return name, pool.submit(name, asked.puzzles, steps, asked.deadline or limits.request)

    @app.post("/v1/solve", response_model=SolveResponse, responses=refusals, operation_id="solve")
    async def solve(request: Request, asked: SolveRequest) -> Response:
        """Solve the puzzles and answer when all are done, in their order."""
        name, job = submit(request, asked)
        found = sorted([outcome async for outcome in pool.outcomes(job)], key=lambda outcome: outcome[0])
        solutions = [solution_of(index, values) for index, values in found]
        answer = SolveResponse(request_id=request.state.request_id, model=name, solutions=solutions)
        return Response(answer.model_dump_json(), media_type="application/json")

    streamed: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {"schema": EVENT}}, "description": EVENTS}
    }

    @app.post("/v1/stream", response_class=StreamingResponse, responses=refusals | streamed, operation_id="stream")
    async def stream(request: Request, asked: SolveRequest) -> StreamingResponse:
        """Solve the puzzles and send each solution as it is done, as server-sent events."""
        name, job = submit(request, asked)
        events = sent_events(pool, job, name, request.state.request_id)
        return StreamingResponse(events, media_type="text/event-stream")


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


async def sent_events(pool: Pool, job: Job, name: str, request_id: str) -> AsyncIterator[str]:
    """One event per solution; a refusal in the middle becomes the last event."""
    count = 0
    try:
        async for index, values in pool.outcomes(job):
            count += 1
            yield f"event: solution\ndata: {solution_of(index, values).model_dump_json()}\n\n"
        last, data = "done", {"request_id": request_id, "model": name, "solutions": count}
    except Refused as error:
        last, data = "error", {"code": error.code, "message": error.message, "request_id": request_id}
    yield f"event: {last}\ndata: {json.dumps(data)}\n\n"


def choose_model(pool: Pool, asked: str | None) -> str:
    """The model asked for, by name, or the only one."""
    if asked is None and len(pool.models) == 1:
        return next(iter(pool.models))
    if asked not in pool.models:
        raise Refused(404, "unknown_model", f"name one of: {', '.join(pool.models)}")
    return asked


def add_looking(app: FastAPI, pool: Pool, metrics: Metrics) -> None:
    """GET /v1/models, /healthz and /metrics."""

    @app.get("/v1/models", responses=responses(401, 421, 431), operation_id="models")
    async def models() -> Models:
        """Every model that is served."""
        fields = Model.model_fields
        return Models(models=[Model(**{k: v for k, v in m.items() if k in fields}) for m in pool.models.values()])

    @app.get("/healthz", responses=responses(421, 431, 503), operation_id="health")
    async def health() -> Health:
        """200 when the golden puzzle of every model is solved with the same bits as at the start."""
        await pool.probe()
        return Health(status="ok")

    page: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", response_class=Response, responses=responses(401, 421, 431) | page, operation_id="metrics")
    async def prometheus() -> Response:
        """Counters in Prometheus's text format."""
        return Response(metrics.page(), headers={"content-type": CONTENT_TYPE_LATEST})


def add_handlers(app: FastAPI) -> None:
    """Every error as the same JSON, without paths, traces or what the caller sent."""

    def told(request: Request, error: Refused) -> Response:
        request.state.code = error.code
        body = body_of(error, request.state.request_id)
        headers = {name.decode(): value.decode() for name, value in headers_of(error, body)}
        return Response(body, error.status, headers)

    def error(request: Request, status: int, code: str, message: str) -> Response:
        return told(request, Refused(status, code, message))

    @app.exception_handler(Refused)
    async def refused(request: Request, found: Refused) -> Response:
        return told(request, found)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, found: RequestValidationError) -> Response:
        problems = found.errors()
        if any(problem["type"] == "json_invalid" for problem in problems):
            return error(request, 400, "not_json", "the body is not valid JSON")
        said = [f"{'.'.join(map(str, p['loc']))[:80]}: {p['msg']}"[:200] for p in problems[:MAX_ERRORS]]
        return error(request, 422, "invalid_request", one_line("; ".join(said)))

    @app.exception_handler(HTTPException)
    async def http(request: Request, found: HTTPException) -> Response:
        response = error(
            request, found.status_code, CODES.get(found.status_code, "refused"), one_line(str(found.detail))
        )
        response.headers.update(found.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failed(request: Request, _: Exception) -> Response:
        return error(request, 500, "internal", "the server failed on this request")


def require_token(app: FastAPI) -> None:
    """Say in the OpenAPI document that every route but /healthz takes a bearer token."""
    document = app.openapi()
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    document["paths"]["/healthz"]["get"]["security"] = []
