"""Mazes in the forms that people post, as cells of the vocabulary."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from rtm_kernels.data.text import MAX_LINE, MAX_SIDE, SIZES, Found, records

ALIASES = str.maketrans({"s": "S", "g": "G", "e": "E", **dict.fromkeys("\u2588\u2593\u25a0", "#"), "_": " "})
"""Characters of mazes met in public -> those of the vocabulary."""
CHARACTERS = frozenset("#. SGEo10,\t")


def side_of(text: str) -> int:
    """The side of a maze: grid lines, or one line whose length is a square number; 0 when it is none."""
    lines = text.strip("\r\n").splitlines()
    cells = sum(map(len, lines))
    side = len(lines) if len(lines) > 1 else math.isqrt(cells)
    return side if cells == side * side else 0


def texts(source: str | Iterable[str]) -> Iterator[tuple[int, str, str, str]]:
    """Line number, maze and solution as they stand in the source, or what is wrong there."""
    rows: dict[int, str] = {}
    for number, text, fields, fault in chain(records(source, _is_cells), [Found(0)]):
        if text and text[0] in "-=" and not text.strip("-="):
            text = None  # a line between two mazes
        if rows:
            lines = list(rows.values())
            width = max(map(len, lines))
            inside = text is not None and (text.strip() or len(text) == width or trimmed(lines))
            if fields or not inside or len(rows) >= min(width, MAX_SIDE + 1):
                yield from _mazes(rows)
                rows = {}
        if fields:
            yield number, "".join(fields["puzzle"][:1]), "".join(fields["solution"][:1]), ""
        elif fault:
            yield number, "", "", fault
        elif text is not None and (rows or text.strip()):
            rows[number] = text[:MAX_LINE]


def _mazes(rows: dict[int, str]) -> Iterator[tuple[int, str, str, str]]:
    """The one maze of rows by their line numbers, or one for each where a row is a maze by itself."""
    lines = list(rows.values())
    whole = [line for line in lines if len(set("SsGgEe") & set(line)) >= 2 and side_of(line)]
    if not whole or (len(whole) == 1 and len(lines) == len(lines[0])):
        rows = {min(rows): "\n".join(lines)}
    yield from ((number, text, "", "") for number, text in rows.items())


def _is_cells(line: str) -> bool:
    """Whether a line begins with a wall, or holds nothing but cells of a maze and what separates them."""
    return line.startswith("#") or (CHARACTERS.issuperset(line.translate(ALIASES)) and not re.fullmatch(SIZES, line))


def trimmed(rows: list[str]) -> bool:
    """Whether an editor took away the open cells at the ends of rows: they differ in width, and no dots are open."""
    return len(set(map(len, rows))) > 1 and "." not in "".join(rows)


def plain(text: str) -> str:
    """A maze in the vocabulary: E is its end where no G is, 1 and 0 are wall and open where no # is.

    Rows get back the open cells that an editor took away. Cells may be separated by commas, and in a square by spaces
    or tabs; rows may be indented. What is ambiguous stays as it is, for `encode` to refuse.
    """
    rows = text.translate(ALIASES).split("\n")
    side = len(rows)
    width = max(side, *map(len, rows))
    if side > 1 and trimmed(rows):
        rows = [row.ljust(width) for row in rows]
    between = set("".join([row[1::2] for row in rows]))
    if between == {","} or (between in ({" "}, {"\t"}) and width == 2 * side - 1):
        rows = [row[::2] for row in rows]
    elif 1 < side < width and not "".join(row[: width - side] for row in rows).strip():
        rows = [row[width - side :] for row in rows]
    text = "\n".join(rows)
    if "G" not in text:
        text = text.replace("E", "G")
    if not set(text) & set("# ."):
        text = text.replace("1", "#").replace("0", " ")
    return text
