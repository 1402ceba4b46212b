"""The tools: each reads a puzzle, solves it and says whether the rules confirm the answer."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from mcp_types import CallToolResult, TextContent
from pydantic import BaseModel, Field

from rtm_kernels.agent import arc
from rtm_kernels.agent.schemas import (
    ArcAnswer,
    ArcCandidate,
    Augmentations,
    Candidates,
    Grid,
    Models,
    Pairs,
    Solved,
    SolvedMaze,
    Steps,
    Text,
)
from rtm_kernels.agent.solvers import Solvers
from rtm_kernels.data.arc import Tally, check_grid
from rtm_kernels.data.maze import Maze
from rtm_kernels.data.task import Task
from rtm_kernels.engine import Solution
from rtm_kernels.errors import require
from rtm_kernels.serve.schema import Model

ARC_NOTE = "ARC has no rule that checks an answer: these are candidates, none is verified"

SudokuText = Annotated[
    Text, Field(description="81 characters (or 16, 256, 625), or a grid of lines; . 0 * or _ for a blank.")
]
MazeText = Annotated[
    Text, Field(description="A square of lines: # wall, . or space open, one S and one G; or the same in one line.")
]


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
        self, test_input: Grid, train: Pairs | None = None, candidates: Candidates = 2,
        augmentations: Augmentations = 8, max_steps: Steps = None,
    ) -> Annotated[CallToolResult, ArcAnswer]:  # fmt: skip
        """Propose answers to an ARC grid: recoloured and turned copies are run, and the answers vote.

        Nothing can verify an ARC answer. Demonstrations given in `train` are used to point out candidates of another
        size, or with colours, that they do not suggest; the model itself sees `test_input` alone.
        """
        self._solvers.of("arc")
        grid = check_grid("test_input", test_input)
        pairs = [(check_grid("input", pair.input), check_grid("output", pair.output)) for pair in train or []]
        ways = arc.augmentations(augmentations)
        texts = [arc.text_of(way.apply(grid)) for way in ways]
        solutions = await self._solvers.solve("arc", texts, max_steps)
        tally = Tally()
        for way, solution in zip(ways, solutions, strict=True):
            if solution.answer:
                tally.add(way.invert(arc.grid_of(solution.answer)), solution.halt_probability or 0.0)
        found = [
            ArcCandidate(
                grid=answer.tolist(), votes=votes, halt_probability=mean, faults=arc.faults(answer, grid, pairs)
            )
            for answer, votes, mean in tally.ranked()[:candidates]
        ]
        summary = ArcAnswer(task="arc", verified=False, note=ARC_NOTE, runs=len(ways), candidates=found)
        lines = [f"{ARC_NOTE}."]
        for number, candidate in enumerate(found, start=1):
            against = f"; against it: {'; '.join(candidate.faults)}" if candidate.faults else ""
            lines += [f"candidate {number}: {candidate.votes} of {len(ways)} runs{against}"]
            lines += [arc.text_of(np.array(candidate.grid)).replace("/", "\n")]
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
    if any(isinstance(s.task, Maze) and s.reader is not s.task for s in solvers.loaded.values()):
        return Maze().sized(maze).name
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
