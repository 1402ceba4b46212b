"""Endless, seeded, resumable batches: banks of Sudokus under random symmetries, or an official-layout data set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.data.dataset import PuzzleDataset
from rtm_kernels.data.loader import Batch, TrainLoader
from rtm_kernels.data.sudoku import augment, generate, read_boards, solve
from rtm_kernels.data.sudoku.canonical import canonical
from rtm_kernels.data.task import Task, get_task, task_names
from rtm_kernels.errors import InputError, require
from rtm_kernels.train.schema import Recipe, Source

Bank = tuple[np.ndarray, np.ndarray]
Arrays = dict[str, np.ndarray]


class Stream(Protocol):
    """Where batches come from; `state` and `load_state` make it resumable."""

    def batch(self, size: int, mix: Mapping[str, float]) -> dict[str, Tensor]:
        """`inputs` and `labels` [size, seq_len], `puzzle_identifiers` [size], int32."""

    def state(self) -> str:
        """The position of the stream as text."""

    def load_state(self, state: str) -> None:
        """Continue from a position that `state` returned."""


def load_bank(source: Source) -> Bank:
    """Puzzles and solutions of a source, uint8 [N, cells] each, 0 = blank.

    Errors: `InputError` when a csv file cannot be read, or holds a puzzle without a unique solution.
    """
    if source.path is None:
        return generate(
            source.count, seed=source.seed, difficulty=source.difficulty, clues=source.clues, size=source.size
        )
    puzzles, solutions = read_boards(source.path, size=source.size)
    unsolved = np.flatnonzero(~solutions.any(axis=1))
    counts, solutions[unsolved] = solve(puzzles[unsolved])
    require(bool((counts == 1).all()), "path", source.path, "puzzles with exactly one solution")
    return puzzles[: source.count], solutions[: source.count]


def classes(bank: Bank) -> np.ndarray:
    """One key per puzzle, equal for puzzles that are symmetric twins (above size 9 only for equal ones)."""
    puzzles = bank[0] if bank[0].shape[1] > 81 else canonical(*bank)
    return np.array([row.tobytes() for row in puzzles], dtype=object)


class SudokuStream:
    """Draws batches from banks: source by weight, puzzle uniformly, then a random symmetric twin of it.

    With `test`, every puzzle that is a symmetric twin of one of its puzzles is taken out of the banks.
    """

    def __init__(self, sources: Mapping[str, Source], seed: int, test: Source | None = None) -> None:
        self.sources, self.test = sources, test
        self.banks: dict[str, Bank] = {}
        self.held_out: Bank | None = None
        self._held_keys: set[object] = set()
        self.rng = np.random.default_rng(seed)
        if test is not None:
            bank = load_bank(test)
            keys = classes(bank)
            first = np.sort(np.unique(keys, return_index=True)[1])
            self.held_out = (bank[0][first], bank[1][first])
            self._held_keys = set(keys.tolist())

    def batch(self, size: int, mix: Mapping[str, float]) -> dict[str, Tensor]:
        """`inputs` and `labels` [size, cells] int32 (token = digit + 1), `puzzle_identifiers` [size] zeros."""
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
        return tensors(_arrays((puzzles, solutions)))

    def _bank(self, name: str) -> Bank:
        if name not in self.banks:
            bank = load_bank(self.sources[name])
            if self._held_keys:
                kept = [i for i, key in enumerate(classes(bank).tolist()) if key not in self._held_keys]
                require(bool(kept), f"sources[{name!r}]", len(bank[0]), "a puzzle that is no twin of a test puzzle")
                bank = (bank[0][kept], bank[1][kept])
            self.banks[name] = bank
        return self.banks[name]

    def test_arrays(self, limit: int) -> Arrays | None:
        """Up to `limit` unseen puzzles, each under a symmetry of its own; the classes are repeated to fill it."""
        if self.held_out is None:
            return None
        index = np.arange(limit) % len(self.held_out[0])
        return _arrays(augment(self.held_out[0][index], self.held_out[1][index], np.random.default_rng(0)))

    @property
    def unseen(self) -> str:
        """What the test puzzles are."""
        classes = 0 if self.held_out is None else len(self.held_out[0])
        return f"puzzles, twins of {classes} puzzles; of no such puzzle was any symmetric twin trained on"

    def state(self) -> str:
        """The position of the stream as text."""
        return json.dumps(self.rng.bit_generator.state)

    def load_state(self, state: str) -> None:
        """Continue from a position that `state` returned."""
        self.rng.bit_generator.state = json.loads(state)


class DatasetStream:
    """Batches of the split `train` of a data set in the official layout, by the official sampling.

    `augmented` replaces each puzzle by a random symmetric twin as it is read, where the task is known by its sizes.
    Every stage has to use the same batch size. Errors: `InputError`.
    """

    def __init__(self, path: str, seed: int, batch_size: int, augmented: bool) -> None:
        self.path = path
        self.dataset = PuzzleDataset.open(path, "train")
        twin = task_of(self.dataset).augment if augmented else None
        self.loader = TrainLoader(self.dataset, batch_size, seed=seed, augment=twin)
        self._pass: Iterator[Batch] = iter(())

    def batch(self, size: int, mix: Mapping[str, float]) -> dict[str, Tensor]:
        """The next batch; `mix` is not read."""
        allowed = f"{self.loader.batch_size}, the batch size of the first stage"
        require(size == self.loader.batch_size, "batch_size", size, allowed)
        found = next(self._pass, None)
        if found is None:
            self._pass = iter(self.loader)
            found = next(self._pass)
        return tensors(found.arrays)

    def test_arrays(self, limit: int) -> Arrays | None:
        """Up to `limit` examples of the split `test`, None when the data set has none."""
        from rtm_kernels.data.loader import TestLoader

        try:
            dataset = PuzzleDataset.open(self.path, "test")
        except InputError:
            return None
        batch = next(iter(TestLoader(dataset, limit)))
        return {name: array[: batch.size] for name, array in batch.arrays.items()}

    @property
    def unseen(self) -> str:
        """What the test puzzles are."""
        return f"examples of the split test of {self.path}"

    def state(self) -> str:
        """The position of the stream as text."""
        return json.dumps(self.loader.state_dict())

    def load_state(self, state: str) -> None:
        """Continue from a position that `state` returned."""
        self.loader.load_state_dict(json.loads(state))
        self._pass = iter(())


def task_of(dataset: PuzzleDataset) -> Task:
    """The registered task of a data set's sizes, whose symmetries augment it. Errors: `InputError` for none."""
    sizes = (dataset.metadata.seq_len, dataset.metadata.vocab_size)
    found = [t for t in map(get_task, task_names()) if (t.seq_len, t.vocab_size) == sizes]
    require(len(found) == 1, "augment", True, f"a task of (seq_len, vocab_size) = {sizes} is needed for symmetries")
    return found[0]


def build_stream(recipe: Recipe) -> SudokuStream | DatasetStream:
    """The stream of a recipe: its data set, or else its sources."""
    if recipe.data is not None:
        return DatasetStream(recipe.data, recipe.seed, recipe.stages[0].batch_size, recipe.augment)
    return SudokuStream(recipe.sources or {}, recipe.seed, recipe.test)


def _arrays(bank: Bank) -> Arrays:
    inputs, labels = (part.astype(np.int32) + 1 for part in bank)
    return {"inputs": inputs, "labels": labels, "puzzle_identifiers": np.zeros(len(inputs), dtype=np.int32)}


def tensors(arrays: Arrays) -> dict[str, Tensor]:
    """The arrays of a batch as tensors."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
