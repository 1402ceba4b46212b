"""The tools: each reads a puzzle, solves it and says whether the rules confirm the answer; arguments are strict."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from mcp_types import CallToolResult, TextContent
from pydantic import BaseModel, Field

from rtm_kernels.agent.solvers import Solvers
from rtm_kernels.data.arc import COLOURS, SIDE, Augmentation, Tally, check_grid
from rtm_kernels.data.maze import Maze
from rtm_kernels.data.task import Task
from rtm_kernels.engine import Solution
from rtm_kernels.errors import require
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
ARC_NOTE = "ARC has no rule that checks an answer: these are candidates, none is verified"

SudokuText = Annotated[
    Text, Field(description="81 characters (or 16, 256, 625), or a grid of lines; . 0 * or _ for a blank.")
]
MazeText = Annotated[
    Text, Field(description="A square of lines: # wall, . or space open, one S and one G; or the same in one line.")
]


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


class Tools:
    """The tools over the models of `solvers`; each method's docstring is what an agent reads."""

    def __init__(self, solvers: Solvers) -> None:
        self._solvers = solvers

    async def solve_sudoku(self, puzzle: SudokuText, max_steps: Steps = None) -> Annotated[CallToolResult, Solved]:
        """Solve a Sudoku with a small recursive model and check the answer by the rules.

        Trust the answer only when `verified` is true; otherwise it is the best candidate and `fault` says what is
        wrong with it.
        """
        size = math.isqrt(sum(not character.isspace() and character not in "|-+" for character in puzzle))
        task = "sudoku" if size not in (4, 16, 25) else f"sudoku{size}"
        (solution,) = await self._solvers.solve(task, [puzzle], max_steps)
        found = self._solvers.of(task).task
        return told(found, solution, Solved(**common(found, solution)))

    async def solve_maze(self, maze: MazeText, max_steps: Steps = None) -> Annotated[CallToolResult, SolvedMaze]:
        """Find a shortest path through a maze with a small recursive model and check it.

        `verified` means a shortest path. When it is false, `path_steps` tells whether the marked cells (o) lead from
        S to G at all, and how much longer than `shortest_steps` that way is.
        """
        name = maze_task(maze, self._solvers)
        (solution,) = await self._solvers.solve(name, [maze], max_steps)
        task = self._solvers.of(name).task
        assert isinstance(task, Maze)
        marked, shortest = task.path_steps(solution.input, solution.answer)
        values = common(task, solution) | {"path_steps": marked, "shortest_steps": shortest}
        return told(task, solution, SolvedMaze(**values))

    async def solve_arc_candidates(
        self, test_input: Grid, candidates: Candidates = 2, augmentations: Augmentations = 8, max_steps: Steps = None
    ) -> Annotated[CallToolResult, ArcAnswer]:
        """Propose answers to an ARC grid: recoloured and turned copies are run, and the answers vote.

        Nothing can verify an ARC answer; check the candidates against the demonstrations, which the model does not see.
        """
        self._solvers.of("arc")
        grid = check_grid("test_input", test_input)
        rng = np.random.default_rng(0)
        ways = [Augmentation(), *(Augmentation.random(rng) for _ in range(augmentations - 1))]
        texts = ["/".join("".join(map(str, row)) for row in way.apply(grid).tolist()) for way in ways]
        solutions = await self._solvers.solve("arc", texts, max_steps)
        tally = Tally()
        for way, solution in zip(ways, solutions, strict=True):
            if solution.answer:
                answer = np.array([list(row) for row in solution.answer.split("/")], dtype=np.uint8)
                tally.add(way.invert(answer), solution.halt_probability or 0.0)
        found = [
            ArcCandidate(grid=answer.tolist(), votes=votes, halt_probability=mean)
            for answer, votes, mean in tally.ranked()[:candidates]
        ]
        summary = ArcAnswer(task="arc", verified=False, note=ARC_NOTE, runs=len(ways), candidates=found)
        lines = [f"{ARC_NOTE}."]
        for number, candidate in enumerate(found, start=1):
            lines += [f"candidate {number}: {candidate.votes} of {len(ways)} runs"]
            lines += ["".join(map(str, row)) for row in candidate.grid]
        return result("\n".join(lines), summary)

    async def list_models(self) -> Annotated[CallToolResult, Models]:
        """The models that are loaded here, by task, and the tasks that have none."""
        loaded, names = self._solvers.loaded, self._solvers.names
        models = [Model.of(names[task], solver) for task, solver in loaded.items()]
        missing = [task for task in ("sudoku", "maze", "arc") if task not in loaded]
        lines = [f"{m.task}: {m.name}, {m.parameters:,} parameters, {m.default_max_steps} steps" for m in models]
        lines += [f"{task}: no model (start with --model {task}=FOLDER)" for task in missing]
        return result("\n".join(lines), Models(models=models, tasks_without_model=missing))


def maze_task(maze: str, solvers: Solvers) -> str:
    """The maze task whose side fits the text, or `maze` when none that is loaded does."""
    lines = [line for line in maze.splitlines() if line]
    cells = len(lines) ** 2 if len(lines) > 1 else len(maze.strip("\n"))
    mazes = [solver.task for solver in solvers.loaded.values() if isinstance(solver.task, Maze)]
    fits = [task.name for task in mazes if task.seq_len == cells]
    sides = ", ".join(str(task.side) for task in mazes)
    require(bool(fits) or not mazes, "maze", f"{cells} cells", f"the loaded models take a side of {sides}")
    return fits[0] if fits else "maze"


def common(task: Task, solution: Solution) -> dict[str, Any]:
    """The fields of `Solved`."""
    verdict = None if solution.answer is None else task.verify(solution.input, solution.answer)
    return {
        "task": task.name,
        "verified": solution.status == "verified",
        "status": solution.status,
        "answer": solution.answer,
        "fault": "no answer" if verdict is None else verdict.reason,
        "steps": solution.steps,
        "stopped_by": solution.reason,
        "halt_probability": solution.halt_probability,
    }


def told(task: Task, solution: Solution, solved: Solved) -> CallToolResult:
    """The result with a short text: the verdict first, then the grid."""
    steps = f"{solved.steps} step{'s' * (solved.steps != 1)}"
    if solved.verified:
        head = f"VERIFIED by the rules, after {steps}."
    else:
        head = f"NOT VERIFIED after {steps} (stopped by {solved.stopped_by}): {solved.fault}. Do not present as solved."
    if solution.answer is not None:
        head += "\n" + ("" if solved.verified else "Best candidate:\n") + task.render(solution.input, solution.answer)
    return result(head, solved)


def result(text: str, content: BaseModel) -> CallToolResult:
    """Text for reading, and the same as structured content."""
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=content.model_dump())
