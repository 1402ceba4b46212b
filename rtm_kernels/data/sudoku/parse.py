"""Reading puzzles from text: one per line, grids of one row per line, or csv with a header; streaming."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from rtm_kernels.data.sudoku import rules
from rtm_kernels.data.task import Puzzle, reported
from rtm_kernels.data.text import MAX_LINE, csv_fields, header_columns, numbered_lines
from rtm_kernels.errors import printable

SEPARATORS = " \t|"
RULERS = SEPARATORS + "-+="
CHUNK = 1024
MAX_NAME = 80


def read_puzzles(source: str | Iterable[str], *, size: int = 9, errors: str = "raise") -> Iterator[Puzzle]:
    """Puzzles of a text or of lines (an open file, stdin, a list), one after the other.

    Understood: one puzzle per line; grids of `size` lines, with `|`, `-`, `+` and spaces between the cells; csv
    with a header that names a column `puzzle`, `quizzes` or `question`, and perhaps `solution`, `solutions` or
    `answer`, `rating` and `source`. Blanks are `.`, `0`, `*` or `_`; `#` starts a comment line. `Puzzle.text` and
    `.solution` come out with `.` for blanks. Lines are read `CHUNK` puzzles ahead.
    A fault names the line and, where there is one, the column, see `Task.parse`.
    """
    rules.check_size(size)
    scan = _Scanner(size).scan(numbered_lines(source))
    parts = iter(lambda: list(islice(scan, CHUNK)), [])
    return reported((puzzle for part in parts for puzzle in _check(part, size)), errors)


@dataclass
class _Scanner:
    """Splits lines into puzzles and faults, without looking at the rules of the game."""

    size: int
    columns: dict[str, int] | None = None
    rows: list[str] = field(default_factory=list)
    first_row: int = 0
    lost: bool = False

    def scan(self, lines: Iterator[tuple[int, str]]) -> Iterator[Puzzle]:
        cells, started = self.size * self.size, False
        for number, marked in lines:
            raw = marked.lstrip("\ufeff")
            line = raw.strip(" \t\r\n")
            found: Puzzle | None = None
            if not line or line[0] == "#":
                found = self._gap(number, blank=not line)
            elif len(raw) > MAX_LINE:
                found = _fault(number, f"longer than {MAX_LINE} characters")
            elif not started and (columns := header_columns(line)):
                started, self.columns = True, columns
            elif self.columns is not None:
                found = self._row(number, raw, self.columns)
            else:
                started = True
                found = self._cells(number, raw, cells)
            if found is not None:
                yield found
        if self.rows and (found := self._gap(number, blank=True, end=True)) is not None:
            yield found

    def _gap(self, number: int, blank: bool, end: bool = False) -> Puzzle | None:
        """A blank or comment line: blank ones may separate the bands of a grid, and end a broken grid."""
        self.lost = self.lost and not blank
        if not self.rows or not blank or not (end or len(self.rows) % math.isqrt(self.size)):
            return None
        begun = f"the grid that began on line {self.first_row}"
        fault = _fault(number, f"{begun} has {len(self.rows)} of {self.size} rows")
        self.rows = []
        return fault

    def _cells(self, number: int, raw: str, cells: int) -> Puzzle | None:
        """One line of cells: a whole puzzle, a row of a grid, or a ruler."""
        compact = raw.strip().translate(_WITHOUT_SEPARATORS)
        column = rules.illegal_column(raw.rstrip(), self.size, SEPARATORS)
        if column is None and len(compact) == cells and not self.rows:
            self.lost = False
            return Puzzle(_plain(compact), line=number)
        if self.lost or not compact.strip(RULERS):
            return None
        if column is not None:
            return self._broken(number, self._illegal(raw, column), column)
        if len(compact) != self.size:
            expected = f"{self.size} (a row of a grid)" if self.rows else f"{cells} (a puzzle) or {self.size} (a row)"
            return self._broken(number, f"{len(compact)} cells, expected {expected}", len(raw.rstrip()))
        self.first_row = self.first_row if self.rows else number
        self.rows.append(compact)
        if len(self.rows) < self.size:
            return None
        grid, self.rows = "".join(self.rows), []
        return Puzzle(_plain(grid), line=self.first_row)

    def _broken(self, number: int, message: str, column: int) -> Puzzle:
        self.lost, self.rows = bool(self.rows), []
        return _fault(number, message, column)

    def _illegal(self, raw: str, column: int) -> str:
        hint = "; csv needs a header line such as puzzle,solution" if raw[column - 1] == "," else ""
        return f"illegal character {raw[column - 1]!a}, expected {rules.allowed(self.size)}{hint}"

    def _row(self, number: int, raw: str, columns: dict[str, int]) -> Puzzle:
        """One line of a csv."""
        fields = csv_fields(raw, columns)
        texts: dict[str, str] = {}
        for name in ("puzzle", "solution"):
            text = fields[name].strip()
            start = raw.find(text) + 1 if name == "puzzle" else raw.rfind(text) + 1
            column = rules.illegal_column(text, self.size)
            if column is not None:
                return _fault(number, self._illegal(text, column), start + column - 1)
            if len(text) != self.size**2 and (text or name == "puzzle"):
                return _fault(number, f"{name} of {len(text)} cells, expected {self.size**2}", start + len(text))
            texts[name] = _plain(text)
        rating = fields["rating"]
        try:
            value = float(rating) if rating.strip() else None
        except ValueError:
            return _fault(number, f"rating {rating[:40]!a} is not a number", raw.rfind(rating) + 1)
        origin = printable(fields["origin"].strip())[:MAX_NAME] or None
        return Puzzle(texts["puzzle"], texts["solution"] or None, number, value, origin=origin)


_WITHOUT_SEPARATORS = str.maketrans(dict.fromkeys(SEPARATORS))
_TO_PLAIN = str.maketrans({**dict.fromkeys(rules.BLANKS, "."), **{d.lower(): d for d in rules.DIGITS}})


def _plain(text: str) -> str:
    return text.translate(_TO_PLAIN)


def _fault(number: int, message: str, column: int | None = None) -> Puzzle:
    place = f"line {number}" + (f", column {column}" if column is not None else "")
    return Puzzle("", line=number, error=f"{place}: {message}")


def _check(part: list[Puzzle], size: int) -> list[Puzzle]:
    """The puzzles of `part`, with a fault where givens contradict each other or the solution does not solve."""
    whole = [i for i, puzzle in enumerate(part) if not puzzle.error]
    boards = rules.boards_from_texts([part[i].text for i in whole], size)
    for at in np.flatnonzero(rules.contradictory(boards)).tolist():
        puzzle = part[whole[at]]
        error = f"line {puzzle.line}: contradictory givens: {rules.first_repeat(boards[at])}"
        part[whole[at]] = replace(puzzle, error=error)
    solved = [(at, i) for at, i in enumerate(whole) if part[i].solution and not part[i].error]
    puzzles = boards[[at for at, _ in solved]]
    solutions = rules.boards_from_texts([part[i].solution or "" for _, i in solved], size)
    for at in np.flatnonzero(~rules.verify(puzzles, solutions)).tolist():
        puzzle = part[solved[at][1]]
        reason = rules.explain(puzzles[at], solutions[at])
        part[solved[at][1]] = replace(puzzle, error=f"line {puzzle.line}: the solution is wrong: {reason}")
    return part
