"""Sudoku of any box size: rules, reading, symmetries, generation by difficulty, rating and exact solving."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from rtm_kernels.data.sudoku import rules
from rtm_kernels.data.sudoku.canonical import canonical
from rtm_kernels.data.sudoku.generate import generate, random_grids
from rtm_kernels.data.sudoku.logic import LEVELS, rate
from rtm_kernels.data.sudoku.parse import CHUNK, read_puzzles
from rtm_kernels.data.sudoku.rules import from_text, to_text, verify
from rtm_kernels.data.sudoku.search import solve, solve_missing
from rtm_kernels.data.sudoku.symmetry import Symmetry, augment, generators
from rtm_kernels.data.task import Generators, Pair, Puzzle, Task, Twin, Verdict, register
from rtm_kernels.errors import InputError, require

__all__ = ["LEVELS", "Sudoku", "Symmetry", "augment", "from_text", "generate", "generators", "random_grids", "rate",
           "read_boards", "read_puzzles", "solve", "solve_missing", "to_text", "verify"]  # fmt: skip


def read_boards(path: str | os.PathLike[str], *, size: int = 9, min_rating: float | None = None) -> Pair:
    """Puzzles and solutions of a file, uint8 [N, cells] each; a missing solution is a row of zeros.

    `min_rating` keeps only puzzles rated at least so. Errors: `InputError` naming the file and the line of a fault.
    """
    kept = (p for p in Sudoku(size).read(path) if min_rating is None or (p.rating or 0) >= min_rating)
    boards = [np.zeros((0, size * size), dtype=np.uint8)]
    solutions, blank = list(boards), rules.BLANK * size * size
    while part := list(islice(kept, CHUNK)):
        boards.append(rules.boards_from_texts([p.text for p in part], size))
        solutions.append(rules.boards_from_texts([p.solution or blank for p in part], size))
    return np.concatenate(boards), np.concatenate(solutions)


class Sudoku(Task):
    """Sudoku of side 4, 9, 16 or 25 as tokens: 0 padding, 1 blank, 2 the digit 1, as in the official data."""

    open_token = 1

    def __init__(self, size: int = 9) -> None:
        rules.check_size(size)
        self.size = size
        self.name = "sudoku" if size == 9 else f"sudoku{size}"
        self.vocabulary = rules.BLANK + rules.DIGITS[:size]
        self.seq_len = size * size
        groups = rules.units(np.arange(size * size)[None]).reshape(-1, size)
        self.groups = tuple(map(tuple, groups.tolist()))

    def encode(self, text: str) -> np.ndarray:
        require(len(text) == self.seq_len, "puzzle length", len(text), f"{self.name} has {self.seq_len} cells")
        return from_text(text) + np.uint8(1)

    def decode(self, tokens: np.ndarray) -> str:
        return to_text(self._boards(np.asarray(tokens)))

    def verify(self, puzzle: str, answer: str) -> Verdict:
        given = self.encode(puzzle) - np.uint8(1)
        try:
            filled = self.encode(answer) - np.uint8(1)
        except InputError as error:
            return Verdict(False, f"the answer cannot be read: {error}")
        reason = rules.explain(given, filled)
        return Verdict(not reason, reason)

    def verify_tokens(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return verify(self._boards(inputs), self._boards(answers))

    def parse(self, source: str | Iterable[str], errors: str = "raise") -> Iterator[Puzzle]:
        return read_puzzles(source, size=self.size, errors=errors)

    def render(self, puzzle: str, answer: str | None = None, emphasis: Callable[[str], str] = str) -> str:
        """The grid with its boxes ruled off; `emphasis` is applied to each cell that the answer filled in."""
        size, box = self.size, math.isqrt(self.size)
        cells = [a if a == p else emphasis(a) for p, a in zip(puzzle, answer or puzzle, strict=True)]
        ruler = "+".join("-" * (2 * box + 1) for _ in range(box))[1:-1]
        lines: list[str] = []
        for row in range(size):
            if row and row % box == 0:
                lines.append(ruler)
            starts = range(row * size, (row + 1) * size, box)
            lines.append(" | ".join(" ".join(cells[start : start + box]) for start in starts))
        return "\n".join(lines)

    def augment(self, inputs: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        tokens = np.stack([inputs, labels])
        require(bool((tokens >= 1).all()), "tokens", 0, "boards to augment hold no padding")
        puzzles, solutions = augment(rules.as_boards("inputs", inputs - 1), rules.as_boards("labels", labels - 1), rng)
        return (puzzles + 1).astype(inputs.dtype), (solutions + 1).astype(labels.dtype)

    def keys(self, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """By canonical form; above size 9 equal for equal puzzles only."""
        puzzles, solutions = self._boards(inputs), self._boards(labels)
        boards = canonical(puzzles, solutions) if self.size <= 9 else puzzles
        return np.array([board.tobytes() for board in boards], dtype=object)

    def generators(self) -> Generators:
        """Of the group that `twin` draws from."""
        return generators(self.size)

    def twin(
        self, tokens: np.ndarray, rng: np.random.Generator, number: int, answers: Sequence[np.ndarray] = ()
    ) -> Twin:
        """Under a random element of the symmetry group: digits, bands, rows, stacks, columns, transposition."""
        symmetry = Symmetry.random(1, self.size, rng)
        inverse = symmetry.inverse()

        def back(answer: np.ndarray) -> np.ndarray:
            return (inverse.apply(self._boards(answer)[None])[0] + 1).astype(answer.dtype)

        return symmetry.apply(self._boards(tokens)[None])[0] + np.uint8(1), back

    def _boards(self, tokens: np.ndarray) -> np.ndarray:
        return np.where((tokens >= 2) & (tokens <= self.size + 1), tokens - 1, 0).astype(np.uint8)


for _size in (4, 9, 16, 25):
    register(Sudoku(_size))
