"""The rules of Sudoku on arrays: boards are uint8 [N, cells], values 1..size, 0 = blank; size is 4, 9, 16 or 25."""

from __future__ import annotations

import functools
import math

import numpy as np

from rtm_kernels.errors import InputError, one_of, require

SIZES = (4, 9, 16, 25)
DIGITS = "123456789ABCDEFGHIJKLMNOP"
BLANK = "."
BLANKS = ".0*_?xX"
UNIT_NAMES = ("row", "column", "box")


def as_boards(name: str, boards: np.ndarray) -> np.ndarray:
    """`boards` as uint8 [N, cells], checked: integer values 0..size, cells a known size squared."""
    array = np.asarray(boards)
    require(array.ndim == 2, f"{name}.shape", array.shape, "expected [N, cells]")
    require(array.dtype.kind in "iu", f"{name}.dtype", str(array.dtype), "expected integers")
    size = side(array)
    if array.size and (array.min() < 0 or array.max() > size):
        row, cell = np.argwhere((array < 0) | (array > size))[0]
        raise InputError(f"{name}[{row}, {cell}]={array[row, cell]} is not allowed: expected 0 (blank) to {size}")
    return array.astype(np.uint8, copy=False)


def side(boards: np.ndarray) -> int:
    """Side length of boards [..., cells]."""
    size = math.isqrt(boards.shape[-1])
    require(size * size == boards.shape[-1] and size in SIZES, "cells", boards.shape[-1], "expected 16, 81, 256 or 625")
    return size


def units(boards: np.ndarray) -> np.ndarray:
    """Rows, columns and boxes of boards [N, cells], as [N, 3, size, size]."""
    size = side(boards)
    box = math.isqrt(size)
    rows = boards.reshape(-1, size, size)
    boxes = rows.reshape(-1, box, box, box, box).swapaxes(2, 3).reshape(-1, size, size)
    return np.stack([rows, rows.swapaxes(1, 2), boxes], axis=1)


def _bits(boards: np.ndarray) -> np.ndarray:
    return np.where(boards > 0, np.uint32(1) << boards.astype(np.uint32), np.uint32(0))


def contradictory(boards: np.ndarray) -> np.ndarray:
    """Whether a row, column or box holds a digit twice, bool [N]: the sum of digit bits then exceeds their union."""
    bits = units(_bits(as_boards("boards", boards)))
    return (bits.sum(axis=-1, dtype=np.uint64) != np.bitwise_or.reduce(bits, axis=-1)).any(axis=(1, 2))


def complete(boards: np.ndarray) -> np.ndarray:
    """Whether every row, column and box holds every digit, bool [N]."""
    boards = as_boards("boards", boards)
    every_digit = np.uint32((2 << side(boards)) - 2)
    return (np.bitwise_or.reduce(units(_bits(boards)), axis=-1) == every_digit).all(axis=(1, 2))


def verify(puzzles: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Whether each answer is complete, obeys the rules and keeps the givens; [N, cells] twice, gives bool [N]."""
    puzzles, answers = as_boards("puzzles", puzzles), as_boards("answers", answers)
    require(puzzles.shape == answers.shape, "answers.shape", answers.shape, f"puzzles are {puzzles.shape}")
    return complete(answers) & ((puzzles == answers) | (puzzles == 0)).all(axis=1)


def cell_name(cell: int, size: int) -> str:
    return f"r{cell // size + 1}c{cell % size + 1}"


def first_repeat(board: np.ndarray) -> str | None:
    """The first digit that a unit of board [cells] holds twice, in words, or None."""
    size = side(board)
    cells = units(np.arange(size * size)[None])[0]
    for kind, name in enumerate(UNIT_NAMES):
        for index in range(size):
            seen: dict[int, int] = {}
            for cell in cells[kind, index].tolist():
                digit = int(board[cell])
                if digit and digit in seen:
                    pair = f"{cell_name(seen[digit], size)} and {cell_name(cell, size)}"
                    return f"{DIGITS[digit - 1]} twice in {name} {index + 1} ({pair})"
                seen[digit] = cell
    return None


def explain(puzzle: np.ndarray, answer: np.ndarray) -> str:
    """The first rule that answer [cells] breaks for puzzle [cells], in words; empty when it breaks none."""
    size = side(puzzle)
    changed = np.flatnonzero((puzzle > 0) & (puzzle != answer))
    if changed.size:
        cell = int(changed[0])
        given, found = to_text(puzzle)[cell], to_text(answer)[cell]
        return f"the given {given} at {cell_name(cell, size)} became {found}"
    blank = np.flatnonzero(answer == 0)
    if blank.size:
        return f"{blank.size} blank cell{'s' if blank.size > 1 else ''}, the first at {cell_name(int(blank[0]), size)}"
    return first_repeat(answer) or ""


def to_text(board: np.ndarray) -> str:
    """Board [cells] as one character per cell: `.` for blank, 1-9, then A-P."""
    return "".join((BLANK + DIGITS)[v] for v in np.asarray(board).tolist())


def from_text(text: str) -> np.ndarray:
    """Board uint8 [cells] of one character per cell; `.`, `0`, `*` and `_` are blanks. Raises `InputError`."""
    size = math.isqrt(len(text))
    require(size * size == len(text) and size in SIZES, "puzzle length", len(text), "expected 16, 81, 256 or 625 cells")
    column = illegal_column(text, size)
    if column is not None:
        raise InputError(f"column {column}: illegal character {text[column - 1]!a}, expected {allowed(size)}")
    return boards_from_texts([text], size)[0]


def illegal_column(text: str, size: int, extra: str = "") -> int | None:
    """The first column, from 1, whose character is neither a cell of this size nor in `extra`."""
    legal = _legal(size, extra)
    if legal.issuperset(text):
        return None
    return next((column for column, character in enumerate(text, start=1) if character not in legal), None)


@functools.cache
def _legal(size: int, extra: str) -> frozenset[str]:
    return frozenset(BLANKS + DIGITS[:size] + DIGITS[:size].lower() + extra)


def boards_from_texts(texts: list[str], size: int) -> np.ndarray:
    """Boards uint8 [N, cells] of texts known to be legal."""
    values = np.zeros(128, dtype=np.uint8)
    for value, digit in enumerate(DIGITS[:size], start=1):
        values[ord(digit)] = values[ord(digit.lower())] = value
    characters = np.frombuffer("".join(texts).encode("ascii"), dtype=np.uint8)
    return values[characters].reshape(len(texts), size * size)


def allowed(size: int) -> str:
    """The characters of a board of this size, in words."""
    letters = "" if size <= 9 else f" A-{DIGITS[size - 1]}"
    return f"1-{min(size, 9)}{letters} or {' '.join(BLANKS[:-1])} for a blank"


def check_size(size: int) -> None:
    one_of("size", size, SIZES)
