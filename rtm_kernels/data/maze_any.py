"""Mazes of every side in one file, for models whose weights know no size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from rtm_kernels.data.maze import SIDES, Maze
from rtm_kernels.data.task import Puzzle, Task, get_task, register_reader
from rtm_kernels.data.text import MAX_LINE, Table, numbered_lines


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

    def _checked(self, number: int, text: str, solution: str) -> Puzzle:
        task = self.sized(text)
        assert isinstance(task, Maze)
        if isinstance(task, AnyMaze):
            cells = len(text.replace("\n", ""))
            fault = f"line {number}: puzzle length={cells} is not allowed: a square, of side {SIDES[0]} to {SIDES[-1]}"
            return Puzzle("", line=number, error=fault)
        return task._checked(number, text, solution)

    def _texts(self, lines: str | Iterable[str]) -> Iterator[tuple[int, str, str]]:
        """Line number, maze and solution. A line with S and G of a square length is a maze, others are rows of one."""
        table: Table | None = None
        rows: list[str] = []
        for number, raw in numbered_lines(lines):
            line = raw.rstrip("\r\n")
            if not line.strip() and not rows and len(line) not in SIDES:
                continue
            if table is not None:
                fields = table.fields(line)
                yield number, "".join(fields["puzzle"][:1]), "".join(fields["solution"][:1])
            elif not rows and (table := Table.of(line)):
                continue
            elif not rows and "S" in line and "G" in line and side_of(line):
                yield number, line[:MAX_LINE], ""
            else:
                rows.append(line)
                if len(rows) >= max(map(len, rows)) or len(rows) > SIDES[-1]:
                    yield number - len(rows) + 1, _square(rows), ""
                    rows = []
        if rows:
            yield number, _square(rows), ""


def _square(rows: list[str]) -> str:
    """The rows of a grid, with the open cells at their ends that an editor took away."""
    width = max(map(len, rows))
    return "\n".join(row.ljust(width) for row in rows)


register_reader(Maze, AnyMaze())
