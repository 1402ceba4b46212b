"""Arguments and results of the tools, as strict schemas."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rtm_kernels.data.arc import COLOURS, SIDE
from rtm_kernels.serve.schema import Model, Strict

Text = Annotated[str, Field(min_length=1, max_length=1 << 16, strict=True)]
Steps = Annotated[
    Annotated[int, Field(ge=1, le=64, strict=True)] | None,
    Field(description="Cap on ACT steps; lowers the server's own."),
]
Row = Annotated[list[Annotated[int, Field(ge=0, lt=COLOURS, strict=True)]], Field(min_length=1, max_length=SIDE)]
Grid = Annotated[list[Row], Field(min_length=1, max_length=SIDE, description="Rows of colours 0 to 9.")]
Candidates = Annotated[int, Field(ge=1, le=8, strict=True, description="How many answers to return.")]
Augmentations = Annotated[int, Field(ge=1, le=32, strict=True, description="How many recoloured and turned runs vote.")]


class Pair(Strict):
    """One demonstration."""

    input: Grid
    output: Grid


Pairs = Annotated[list[Pair], Field(max_length=16, description="Demonstrations; candidates are checked against them.")]


class Solved(Strict):
    """An answer and whether the rules of the task confirm it."""

    task: str
    verified: bool
    """True only when the rules of the task confirm the answer."""
    status: str
    """verified, unverified or non_finite"""
    answer: str | None
    """One character per cell, row after row; null without an answer."""
    fault: str
    """The first rule that the answer breaks; empty when verified."""
    steps: int
    """ACT steps taken."""
    stopped_by: str | None
    """The halting signal, max_steps, deadline or non_finite."""
    halt_probability: float | None
    """The model's own confidence; no proof of anything."""


class SolvedMaze(Solved):
    """A maze's answer; `verified` asks for a shortest path."""

    path_steps: int | None
    """Steps from S to G along the marked cells; null when they do not lead."""
    shortest_steps: int | None
    """Steps of a shortest path; null when there is none."""


class ArcCandidate(Strict):
    """A possible answer."""

    grid: list[list[int]]
    votes: int
    halt_probability: float
    faults: list[str]
    """How it differs from the demonstrations; an empty list proves nothing."""


class ArcAnswer(Strict):
    """Candidates, best first, never verified."""

    task: str
    verified: bool
    note: str
    runs: int
    candidates: list[ArcCandidate]


class Models(Strict):
    """What can be solved here."""

    models: list[Model]
    tasks_without_model: list[str]
