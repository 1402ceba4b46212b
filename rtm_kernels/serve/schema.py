"""Requests and responses as pydantic models; the OpenAPI document is made of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from rtm_kernels import engine
from rtm_kernels.serve.limits import Limits

LIMITS = Limits()
Status = Literal["verified", "unverified", "non_finite", "invalid"]
Puzzle = Annotated[str, Field(min_length=1, max_length=LIMITS.text)]


class Strict(BaseModel):
    """No unknown fields, no coercion of one type into another."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SolveRequest(Strict):
    """Puzzles of one model, each as the text that `rtm solve` takes."""

    puzzles: list[Puzzle] = Field(
        min_length=1,
        max_length=LIMITS.puzzles,
        description="The puzzles, each as one string.",
        examples=[["53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"]],
    )
    model: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="A name that GET /v1/models lists; may be left out where only one is served."
    )
    max_steps: int | None = Field(
        default=None, ge=1, le=LIMITS.steps, description="Cap on ACT steps per puzzle; default the model's own."
    )
    deadline: float | None = Field(
        default=None,
        gt=0,
        le=LIMITS.request,
        allow_inf_nan=False,
        description="Seconds after which a puzzle comes back `unverified` with its best answer so far.",
    )


class Solution(Strict):
    """One puzzle's outcome: only `verified` answers were confirmed by the rules of the task."""

    index: int = Field(ge=0, description="Position of the puzzle in the request.")
    task: str
    input: str
    answer: str | None
    status: Status
    steps: int = Field(ge=0, description="ACT steps taken.")
    halt_probability: float | None
    seconds: float = Field(ge=0, description="From entering the batch to leaving it.")
    reason: str | None = Field(description="Why it stopped: a halting signal, max_steps, non_finite or deadline.")
    answer_step: int
    residual: float | None
    error: str | None = Field(default=None, description="What is wrong with an invalid puzzle.")

    @classmethod
    def of(cls, index: int, solution: engine.Solution) -> Solution:
        """The solution of the engine, with its position."""
        known = {name: value for name, value in vars(solution).items() if name in cls.model_fields}
        return cls(index=index, **known)


class SolveResponse(Strict):
    """The solutions in the order of the puzzles."""

    request_id: str
    model: str
    solutions: list[Solution]


class Model(Strict):
    """A model that is served."""

    name: str
    task: str
    arch: str
    parameters: int
    cells: int = Field(description="Length of a puzzle in cells.")
    vocabulary: str
    default_max_steps: int
    executor: str
    device: str
    halting: str


class Models(Strict):
    """Every model that is served."""

    models: list[Model]


class Health(Strict):
    """The golden puzzle of every model was solved with the same bits as when the server started."""

    status: Literal["ok"]


class ErrorBody(Strict):
    """`code` names the kind of error, `message` says what is wrong and what is allowed."""

    code: str
    message: str
    request_id: str


class Error(Strict):
    """What every refusal looks like."""

    error: ErrorBody
