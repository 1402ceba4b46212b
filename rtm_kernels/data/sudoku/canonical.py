"""One representative of each class of symmetric puzzles, so that no twin of a held-out puzzle is trained on."""

from __future__ import annotations

import math
from functools import cache
from itertools import permutations, product

import numpy as np

from rtm_kernels.data.sudoku.rules import as_boards, side, verify
from rtm_kernels.errors import one_of, require


def canonical(puzzles: np.ndarray, solutions: np.ndarray) -> np.ndarray:
    """The exact canonical form of each puzzle [N, cells]: equal for two puzzles if and only if they are symmetric.

    The solution is brought to its lexicographically least image; among the symmetries that do so, the one with
    the least pattern of givens is taken. Sizes 4 and 9. Raises `InputError` where a solution does not solve.
    """
    puzzles, solutions = as_boards("puzzles", puzzles), as_boards("solutions", solutions)
    one_of("size", side(puzzles), (4, 9))
    require(bool(verify(puzzles, solutions).all()), "solutions", "", "every solution has to solve its puzzle")
    forms = [_canonical(p, s) for p, s in zip(puzzles, solutions, strict=True)]
    return np.array(forms, dtype=np.uint8).reshape(puzzles.shape)


def _canonical(puzzle: np.ndarray, solution: np.ndarray) -> np.ndarray:
    size = side(solution)
    grids = solution.reshape(size, size)
    views = np.stack([grids, grids.T])
    turn, first, second = _row_pairs(size)
    place = np.argsort(views, axis=2)
    shifts = place[turn[:, None], first[:, None], views[turn, second] - 1]  # columns in `first` of digits of `second`
    tables = [_least_second_row(tuple(shift)) for shift in shifts.tolist()]
    least = min(code for code, _ in tables)
    chosen = [(i, columns) for i, (code, columns) in enumerate(tables) if code == least]
    pair = np.repeat([i for i, _ in chosen], [len(columns) for _, columns in chosen])
    columns = np.concatenate([columns for _, columns in chosen])
    images, rows = _complete(views[turn[pair]], first[pair], second[pair], columns)
    ties = _least(images)
    given = (puzzle > 0).reshape(size, size)
    masks = _move(np.stack([given, given.T])[turn[pair[ties]]], rows[ties], columns[ties])
    return np.where(masks[_least(masks)[0]], images[ties[0]], 0).reshape(-1)


def _least(boards: np.ndarray) -> list[int]:
    """Indices of the lexicographically least of uint8 or bool boards [M, size, size]."""
    keys = [board.tobytes() for board in boards]
    least = min(keys)
    return [index for index, key in enumerate(keys) if key == least]


def _complete(
    grids: np.ndarray, first: np.ndarray, second: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Relabel so that `first` reads 1, 2, ... and sort the other rows: images [M, size, size] and their row order."""
    count, size = columns.shape
    box, every = math.isqrt(size), np.arange(count)[:, None]
    label = np.zeros((count, size + 1), dtype=np.uint8)
    label[every, grids[every, first[:, None], columns]] = np.arange(1, size + 1)
    head = label[every, grids[every, np.arange(size), columns[:, :1]]].astype(np.intp)  # first column of the image
    band_of = np.arange(size) // box
    band_head = head.reshape(count, box, box).min(axis=2)[:, band_of]
    band_head[band_of == band_of[first][:, None]] = 0
    head[every[:, 0], second] = 1
    head[every[:, 0], first] = 0
    rank = band_head * (size + 1) + head
    rows = np.argsort(rank, axis=1, kind="stable")
    return label[every[:, :, None], _move(grids, rows, columns)], rows


def _move(boards: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return boards[np.arange(len(boards))[:, None, None], rows[:, :, None], columns[:, None, :]]


@cache
def _row_pairs(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every (transposed, first row, second row of the same band)."""
    box = math.isqrt(size)
    pairs = [(t, a, b) for t, a, b in product(range(2), range(size), range(size)) if a // box == b // box and a != b]
    turn, first, second = np.array(pairs).T
    return turn, first, second


@cache
def _column_orders(size: int) -> np.ndarray:
    """Every order of columns that keeps stacks together, [orders, size]."""
    box = math.isqrt(size)
    within = list(permutations(range(box)))
    orders = [
        [stack * box + c for stack, inner in zip(stacks, inners, strict=True) for c in inner]
        for stacks in permutations(range(box))
        for inners in product(within, repeat=box)
    ]
    return np.array(orders)


@cache
def _tables(size: int) -> dict[tuple[int, ...], tuple[int, np.ndarray]]:
    """What `_least_second_row` has found so far."""
    return {}


def _least_second_row(shift: tuple[int, ...]) -> tuple[int, np.ndarray]:
    """For two rows with this shift: the least second row that column orders give, as a number, and these orders.

    An order p turns the shift s into p^-1 s p, so what holds for s carries over to its whole conjugacy class:
    the orders that make p^-1 s p least are p^-1 composed with those that make s least.
    """
    table = _tables(len(shift))
    if shift not in table:
        orders = _column_orders(len(shift))
        inverse = np.argsort(orders, axis=1)
        conjugates = np.take_along_axis(inverse, np.array(shift)[orders], axis=1)
        code = conjugates @ len(shift) ** np.arange(len(shift) - 1, -1, -1)
        least, best = int(code.min()), orders[code == code.min()]
        for index in np.unique(code, return_index=True)[1]:
            table[tuple(conjugates[index].tolist())] = least, inverse[index][best]
    return table[shift]
