"""Where the cells of a task are on the page, found from what the task renders."""

from __future__ import annotations

from typing import Any

from rtm_kernels.data.task import Task
from rtm_kernels.errors import InputError

PRIVATE = 0xE000
"""First character of Unicode's private use area, which no task uses."""
PRIVATE_SIZE = 6400


def find_layout(task: Task) -> dict[str, Any] | None:
    """The grid that `task.render` draws (`schema.Layout`), or None when it is not a rectangle of several rows.

    `row_rules` and `column_rules` are the rows and columns with a ruler before them, as between the boxes of a Sudoku.
    An answer with a different character in every cell is rendered, and where they stand is the grid.
    """
    cells = "".join(map(chr, range(PRIVATE, PRIVATE + min(task.seq_len, PRIVATE_SIZE))))
    try:
        lines = task.render(" " * len(cells), cells).splitlines()
    except (InputError, ValueError, IndexError):
        return None
    places = [[column for column, character in enumerate(line) if character in cells] for line in lines]
    rows = [columns for columns in places if columns]
    found = "".join(line[column] for line, columns in zip(lines, places, strict=True) for column in columns)
    if len(rows) < 2 or found != cells or any(columns != rows[0] for columns in rows):
        return None
    filled = [bool(columns) for columns in places]
    numbers = [i for i, has_cells in enumerate(filled) if has_cells]
    row_rules = [row for row, line in enumerate(numbers) if row and not filled[line - 1]]
    first = lines[numbers[0]]
    gaps = [first[a + 1 : b].strip() for a, b in zip(rows[0], rows[0][1:], strict=False)]
    column_rules = [column for column, gap in enumerate(gaps, start=1) if gap]
    return {"rows": len(rows), "columns": len(rows[0]), "row_rules": row_rules, "column_rules": column_rules}
