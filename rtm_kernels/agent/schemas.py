"""Arguments and results of the tools, as strict schemas."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rtm_kernels.data.arc import COLOURS, SIDE

MAX_TEXT = 1 << 16
"""Characters of a puzzle."""
MAX_STEPS = 64
"""ACT steps of a puzzle."""
MAX_CANDIDATES = 8
MAX_AUGMENTATIONS = 32
MAX_PAIRS = 16
"""Demonstrations of an ARC task."""


class Strict(BaseModel):
    """No unknown fields, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, strict=True)]
Steps = Annotated[
    Annotated[int, Field(ge=1, le=MAX_STEPS, strict=True)] | None,
    Field(description="Cap on ACT steps; lowers the server's own."),
]
Colour = Annotated[int, Field(ge=0, lt=COLOURS, strict=True)]
Row = Annotated[list[Colour], Field(min_length=1, max_length=SIDE)]
Grid = Annotated[list[Row], Field(min_length=1, max_length=SIDE, description="Rows of colours 0 to 9.")]
Candidates = Annotated[int, Field(ge=1, le=MAX_CANDIDATES, strict=True, description="How many answers to return.")]
Augmentations = Annotated[
    int, Field(ge=1, le=MAX_AUGMENTATIONS, strict=True, description="How many recoloured and turned runs vote.")
]


class Pair(Strict):
    """One demonstration."""

    input: Grid
    output: Grid


Pairs = Annotated[
    list[Pair], Field(max_length=MAX_PAIRS, description="Demonstrations; candidates are checked against them.")
]


class Solved(Strict):
    """An answer and whether the rules of the task confirm it."""

    task: str
    verified: bool = Field(description="True only when the rules of the task confirm the answer.")
    status: str = Field(description="verified, unverified or non_finite")
    answer: str | None = Field(description="One character per cell, row after row; null without an answer.")
    fault: str = Field(description="The first rule that the answer breaks; empty when verified.")
    steps: int = Field(description="ACT steps taken.")
    stopped_by: str | None = Field(description="The halting signal, max_steps, deadline or non_finite.")
    halt_probability: float | None = Field(description="The model's own confidence; no proof of anything.")


class SolvedMaze(Solved):
    """A maze's answer; `verified` asks for a shortest path."""

    path_steps: int | None = Field(description="Steps from S to G along the marked cells; null when they do not lead.")
    shortest_steps: int | None = Field(description="Steps of a shortest path; null when there is none.")


class ArcCandidate(Strict):
    """A possible answer."""

    grid: list[list[int]]
    votes: int
    halt_probability: float
    faults: list[str] = Field(description="How it differs from the demonstrations; an empty list proves nothing.")


class ArcAnswer(Strict):
    """Candidates, best first, never verified."""

    task: str
    verified: bool
    note: str
    runs: int
    candidates: list[ArcCandidate]


class ModelInfo(Strict):
    """One model."""

    name: str
    task: str
    parameters: int
    max_steps: int
    rollouts: int
    executor: str
    device: str


class Models(Strict):
    """What can be solved here."""

    models: list[ModelInfo]
    tasks_without_model: list[str]
