"""Mazes of every side in one file, for models whose weights know no size."""

from __future__ import annotations

from rtm_kernels.data.maze import SIDES, Maze
from rtm_kernels.data.maze_forms import plain, side_of
from rtm_kernels.data.task import Task, get_task, register_reader


class AnyMaze(Maze):
    """Reads mazes of every side; everything else is that of `maze` (side 30)."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = f"a square, of side {SIDES[0]} to {SIDES[-1]}"

    def of_side(self, side: int) -> Maze | None:
        task = get_task("maze" if side == 30 else f"maze{side}") if side in SIDES else None
        return task if isinstance(task, Maze) else None

    def sized(self, text: str) -> Task:
        """The task of the side of `text`, this one where it has none."""
        return self.of_side(side_of(plain(text))) or self


register_reader(Maze, AnyMaze())
