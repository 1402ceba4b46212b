"""Endless, seeded, resumable batches: pools of puzzles under random symmetries, or an official-layout data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.data import maze, sudoku
from rtm_kernels.data.dataset import PuzzleDataset
from rtm_kernels.data.loader import Arrays, TrainLoader, read_examples
from rtm_kernels.data.task import Pair, Task, find_tasks
from rtm_kernels.errors import require
from rtm_kernels.train.schema import Recipe, Source


def load_pool(source: Source) -> Pair:
    """Tokens of the puzzles and of the solutions of a source, uint8 [N, seq_len] each.

    Errors: `InputError` when a csv file cannot be read, or holds a Sudoku without a unique solution or a maze without
    a path.
    """
    size, path = source.size, source.path
    if source.task == "maze":
        if path is None:
            return maze.generate(source.count, seed=source.seed, side=size, path_cells=source.path_cells)
        task = maze.Maze(size)
        mazes = np.stack([task.encode(puzzle.text) for puzzle in task.read(path)])[: source.count]
        return mazes, maze.solve(mazes.reshape(-1, size, size)).reshape(mazes.shape)
    if path is None:
        puzzles, solutions = sudoku.generate(
            source.count, seed=source.seed, difficulty=source.difficulty, clues=source.clues, size=size
        )
    else:
        puzzles, solutions = sudoku.solve_missing(*sudoku.read_boards(path, size=size), path)
    return puzzles[: source.count] + np.uint8(1), solutions[: source.count] + np.uint8(1)


def task_of_sources(sources: Sequence[Source]) -> Task:
    """The task that all sources share. Errors: `InputError` when they differ."""
    kinds = sorted({(source.task, source.size) for source in sources})
    require(len(kinds) == 1, "sources", kinds, "one task and size for all sources and the test")
    kind, size = kinds[0]
    return maze.Maze(size) if kind == "maze" else sudoku.Sudoku(size)


class PoolStream:
    """Draws batches from pools: source by weight, puzzle uniformly, then a random symmetric twin of it.

    Mazes are left as they are: among equally short paths their label prefers one side, and a twin's another.
    With `test`, every puzzle that is a symmetric twin of one of its puzzles is taken out of the pools. Files are read
    at once, so that a missing or broken one is reported before the run begins; puzzles are generated when needed.
    """

    def __init__(self, sources: Mapping[str, Source], seed: int, test: Source | None = None) -> None:
        self.sources = sources
        self.task = task_of_sources([*sources.values(), *([test] if test else [])])
        self.pools: dict[str, Pair] = {}
        plain = dict.fromkeys(replace(source, hints=(0, 0)) for source in sources.values())
        self._lists = {source: load_pool(source) for source in plain if source.path is not None}
        self.held_out: Pair | None = None
        self._held_keys: set[object] = set()
        self.rng = np.random.default_rng(seed)
        if test is not None:
            pool = load_pool(test)
            keys = self.task.keys(*pool)
            first = np.sort(np.unique(keys, return_index=True)[1])
            self.held_out = (pool[0][first], pool[1][first])
            self._held_keys = set(keys.tolist())

    def batch(self, size: int, mix: Mapping[str, float]) -> dict[str, Tensor]:
        """`inputs` and `labels` [size, seq_len], `puzzle_identifiers` [size] zeros, int32."""
        names = list(mix)
        weights = np.array([mix[n] for n in names], dtype=np.float64)
        counts = self.rng.multinomial(size, weights / weights.sum())
        drawn = []
        for name, count in zip(names, counts, strict=True):
            puzzles, solutions = self._pool(name)
            index = self.rng.integers(0, len(puzzles), count)
            drawn.append(self._hinted(puzzles[index], solutions[index], self.sources[name].hints))
        puzzles, solutions = (np.concatenate(part) for part in zip(*drawn, strict=True))
        order = self.rng.permutation(size)
        return tensors(self._twins((puzzles[order], solutions[order]), self.rng))

    def _hinted(self, puzzles: np.ndarray, solutions: np.ndarray, hints: tuple[int, int]) -> Pair:
        """The pairs with cells of the solutions filled in, as many as are drawn from the range."""
        if hints == (0, 0):
            return puzzles, solutions
        counts = self.rng.integers(hints[0], hints[1] + 1, (len(puzzles), 1))
        order = np.where(puzzles == solutions, 1.0, self.rng.random(puzzles.shape)).argsort(1).argsort(1)
        return np.where(order < counts, solutions, puzzles), solutions

    def _twins(self, pool: Pair, rng: np.random.Generator) -> Arrays:
        puzzles, solutions = self.task.augment(*pool, rng) if self.task.one_solution else pool
        inputs, labels = puzzles.astype(np.int32), solutions.astype(np.int32)
        return {"inputs": inputs, "labels": labels, "puzzle_identifiers": np.zeros(len(inputs), dtype=np.int32)}

    def _pool(self, name: str) -> Pair:
        if name not in self.pools:
            source = replace(self.sources[name], hints=(0, 0))
            pool = self._lists[source] if source in self._lists else load_pool(source)
            if self._held_keys:
                kept = [i for i, key in enumerate(self.task.keys(*pool).tolist()) if key not in self._held_keys]
                require(bool(kept), f"sources[{name!r}]", len(pool[0]), "a puzzle that is no twin of a test puzzle")
                pool = (pool[0][kept], pool[1][kept])
            self.pools[name] = pool
        return self.pools[name]

    def test_arrays(self, limit: int) -> Arrays | None:
        """Up to `limit` unseen puzzles, each under a symmetry of its own; the classes are repeated to fill it."""
        if self.held_out is None:
            return None
        index = np.arange(limit) % len(self.held_out[0])
        return self._twins((self.held_out[0][index], self.held_out[1][index]), np.random.default_rng(0))

    @property
    def unseen(self) -> str:
        """What the test puzzles are."""
        if self.held_out is None:
            return "none: the recipe has no test puzzles"
        return f"puzzles, twins of {len(self.held_out[0])} puzzles; of no such puzzle was any symmetric twin trained on"

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
        self.dataset.check_tokens()  # all of them: a wrong one would end a run in its middle
        twin = self.task.augment if augmented else None
        self.loader = TrainLoader(self.dataset, batch_size, seed=seed, augment=twin)

    def batch(self, size: int, mix: Mapping[str, float]) -> dict[str, Tensor]:
        """The next batch; `mix` is not read."""
        allowed = f"{self.loader.batch_size}, the batch size of the first stage"
        require(size == self.loader.batch_size, "batch_size", size, allowed)
        return tensors(self.loader.next_batch())

    def test_arrays(self, limit: int) -> Arrays | None:
        """Up to `limit` examples of the split `test`, None when the data set has none."""
        if not Path(self.path, "test").exists():
            return None
        return read_examples(PuzzleDataset.open(self.path, "test"), limit)[0]

    @property
    def task(self) -> Task:
        """The task with the sizes of this data set. Errors: `InputError` unless exactly one task has them."""
        sizes = (self.dataset.metadata.seq_len, self.dataset.metadata.vocab_size)
        found = find_tasks(*sizes)
        allowed = f"a data set of one task; its (seq_len, vocab_size) = {sizes}, and symmetries are those of a task"
        require(len(found) == 1, "data", self.path, allowed)
        return found[0]

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


def build_stream(recipe: Recipe) -> PoolStream | DatasetStream:
    """The stream of a recipe: its data set, or else its sources."""
    if recipe.data is not None:
        return DatasetStream(recipe.data, recipe.seed, recipe.stages[0].batch_size, recipe.augment)
    used = dict.fromkeys(name for stage in recipe.stages for name in stage.mix)
    sources = {name: source for name, source in (recipe.sources or {}).items() if name in used}
    return PoolStream(sources, recipe.seed, recipe.test)


def tensors(arrays: Arrays) -> dict[str, Tensor]:
    """The arrays of a batch as tensors."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
