"""Builders of Sudoku and Maze data sets in the official layout, seeded, with held-out splits free of twins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from rtm_kernels.data.dataset import Examples
from rtm_kernels.data.maze import Maze, check_side, dihedral_indices, solve
from rtm_kernels.data.sudoku import Sudoku, read_boards, solve_missing
from rtm_kernels.data.task import Pair, Puzzle, Task
from rtm_kernels.data.write import write_dataset
from rtm_kernels.errors import InputError, require
from rtm_kernels.files import StrPath

Boards = StrPath | Sequence[StrPath] | Pair
"""A file of puzzles or several, or (puzzles, solutions) as `generate` returns them."""


def build_sudoku(
    out: StrPath,
    source: Boards,
    *,
    test: Boards | int,
    size: int = 9,
    subsample: int | None = None,
    augmentations: int = 0,
    min_rating: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write Sudokus as a data set. Returns counts: `train`, `test`, `twins_dropped`.

    `source`, `test`: csv with solutions or without (then solved), Sudoku-Extreme csv, plain lists, or arrays;
    `test` may be a number of puzzles to hold out of the source. Training puzzles that are symmetric to a test
    puzzle, or to another training puzzle, are dropped (sizes 4 and 9, by exact canonical form; above only equal ones).
    `subsample` training puzzles are kept; each is followed by `augmentations` random twins in its group, as in the
    official builder.
    """
    task, rng = Sudoku(size), np.random.default_rng(seed)
    pair = _sudokus(source, size, min_rating)
    kept, tested, dropped = _divide(
        task, pair, test if isinstance(test, int) else _sudokus(test, size, min_rating), rng
    )
    if subsample is not None:
        require(0 < subsample <= len(kept), "subsample", subsample, f"there are {len(kept)} training puzzles")
        kept = np.sort(rng.permutation(kept)[:subsample])
    train = [(pair[0][kept], pair[1][kept])]
    train += [task.augment(*train[0], rng) for _ in range(augmentations)]
    inputs, labels = (np.stack(part, axis=1).reshape(-1, task.seq_len) for part in zip(*train, strict=True))
    made_by = {"builder": "sudoku", "source": _name(source), "test": _name(test), "size": size, "subsample": subsample,
               "augmentations": augmentations, "min_rating": min_rating, "seed": seed}  # fmt: skip
    splits = {"train": Examples.of_single(inputs, labels, 1 + augmentations), "test": Examples.of_single(*tested)}
    write_dataset(out, splits, task.vocab_size, made_by=made_by, overwrite=overwrite)
    return {"train": len(inputs), "test": len(tested[0]), "twins_dropped": dropped}


def build_maze(
    out: StrPath,
    source: Boards,
    *,
    test: Boards | int,
    side: int = 30,
    augmented: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write mazes as a data set. Returns counts: `train`, `test`, `twins_dropped`.

    `source`, `test`: the official csv or any text of mazes with solutions, or token arrays as `maze.generate` returns
    them; `test` may be a number to hold out. Training mazes that are a turned or mirrored test maze, or one another,
    are dropped. `augmented` writes all eight symmetries of each training maze, solved anew, as one group.
    """
    check_side(side)
    task, rng = Maze(side), np.random.default_rng(seed)
    pair = _mazes(source, side)
    kept, tested, dropped = _divide(task, pair, test if isinstance(test, int) else _mazes(test, side), rng)
    inputs, labels, views = pair[0][kept], pair[1][kept], 1
    if augmented:
        turns = dihedral_indices(side)
        views, inputs = len(turns), inputs[:, turns].reshape(-1, side * side)
        labels = solve(inputs.reshape(-1, side, side)).reshape(inputs.shape)
    made_by = {"builder": "maze", "source": _name(source), "test": _name(test), "side": side, "augmented": augmented,
               "seed": seed}  # fmt: skip
    splits = {"train": Examples.of_single(inputs, labels, views), "test": Examples.of_single(*tested)}
    write_dataset(out, splits, task.vocab_size, made_by=made_by, overwrite=overwrite)
    return {"train": len(inputs), "test": len(tested[0]), "twins_dropped": dropped}


def _sudokus(source: Boards, size: int, min_rating: float | None) -> Pair:
    """Tokens of Sudokus and of their solutions."""
    boards = [read_boards(file, size=size, min_rating=min_rating) for file in _files(source)] or [cast(Pair, source)]
    puzzles, solutions = (np.concatenate(part).astype(np.uint8) for part in zip(*boards, strict=True))
    require(len(puzzles) > 0, "source", _name(source), "no puzzle is left")
    puzzles, solutions = solve_missing(puzzles, solutions, str(_name(source)))
    return puzzles + np.uint8(1), solutions + np.uint8(1)


def _files(source: Boards) -> list[StrPath]:
    """The files that a source names; none for arrays."""
    parts = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    return [part for part in parts if isinstance(part, (str, os.PathLike))]


def _mazes(source: Boards, side: int) -> Pair:
    """Tokens of mazes and of their solutions."""
    files, task, found = _files(source), Maze(side), list[Puzzle]()
    if not files:
        mazes, answers = (np.asarray(part) for part in cast(Pair, source))
        return mazes, answers
    for path in files:
        found += task.read(path)
        missing = [puzzle.line for puzzle in found if puzzle.solution is None]
        if missing:
            raise InputError(f"{os.fspath(path)}: line {missing[0]}: no solution")
    texts = ([p.text for p in found], [p.solution or "" for p in found])
    mazes, answers = (np.stack([task.encode(text) for text in part]) for part in texts)
    return mazes, answers


def _divide(task: Task, pair: Pair, test: Pair | int, rng: np.random.Generator) -> tuple[np.ndarray, Pair, int]:
    """Rows of `pair` to train on, the test puzzles, and how many rows were dropped as twins.

    `test` random puzzles that are no twins of each other are held out, unless they are given.
    """
    keys = task.keys(*pair)
    if isinstance(test, int):
        distinct = np.sort(np.unique(keys, return_index=True)[1])
        require(0 < test < len(distinct), "test", test, f"expected 1 to {len(distinct) - 1} of the distinct puzzles")
        held_out = np.sort(rng.permutation(distinct)[:test])
        test, test_keys = (pair[0][held_out], pair[1][held_out]), keys[held_out]
        rest = np.setdiff1d(np.arange(len(keys)), held_out)
    else:
        test_keys, rest = task.keys(*test), np.arange(len(keys))
    # of twins the first one stays
    first = np.sort(rest[np.unique(keys[rest], return_index=True)[1]])
    seen = set(test_keys.tolist())
    kept = np.array([row for row in first.tolist() if keys[row] not in seen])
    require(len(kept) > 0, "source", "nothing", "every training puzzle is a twin of a test puzzle")
    return kept, test, len(rest) - len(kept)


def _name(source: Boards | int) -> str | int:
    if isinstance(source, int):
        return source
    names = ", ".join(Path(file).name for file in _files(source))
    return names or f"{len(cast(Pair, source)[0])} puzzles in memory"
