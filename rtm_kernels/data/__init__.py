"""Puzzle tasks and data sets, numpy only: importing this package needs no torch."""

from rtm_kernels.data import arc, maze, maze_any, sudoku
from rtm_kernels.data.task import Puzzle, Task, Verdict, get_task, register, task_names

__all__ = ["Puzzle", "Task", "Verdict", "arc", "get_task", "maze", "maze_any", "register", "sudoku", "task_names"]
