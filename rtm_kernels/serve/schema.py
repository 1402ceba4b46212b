"""Requests and responses as pydantic models; the OpenAPI document is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rtm_kernels import engine
from rtm_kernels.serve.limits import Limits

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
