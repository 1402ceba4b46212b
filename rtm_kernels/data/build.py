"""Builders of Sudoku and Maze data sets in the official layout, seeded, with held-out splits free of twins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from rtm_kernels.data.dataset import Examples
from rtm_kernels.data.maze import Maze, check_side, dihedral_indices
from rtm_kernels.data.sudoku import Sudoku, augment, read_boards, solve_missing
from rtm_kernels.data.task import Pair, Puzzle
from rtm_kernels.data.write import write_splits
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
    rng = np.random.default_rng(seed)
    puzzles, solutions = _boards(source, size, min_rating)
    task = Sudoku(size)
    keys = _sudoku_keys(task, puzzles, solutions)
    if isinstance(test, int):
        held_out, rest = _split(keys, test, rng)
        test_boards, test_keys = (puzzles[held_out], solutions[held_out]), keys[held_out]
    else:
        test_boards, rest = _boards(test, size, min_rating), np.arange(len(puzzles))
        test_keys = _sudoku_keys(task, *test_boards)
    kept = _without_twins(keys, rest, test_keys)
    dropped = len(rest) - len(kept)
    if subsample is not None:
        require(0 < subsample <= len(kept), "subsample", subsample, f"there are {len(kept)} training puzzles")
        kept = np.sort(rng.permutation(kept)[:subsample])
    train = [(puzzles[kept], solutions[kept])]
    train += [augment(*train[0], rng) for _ in range(augmentations)]
    inputs, labels = (
        np.stack(part, axis=1).reshape(-1, size * size) + np.uint8(1) for part in zip(*train, strict=True)
    )
    made_by = {"builder": "sudoku", "source": _name(source), "test": _name(test), "size": size, "subsample": subsample,
               "augmentations": augmentations, "min_rating": min_rating, "seed": seed}  # fmt: skip
    splits = {
        "train": Examples.of_single(inputs, labels, 1 + augmentations),
        "test": Examples.of_single(test_boards[0] + np.uint8(1), test_boards[1] + np.uint8(1)),
    }
    write_splits(out, splits, task.vocab_size, made_by, overwrite)
    return {"train": len(inputs), "test": len(test_boards[0]), "twins_dropped": dropped}


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
    are dropped. `augmented` writes all eight symmetries of each training maze as one group.
    """
    check_side(side)
    rng = np.random.default_rng(seed)
    task, (mazes, answers) = Maze(side), _mazes(source, side)
    turns = dihedral_indices(side)
    keys = task.keys(mazes, answers)
    if isinstance(test, int):
        held_out, rest = _split(keys, test, rng)
        tested, test_keys = (mazes[held_out], answers[held_out]), keys[held_out]
    else:
        tested, rest = _mazes(test, side), np.arange(len(mazes))
        test_keys = task.keys(*tested)
    kept = _without_twins(keys, rest, test_keys)
    views = turns if augmented else turns[:1]
    inputs, labels = (part[kept][:, views].reshape(-1, side * side) for part in (mazes, answers))
    made_by = {"builder": "maze", "source": _name(source), "test": _name(test), "side": side, "augmented": augmented,
               "seed": seed}  # fmt: skip
    splits = {"train": Examples.of_single(inputs, labels, len(views)), "test": Examples.of_single(*tested)}
    write_splits(out, splits, task.vocab_size, made_by, overwrite)
    return {"train": len(inputs), "test": len(tested[0]), "twins_dropped": len(rest) - len(kept)}


def _boards(source: Boards, size: int, min_rating: float | None) -> Pair:
    """Puzzles and solutions of a source."""
    boards = [read_boards(file, size=size, min_rating=min_rating) for file in _files(source)] or [cast(Pair, source)]
    puzzles, solutions = (np.concatenate(part).astype(np.uint8) for part in zip(*boards, strict=True))
    require(len(puzzles) > 0, "source", _name(source), "no puzzle is left")
    return solve_missing(puzzles, solutions, str(_name(source)))


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


def _sudoku_keys(task: Sudoku, puzzles: np.ndarray, solutions: np.ndarray) -> np.ndarray:
    return task.keys(puzzles + np.uint8(1), solutions + np.uint8(1))


def _split(keys: np.ndarray, count: int, rng: np.random.Generator) -> Pair:
    """`count` random puzzles that are no twins of each other, and all the others."""
    distinct = np.sort(np.unique(keys, return_index=True)[1])
    require(0 < count < len(distinct), "test", count, f"expected 1 to {len(distinct) - 1} of the distinct puzzles")
    held_out = np.sort(rng.permutation(distinct)[:count])
    return held_out, np.setdiff1d(np.arange(len(keys)), held_out)


def _without_twins(keys: np.ndarray, rows: np.ndarray, test_keys: np.ndarray) -> np.ndarray:
    """Those of `rows` that are no twin of a test puzzle or of an earlier row."""
    seen, kept = set(test_keys.tolist()), []
    for row in rows.tolist():
        if keys[row] not in seen:
            seen.add(keys[row])
            kept.append(row)
    require(bool(kept), "source", "nothing", "every training puzzle is a twin of a test puzzle")
    return np.array(kept)


def _name(source: Boards | int) -> str | int:
    if isinstance(source, int):
        return source
    names = ", ".join(Path(file).name for file in _files(source))
    return names or f"{len(cast(Pair, source)[0])} puzzles in memory"
