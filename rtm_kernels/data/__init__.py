"""Puzzle tasks and data sets, numpy only: importing this package needs no torch."""

from rtm_kernels.data import sudoku
from rtm_kernels.data.task import Puzzle, Task, Verdict, get_task, register, task_names

__all__ = ["Puzzle", "Task", "Verdict", "get_task", "register", "sudoku", "task_names"]
