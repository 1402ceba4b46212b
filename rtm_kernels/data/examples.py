"""The example puzzles that ship with the package."""

from __future__ import annotations

from importlib.resources import files

from rtm_kernels.data.task import Puzzle, get_task
from rtm_kernels.errors import one_of


def example_names() -> tuple[str, ...]:
    """Names of the tasks that have example puzzles."""
    folder = files("rtm_kernels") / "assets" / "examples"
    return tuple(sorted(entry.name.removesuffix(".csv") for entry in folder.iterdir() if entry.name.endswith(".csv")))


def example_puzzles(task: str = "sudoku") -> list[Puzzle]:
    """The example puzzles of a task with their solutions. Raises `InputError` for a task without any."""
    one_of("task", task, example_names())
    text = (files("rtm_kernels") / "assets" / "examples" / f"{task}.csv").read_text(encoding="utf-8")
    return list(get_task(task).reader().parse(text))
