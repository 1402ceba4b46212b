"""Reading Sudokus from text: one per line, grids, tables, JSON and the files of Sudoku programs; streaming."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice

import numpy as np

from rtm_kernels.data.sudoku import forms, rules
from rtm_kernels.data.task import Puzzle, reported
from rtm_kernels.data.text import SECTION, Found, records
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
    scan = _scan(source, size)
    parts = iter(lambda: list(islice(scan, CHUNK)), [])
    return reported((puzzle for part in parts for puzzle in _check(part, size)), errors)


def _scan(source: str | Iterable[str], size: int) -> Iterator[Puzzle]:
    """Puzzles and faults of all lines, without looking at the rules of the game."""
    whole, cells = size * size, partial(forms.cells, size=size)
    rows: list[str] = []
    at, first, lost, skipping, dashes = 0, 0, False, False, False
    end = [Found(0, "")]
    for number, text, fields, fault in chain(records(source, lambda line: cells(line) is not None), end):
        at = number or at
        if fault or fields is not None:
            yield _fault(number, fault) if fault else _row(number, text or "", fields or {}, size)
            continue
        line = text or ""
        bare = line.strip()
        if section := SECTION.fullmatch(bare):
            skipping = section[1].lower() not in ("puzzle", "grid", "sudoku")
        ruler = bare and forms.RULER.fullmatch(line) and not (dashes and len(bare) == size)
        found = "" if ruler or not bare else cells(line) or ""
        if section or skipping or not bare:
            lost = False
            if rows and (not number or len(rows) % math.isqrt(size)):  # blank lines may separate the bands of a grid
                yield _fault(at, f"the grid that began on line {first} has {len(rows)} of {size} rows")
                rows = []
        elif len(found) == whole and not rows:
            lost = False
            yield Puzzle(found, line=number)
        elif lost or ruler:
            if bare.startswith("|-") and "".join(rows) in ("." * size, rules.DIGITS[:size]):
                rows = []  # the header of a Markdown table
        elif len(found) == size:
            first, dashes = first if rows else number, dashes or "-" in line
            rows.append(found)
            if len(rows) == size:
                yield Puzzle("".join(rows), line=first)
                rows, dashes = [], False
        else:
            named = None if rows else _with_words(number, line, cells, whole)
            yield named or _broken(number, line, size, bool(rows))
            lost, rows = bool(rows), []


def _with_words(number: int, line: str, cells: Callable[[str], str | None], whole: int) -> Puzzle | None:
    """The only puzzle among the words of a line, and its solution where a second one has no blanks."""
    words = [cells(word) for word in re.split(r"""[\s,;:="'()\[\]{}]+""", line) if len(word) >= whole]
    found = [word for word in words if word and len(word) == whole]
    if len(found) not in (1, 2) or (len(found) == 2 and ("." not in found[0] or "." in found[1])):
        return None
    return Puzzle(found[0], found[1] if len(found) > 1 else None, number)


def _broken(number: int, line: str, size: int, started: bool) -> Puzzle:
    count = len(line.translate(str.maketrans(dict.fromkeys(forms.SEPARATORS))))
    expected = f"{size} (a row of a grid)" if started else f"{size**2} (a puzzle) or {size} (a row)"
    otherwise = _fault(number, f"{count} cells, expected {expected}", len(line.rstrip()))
    return _illegal(number, line.rstrip(), 0, size, forms.SEPARATORS) or otherwise


def _illegal(number: int, text: str, start: int, size: int, extra: str = "") -> Puzzle | None:
    """The first character that is no cell of a text that begins after column `start`."""
    column = rules.illegal_column(text, size, extra)
    if column is None:
        return None
    said = f"illegal character {text[column - 1]!a}, expected {rules.allowed(size)}"
    return _fault(number, said, start + column)


def _row(number: int, raw: str, values: dict[str, list[str]], size: int) -> Puzzle:
    """One row of a table, or one value of JSON or XML, whose text is `raw`."""
    texts, whole = dict[str, str](), size**2
    for name in ("puzzle", "solution"):
        read = [forms.field(text, size) for text in values[name]] or [""]
        fits = [text for text in read if len(text) == whole and rules.illegal_column(text, size) is None]
        texts[name] = text = (fits or read)[0]
        if not fits and (text or name == "puzzle"):
            start = max(raw.find(text) if name == "puzzle" else raw.rfind(text), 0)
            said = f"{name} of {len(text)} cells, expected {whole}"
            return _illegal(number, text, start, size) or _fault(number, said, start + len(text) + 1)
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
