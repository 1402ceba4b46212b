"""Reading a file takes time in proportion to its lines, whatever the lines are: counted in calls of functions."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import pytest

from rtm_kernels.data import get_task
from rtm_kernels.errors import InputError

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SNAKE = "/".join(("." * 30, "." + "#" * 29, "." * 30, "#" * 29 + ".")[i % 4] for i in range(30)).replace("/", "")
MAZE = "S" + SNAKE[1:-1] + "G"
TABLE = "puzzle,solution,rating\n"
LINES = [("", "\n"), (TABLE, "x,y,z\n"), ("", f"55{PUZZLE[2:]}\n"), (TABLE, f'{PUZZLE},"",3\n'), ("", "53..7....\n"),
         ("", f"{MAZE}\n"), (TABLE, f"{MAZE},{MAZE.replace('.', 'o')}\n")]  # fmt: skip


def calls(task: str, text: str) -> int:
    """Calls of functions of Python and of C that it takes to read a text as puzzles of `task`."""
    count, parse = 0, get_task(task).parse

    def event(frame: Any, kind: str, argument: Any) -> None:
        nonlocal count
        count += kind in ("call", "c_call")

    sys.setprofile(event)
    with contextlib.suppress(InputError):
        list(parse(io.StringIO(text), errors="report"))
    sys.setprofile(None)
    return count


@pytest.mark.parametrize("task", ["sudoku", "maze", "arc"])
@pytest.mark.parametrize(("head", "line"), LINES)
def test_a_line_costs_the_same_in_a_file_of_any_size(task: str, head: str, line: str) -> None:
    calls(task, head + line)  # caches
    small, large = (calls(task, head + line * count) for count in (100, 200))
    assert large <= 2.1 * small + 500 and large - small <= 180 * 100
