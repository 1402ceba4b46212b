"""Pools of puzzles with their solutions: what the sources of a recipe hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rtm_kernels.data import maze, sudoku
from rtm_kernels.data.task import Pair, Task
from rtm_kernels.errors import require
from rtm_kernels.train.schema import Source


def load_pool(source: Source) -> Pair:
    """Tokens of the puzzles and of the solutions of a source, uint8 [N, seq_len] each.

    Errors: `InputError` when a csv file cannot be read, or holds a Sudoku without a unique solution or a maze without
    a path.
    """
    if source.task == "maze":
        return _mazes(source)
    puzzles, solutions = _sudokus(source)
    return puzzles + np.uint8(1), solutions + np.uint8(1)


def task_of_sources(sources: Sequence[Source]) -> Task:
    """The task that all sources share. Errors: `InputError` when they differ."""
    kinds = sorted({(source.task, source.size) for source in sources})
    require(len(kinds) == 1, "sources", kinds, "one task and size for all sources and the test")
    kind, size = kinds[0]
    return maze.Maze(size) if kind == "maze" else sudoku.Sudoku(size)


def _sudokus(source: Source) -> Pair:
    """Puzzles and solutions, 0 = blank."""
    if source.path is None:
        return sudoku.generate(
            source.count, seed=source.seed, difficulty=source.difficulty, clues=source.clues, size=source.size
        )
    puzzles, solutions = sudoku.solve_missing(*sudoku.read_boards(source.path, size=source.size), source.path)
    return puzzles[: source.count], solutions[: source.count]


def _mazes(source: Source) -> Pair:
    """Mazes, and the shortest path of each that `maze.solve` prefers."""
    if source.path is None:
        return maze.generate(source.count, seed=source.seed, side=source.size, path_cells=source.path_cells)
    task = maze.Maze(source.size)
    mazes = np.stack([task.encode(puzzle.text) for puzzle in task.read(source.path)])[: source.count]
    return mazes, maze.solve(mazes.reshape(-1, source.size, source.size)).reshape(mazes.shape)
