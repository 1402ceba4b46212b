"""Mazes of every side in one file, for models whose weights know no size."""

from __future__ import annotations

import math

from rtm_kernels.data.maze import SIDES, Maze
from rtm_kernels.data.maze_forms import plain
from rtm_kernels.data.task import Puzzle, Task, get_task, register_reader


def side_of(text: str) -> int:
    """The side of a maze: grid lines, or one line whose length is a square number; 0 when it is none."""
    lines = [line for line in text.splitlines() if line]
    side = len(lines) if len(lines) > 1 else math.isqrt(len(lines[0])) if lines else 0
    cells = sum(map(len, lines)) if len(lines) == 1 else side * side
    return side if side in SIDES and cells == side * side else 0


class AnyMaze(Maze):
    """Reads mazes of every side; everything else is that of `maze` (side 30)."""

    def sized(self, text: str) -> Task:
        """The task of the side of `text`, this one where it has none."""
        side = side_of(text)
        return get_task("maze" if side == 30 else f"maze{side}") if side else self

    def _checked(self, number: int, text: str, solution: str, fault: str = "") -> Puzzle:
        text = plain(text)
        task = self.sized(text)
        assert isinstance(task, Maze)
        if isinstance(task, AnyMaze) and not fault:
            cells, sides = len(text.replace("\n", "")), f", of side {SIDES[0]} to {SIDES[-1]}"
            fault = f"puzzle length={cells} is not allowed: a square{sides}, and not a blank line between its rows"
        return Maze._checked(task, number, text, solution, fault)

    def _whole(self, line: str) -> bool:
        """A line with S and G of a square length is a maze, others are rows of one; so is an open row of a grid."""
        named = set("SsGgEe") & set(line)
        return len(named) >= 2 and bool(side_of(line))

    def _complete(self, rows: list[str]) -> bool:
        return len(rows) >= max(map(len, rows)) or len(rows) > SIDES[-1]


register_reader(Maze, AnyMaze())
