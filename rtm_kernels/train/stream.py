"""An endless, seeded, resumable stream of Sudoku batches: banks of puzzles under random symmetries."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.data.sudoku import augment, generate, read_puzzles
from rtm_kernels.errors import require
from rtm_kernels.train.recipe import Source

Bank = tuple[np.ndarray, np.ndarray]


def load_bank(source: Source) -> Bank:
    """Puzzles and solutions of a source, uint8 [N, 81] each, 0 = blank.

    Errors: `InputError` when a csv file cannot be read or lacks solutions.
    """
    if source.path is None:
        return generate(source.count, seed=source.seed, difficulty=source.difficulty, clues=source.clues)
    rows = list(read_puzzles(source.path))
    require(all(r.solution for r in rows), "path", source.path, "a csv file whose every row has a solution")
    puzzles, solutions = ([[int(c) if c.isdigit() else 0 for c in t] for t in texts] for texts in (
        (r.text for r in rows), (str(r.solution) for r in rows)))  # fmt: skip
    return np.array(puzzles, dtype=np.uint8), np.array(solutions, dtype=np.uint8)


class SudokuStream:
    """Draws batches from banks: source by weight, puzzle uniformly, then a random symmetric twin of it."""

    def __init__(self, sources: Mapping[str, Source], seed: int) -> None:
        self.sources = sources
        self.banks: dict[str, Bank] = {}
        self.rng = np.random.default_rng(seed)

    def batch(self, size: int, mix: Mapping[str, float]) -> dict[str, Tensor]:
        """`inputs` and `labels` [size, 81] int32 (token = digit + 1), `puzzle_identifiers` [size] zeros."""
        names = list(mix)
        weights = np.array([mix[n] for n in names], dtype=np.float64)
        counts = self.rng.multinomial(size, weights / weights.sum())
        drawn = []
        for name, count in zip(names, counts, strict=True):
            puzzles, solutions = self._bank(name)
            index = self.rng.integers(0, len(puzzles), count)
            drawn.append((puzzles[index], solutions[index]))
        puzzles, solutions = (np.concatenate(part) for part in zip(*drawn, strict=True))
        order = self.rng.permutation(size)
        puzzles, solutions = augment(puzzles[order], solutions[order], self.rng)
        return {
            "inputs": torch.from_numpy(puzzles.astype(np.int32) + 1),
            "labels": torch.from_numpy(solutions.astype(np.int32) + 1),
            "puzzle_identifiers": torch.zeros(size, dtype=torch.int32),
        }

    def _bank(self, name: str) -> Bank:
        if name not in self.banks:
            self.banks[name] = load_bank(self.sources[name])
        return self.banks[name]

    def state(self) -> str:
        """The position of the stream as text."""
        return json.dumps(self.rng.bit_generator.state)

    def load_state(self, state: str) -> None:
        """Continue from a position that `state` returned."""
        self.rng.bit_generator.state = json.loads(state)
