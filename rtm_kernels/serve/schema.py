"""Limits, requests, responses and refusals; the OpenAPI document is made of the pydantic models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from rtm_kernels import engine
from rtm_kernels.data.maze import SIDES
from rtm_kernels.errors import one_line

MAX_FAULTS = 5
"""Faults that one message names."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    Bytes: `body` and `header_block` of a request; `dropped` is what a client may still send after a refusal.
    A request: `puzzles`, characters of a puzzle (`text`: cells of the largest maze and what separates them), ACT
    `steps`. A model: `cells` of a puzzle. At a time:
    `queued` puzzles that wait, `requests` at work, `connections`.
    Seconds: `read` for a body, `request` to solve it (also the largest deadline), `probe` for the golden puzzle,
    `drain` from SIGTERM to the last answer, `keep_alive` of an idle connection.
    """

    body: int = 256 << 10
    header_block: int = 16 << 10
    dropped: int = 16 << 20
    puzzles: int = 64
    text: int = 2 * SIDES[-1] ** 2
    steps: int = 64
    cells: int = SIDES[-1] ** 2
    queued: int = 256
    requests: int = 32
    connections: int = 512
    read: float = 10.0
    request: float = 30.0
    probe: float = 5.0
    drain: float = 3.5
    keep_alive: int = 5


LIMITS = Limits()
Puzzle = Annotated[str, Field(min_length=1, max_length=LIMITS.text)]


class Strict(BaseModel):
    """No unknown fields, no coercion of one type into another."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class SolveRequest(Strict):
    """Puzzles of one model, each as the text that `rtm solve` takes."""

    puzzles: list[Puzzle] = Field(
        min_length=1,
        max_length=LIMITS.puzzles,
        examples=[["53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"]],
    )
    model: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """A name that GET /v1/models lists; may be left out where only one is served."""
    max_steps: int | None = Field(None, ge=1, le=LIMITS.steps)
    """Cap on ACT steps per puzzle; default the model's own."""
    deadline: float | None = Field(None, gt=0, le=LIMITS.request, allow_inf_nan=False)
    """Seconds after which a puzzle comes back `unverified` with its best answer so far."""


@dataclass(frozen=True, kw_only=True)
class Solution(engine.Solution):
    """The outcome of the puzzle at `index` of the request. Only `verified` answers were confirmed by a rule checker."""

    index: int


class SolveResponse(Strict):
    """The solutions in the order of the puzzles."""

    request_id: str
    model: str
    solutions: list[Solution]


class Model(Strict):
    """A model that is served: `cells` is the length of a puzzle, `rollouts` the most runs per puzzle."""

    name: str
    task: str
    arch: str
    parameters: int
    cells: int
    vocabulary: str
    default_max_steps: int
    rollouts: int
    executor: str
    device: str
    halting: str

    @classmethod
    def of(cls, name: str, solver: engine.Solver) -> Model:
        """The description of a solver."""
        model, task = solver.model, solver.task
        return cls(
            name=name,
            task=task.name,
            arch=model.config.arch,
            parameters=sum(p.numel() for p in model.parameters()),
            cells=task.seq_len,
            vocabulary=task.vocabulary,
            default_max_steps=min(model.config.halt_max_steps, solver.policy.max_steps),
            rollouts=solver.rollouts.count,
            executor=solver.executor.name,
            device=str(model.device),
            halting=str(solver.policy),
        )


class ErrorBody(Strict):
    """`code` names the kind of error, `message` says what is wrong and what is allowed."""

    code: str
    message: str
    request_id: str


class Error(Strict):
    """What every refusal looks like."""

    error: ErrorBody


class Refused(Exception):
    """A request that is answered with `status` and an error of `code`; `headers` go with it."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def response(self, request_id: str) -> JSONResponse:
        """`{"error": {"code", "message", "request_id"}}`."""
        error = {"code": self.code, "message": self.message, "request_id": request_id}
        return JSONResponse({"error": error}, self.status, self.headers)


def unavailable(code: str, message: str, retry_after: int = 1) -> Refused:
    """503: the request is sound, and may be sent again in `retry_after` seconds."""
    return Refused(503, code, message, {"retry-after": str(retry_after)})


def explained(faults: list[Any]) -> str:
    """One line with each argument at fault and what is wrong with it, of the errors that pydantic lists; at most 5."""
    parts = [f"{'.'.join(map(str, f['loc']))[:80] or 'arguments'}: {f['msg']}"[:200] for f in faults[:MAX_FAULTS]]
    more = [f"{len(faults) - MAX_FAULTS} more faults"] if len(faults) > MAX_FAULTS else []
    return one_line("; ".join(parts + more))
