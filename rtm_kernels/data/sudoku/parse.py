"""Reading Sudokus from text: one per line, grids, tables, JSON and the files of Sudoku programs; streaming."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from rtm_kernels.data.sudoku import forms, rules
from rtm_kernels.data.task import Puzzle, reported
from rtm_kernels.data.text import SECTION, records
from rtm_kernels.errors import printable

CHUNK = 1024
MAX_NAME = 80
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d{1,2})?", re.IGNORECASE)


def read_puzzles(source: str | Iterable[str], *, size: int = 9, errors: str = "raise") -> Iterator[Puzzle]:
    """Puzzles of a text or of lines (an open file, stdin, a list), one after the other.

    Understood: one puzzle per line, alone or with other words on it (rating, name, HoDoKu's fields); grids of `size`
    lines, with frames or not (`forms.cells`); tables, JSON and OpenSudoku files (`text.records`); `.sdk`, `.sdm` and
    `.ss` files. Blanks are `. 0 * _ ? x`, `-` and spaces. `Puzzle.text` and `.solution` come out with `.` for blanks.
    Lines are read `CHUNK` puzzles ahead.
    A fault names the line and, where there is one, the column, see `Task.parse`.
    """
    rules.check_size(size)
    scan = _Scanner(size).scan(source)
    parts = iter(lambda: list(islice(scan, CHUNK)), [])
    return reported((puzzle for part in parts for puzzle in _check(part, size)), errors)


@dataclass
class _Scanner:
    """Splits lines into puzzles and faults, without looking at the rules of the game."""

    size: int
    rows: list[str] = field(default_factory=list)
    first_row: int = 0
    lost: bool = False
    skipping: bool = False
    dashes: bool = False

    def scan(self, source: str | Iterable[str]) -> Iterator[Puzzle]:
        """The puzzles and faults of all lines."""
        number = 0
        for number, text, fields, fault in records(source, lambda line: self._cells(line) is not None):
            if fault:
                yield _fault(number, fault)
            elif fields is not None:
                yield self._row(number, text or "", fields)
            else:
                yield from self._line(number, text or "")
        if self.rows:
            yield from self._gap(number, end=True)

    def _line(self, number: int, line: str) -> Iterator[Puzzle]:
        """A line outside of tables."""
        bare = line.strip()
        if section := SECTION.fullmatch(bare):
            self.skipping = section[1].lower() not in ("puzzle", "grid", "sudoku")
        if section or self.skipping or not bare:
            yield from self._gap(number)
            return
        whole = self.size * self.size
        ruler = forms.RULER.fullmatch(line) and not (self.dashes and len(bare) == self.size)
        found = None if ruler else self._cells(line)
        if found is not None and len(found) == whole and not self.rows:
            self.lost = False
            yield Puzzle(found, line=number)
        elif self.lost or ruler:
            if bare.startswith("|-") and "".join(self.rows) in ("." * self.size, rules.DIGITS[: self.size]):
                self.rows = []  # the header of a Markdown table
        elif found is not None and len(found) == self.size:
            self.first_row = self.first_row if self.rows else number
            self.dashes = "-" in line or self.dashes
            self.rows.append(found)
            if len(self.rows) == self.size:
                yield Puzzle("".join(self.rows), line=self.first_row)
                self.rows, self.dashes = [], False
        else:
            yield self._with_words(number, line) or self._broken(number, line)

    def _cells(self, line: str) -> str | None:
        return forms.cells(line, self.size)

    def _gap(self, number: int, end: bool = False) -> Iterator[Puzzle]:
        """A blank line, which may separate the bands of a grid, and ends a broken one."""
        self.lost = False
        if self.rows and (end or len(self.rows) % math.isqrt(self.size)):
            begun = f"the grid that began on line {self.first_row}"
            yield _fault(number, f"{begun} has {len(self.rows)} of {self.size} rows")
            self.rows = []

    def _with_words(self, number: int, line: str) -> Puzzle | None:
        """The only puzzle among the words of a line, and its solution where a second one has no blanks."""
        words = [self._cells(word) for word in re.split(r"""[\s,;:="'()\[\]{}]+""", line) if len(word) >= self.size**2]
        found = [word for word in words if word and len(word) == self.size**2]
        if self.rows or len(found) not in (1, 2) or (len(found) == 2 and ("." not in found[0] or "." in found[1])):
            return None
        return Puzzle(found[0], found[1] if len(found) > 1 else None, number)

    def _broken(self, number: int, line: str) -> Puzzle:
        started, self.lost, self.rows = bool(self.rows), bool(self.rows), []
        count = len(line.translate(str.maketrans(dict.fromkeys(forms.SEPARATORS))))
        expected = f"{self.size} (a row of a grid)" if started else f"{self.size**2} (a puzzle) or {self.size} (a row)"
        otherwise = _fault(number, f"{count} cells, expected {expected}", len(line.rstrip()))
        return self._illegal(number, line.rstrip(), 0, forms.SEPARATORS) or otherwise

    def _illegal(self, number: int, text: str, start: int, extra: str = "") -> Puzzle | None:
        """The first character that is no cell of a text that begins after column `start`."""
        column = rules.illegal_column(text, self.size, extra)
        if column is None:
            return None
        said = f"illegal character {text[column - 1]!a}, expected {rules.allowed(self.size)}"
        return _fault(number, said, start + column)

    def _row(self, number: int, raw: str, values: dict[str, list[str]]) -> Puzzle:
        """One row of a table, or one value of JSON or XML, whose text is `raw`."""
        texts, whole = dict[str, str](), self.size**2
        for name in ("puzzle", "solution"):
            read = [forms.field(text, self.size) for text in values[name]] or [""]
            fits = [text for text in read if len(text) == whole and rules.illegal_column(text, self.size) is None]
            texts[name] = text = (fits or read)[0]
            if not fits and (text or name == "puzzle"):
                start = max(raw.find(text) if name == "puzzle" else raw.rfind(text), 0)
                said = f"{name} of {len(text)} cells, expected {whole}"
                return self._illegal(number, text, start) or _fault(number, said, start + len(text) + 1)
        rating = "".join(values["rating"][:1]).strip().replace(",", ".")
        score = float(rating) if NUMBER.fullmatch(rating) else None  # words such as Hard are none
        origin = printable("".join(values["origin"][:1]).strip())[:MAX_NAME] or None
        return Puzzle(texts["puzzle"], texts["solution"] or None, number, score, origin=origin)


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
