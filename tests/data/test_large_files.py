"""What reading a file costs, in calls of functions: so many for each line, whatever the lines are."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from rtm_kernels.data import get_task
from rtm_kernels.errors import InputError

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SNAKE = "/".join(("." * 30, "." + "#" * 29, "." * 30, "#" * 29 + ".")[i % 4] for i in range(30)).replace("/", "")
MAZE = "S" + SNAKE[1:-1] + "G"
ANSWER = MAZE.replace(".", "o")

FAULT, BOARD = 50, 60
"""Calls for a line that is skipped or told of, and for a Sudoku or a maze of 900 cells."""

LINES = {
    "blank": ("", "\n", FAULT),
    "one character": ("", "1\n", FAULT),
    "short fields": ("puzzle,solution,rating\n", "x,y,z\n", FAULT),
    "contradictory": ("", f"55{PUZZLE[2:]}\n", 2 * BOARD),
    "table of Sudokus": ("puzzle,solution,rating\n", f'{PUZZLE},"",3\n', BOARD),
    "grids": ("", "53..7....\n", FAULT),
    "mazes": ("", f"{MAZE}\n", BOARD),
    "long ways": ("puzzle,solution\n", f"{MAZE},{ANSWER}\n", 3 * BOARD),
}


def calls(task: str, text: str) -> int:
    """Calls of functions of Python and of C that it takes to read a text as puzzles of `task`."""
    count, parse, source = 0, get_task(task).parse, io.StringIO(text)

    def event(frame: Any, kind: str, argument: Any) -> None:
        nonlocal count
        count += kind in ("call", "c_call")

    sys.setprofile(event)
    try:
        for _ in parse(source, errors="report"):
            pass
    except InputError:
        pass
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("task", ["sudoku", "maze", "arc"])
@pytest.mark.parametrize("name", LINES)
def test_a_line_costs_the_same_in_a_file_of_any_size(task: str, name: str) -> None:
    head, line, most = LINES[name]
    count = 100 if most > FAULT else 1000
    calls(task, head + line)  # caches
    small, large = calls(task, head + line * count), calls(task, head + line * 2 * count)
    assert large - small <= most * count, (large - small) / count
    assert large <= 2.1 * small + 500
