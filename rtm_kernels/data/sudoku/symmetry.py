"""The symmetry group of Sudoku: relabel digits, permute rows in bands, bands, columns in stacks, stacks; transpose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rtm_kernels.data.sudoku.rules import as_boards, check_size, side, units
from rtm_kernels.data.task import Generators
from rtm_kernels.errors import require


@dataclass(frozen=True)
class Symmetry:
    """N elements of the group, one per board: `new[i, j] = digits[old'[rows[i], columns[j]]]`, old' transposed or not.

    digits: [N, size + 1] with digits[:, 0] = 0; rows, columns: [N, size]; transpose: bool [N].
    """

    digits: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    transpose: np.ndarray

    @classmethod
    def random(cls, count: int, size: int, rng: np.random.Generator) -> Symmetry:
        """`count` uniformly random elements."""
        check_size(size)
        digits = np.zeros((count, size + 1), dtype=np.uint8)
        digits[:, 1:] = 1 + np.argsort(rng.random((count, size)), axis=1)
        rows, columns = _random_lines(count, size, rng), _random_lines(count, size, rng)
        return cls(digits, rows, columns, rng.random(count) < 0.5)

    def apply(self, boards: np.ndarray) -> np.ndarray:
        """Transformed boards uint8 [N, cells]."""
        boards = as_boards("boards", boards)
        count, size = self.rows.shape
        fits = boards.shape == (count, size * size)
        require(fits, "boards.shape", boards.shape, f"this symmetry is for {(count, size * size)}")
        moved = boards.reshape(-1)[self._source]
        return self.digits.reshape(-1)[moved + np.arange(count)[:, None] * (size + 1)]

    @cached_property
    def _source(self) -> np.ndarray:
        """The cell that each cell comes from, counted over all boards, [N, cells]."""
        count, size = self.rows.shape
        row_step, column_step = np.where(self.transpose, [[1], [size]], [[size], [1]])[:, :, None]
        first = np.arange(count)[:, None] * size**2 + self.rows * row_step
        return (first[:, :, None] + (self.columns * column_step)[:, None, :]).reshape(count, size**2)

    def inverse(self) -> Symmetry:
        """The elements that undo these."""
        flip = self.transpose[:, None]
        rows, columns = np.argsort(self.rows, axis=1), np.argsort(self.columns, axis=1)
        digits = np.argsort(self.digits, axis=1).astype(np.uint8)
        return Symmetry(digits, np.where(flip, columns, rows), np.where(flip, rows, columns), self.transpose)


def _random_lines(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random permutations of lines that keep bands together, [count, size]."""
    box = math.isqrt(size)
    bands = np.argsort(rng.random((count, box)), axis=1)
    within = np.argsort(rng.random((count, box, box)), axis=2)
    return (bands[:, :, None] * box + within).reshape(count, size)


def augment(puzzles: np.ndarray, solutions: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random symmetric twin of each puzzle and its solution, uint8 [N, cells] each."""
    symmetry = Symmetry.random(len(puzzles), side(np.asarray(puzzles)), rng)
    return symmetry.apply(puzzles), symmetry.apply(solutions)


def generators(size: int) -> Generators:
    """Swaps of neighbouring rows in a band, of bands, of columns, of stacks and of digits, and the transposition."""
    box, lines = math.isqrt(size), np.arange(size)
    blocks = lines.reshape(box, box)
    swaps = [_swap(lines, row, row + 1) for row in range(size) if (row + 1) % box]
    swaps += [_swap(blocks, band, band + 1).reshape(-1) for band in range(box - 1)]
    cells = np.arange(size * size).reshape(size, size)
    moved = [cells[swap] for swap in swaps] + [cells[:, swap] for swap in swaps] + [cells.T]
    digits = [_swap(lines, digit, digit + 1) for digit in range(size - 1)]
    positions = np.stack([c.reshape(-1) for c in moved] + [cells.reshape(-1)] * len(digits))
    values = np.stack([lines] * len(moved) + digits)
    return Generators(positions=positions, groups=_groups(positions, size), values=values, first_value=2)


def _groups(positions: np.ndarray, size: int) -> np.ndarray:
    """How permutations of cells [G, cells] permute rows, columns and boxes: [G, 3 * size]."""
    sets = np.sort(units(np.arange(size * size)[None])[0].reshape(-1, size), axis=1)
    index = {tuple(cells): unit for unit, cells in enumerate(sets.tolist())}
    return np.array([[index[tuple(sorted(p[cells].tolist()))] for cells in sets] for p in positions])


def _swap(items: np.ndarray, first: int, second: int) -> np.ndarray:
    swapped = items.copy()
    swapped[[first, second]] = items[[second, first]]
    return swapped
