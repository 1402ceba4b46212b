"""Builders of data sets in the official layout: Sudoku and Maze with held-out splits free of twins, and ARC."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from rtm_kernels.data.arc import COLOURS, SIDE, Augmentation, Example, Puzzles, encode_grid
from rtm_kernels.data.dataset import Examples, write_dataset
from rtm_kernels.data.maze import Maze, check_side, dihedral_indices
from rtm_kernels.data.sudoku import Sudoku, read_boards, solve_missing
from rtm_kernels.data.task import Pair, Puzzle, Task
from rtm_kernels.errors import InputError, require
from rtm_kernels.files import StrPath

AUGMENTATION_TRIES = 5
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
    are dropped. `augmented` writes all eight symmetries of each training maze as one group.
    """
    check_side(side)
    task, rng = Maze(side), np.random.default_rng(seed)
    pair = _mazes(source, side)
    kept, tested, dropped = _divide(task, pair, test if isinstance(test, int) else _mazes(test, side), rng)
    views = dihedral_indices(side) if augmented else dihedral_indices(side)[:1]
    inputs, labels = (part[kept][:, views].reshape(-1, side * side) for part in pair)
    made_by = {"builder": "maze", "source": _name(source), "test": _name(test), "side": side, "augmented": augmented,
               "seed": seed}  # fmt: skip
    splits = {"train": Examples.of_single(inputs, labels, len(views)), "test": Examples.of_single(*tested)}
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


def build_arc(
    out: StrPath,
    train: Puzzles,
    test: Puzzles,
    *,
    augmentations: int = 1000,
    seed: int = 42,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write ARC puzzles as a data set. Returns counts: `train`, `test` (examples), `identifiers`.

    `train`, `test`: puzzles as `read_arc` gives them. As in the official data, the demonstrations of
    the test puzzles are trained on, and only their test pairs are held out; each puzzle has up to `augmentations`
    different dihedral and colour twins, with an identifier of its own each; training grids are shifted at random, but
    for one pair of each puzzle.
    """
    shared = sorted(set(train) & set(test))
    require(not shared, "test", shared[:3], "a puzzle is either for training or for testing")
    held_out = sum(len(puzzle["test"]) for puzzle in test.values())
    require(held_out > 0, "test", f"{len(test)} puzzles", "at least one of them with a test pair, its output included")
    rng = np.random.default_rng(seed)
    names = ["<blank>"]
    rows: dict[str, _Rows] = {"train": _Rows(), "test": _Rows()}
    for tested, puzzles in ((False, train), (True, test)):
        for name, puzzle in puzzles.items():
            pairs = {"train": list(puzzle["train"]), "test": list(puzzle["test"])}
            parts = pairs if tested else {"train": pairs["train"] + pairs["test"]}
            for augmentation in _augmentations(parts, augmentations, rng):
                for part, examples in parts.items():
                    moved = [(augmentation.apply(a), augmentation.apply(b)) for a, b in examples]
                    rows[part].add(moved, len(names), rng if part == "train" else None)
                names.append(augmentation.name(name))
            for part in parts:
                rows[part].end_group()
    made_by = {"builder": "arc", "augmentations": augmentations, "seed": seed}
    splits = {part: built.examples() for part, built in rows.items()}
    write_dataset(out, splits, COLOURS + 2, made_by=made_by, identifiers=names, overwrite=overwrite)
    return {"train": len(splits["train"].inputs), "test": len(splits["test"].inputs), "identifiers": len(names)}


class _Rows:
    """Examples of ARC puzzles as they are added, group by group."""

    def __init__(self) -> None:
        self.inputs: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.identifiers: list[int] = []
        self.puzzles, self.groups = [0], [0]

    def add(self, pairs: list[Example], identifier: int, rng: np.random.Generator | None) -> None:
        """One puzzle; with `rng` all of its pairs but one are shifted at random."""
        if not pairs:
            return
        still = int(rng.integers(len(pairs))) if rng is not None else 0
        for index, (grid, answer) in enumerate(pairs):
            row = column = 0
            if rng is not None and index != still:
                row = int(rng.integers(SIDE - max(grid.shape[0], answer.shape[0]) + 1))
                column = int(rng.integers(SIDE - max(grid.shape[1], answer.shape[1]) + 1))
            self.inputs.append(encode_grid(grid, row, column))
            self.labels.append(encode_grid(answer, row, column))
        self.identifiers.append(identifier)
        self.puzzles.append(len(self.inputs))

    def end_group(self) -> None:
        if len(self.identifiers) > self.groups[-1]:
            self.groups.append(len(self.identifiers))

    def examples(self) -> Examples:
        tokens = (np.array(grids, dtype=np.uint8).reshape(-1, SIDE * SIDE) for grids in (self.inputs, self.labels))
        index = (np.array(values, dtype=np.int32) for values in (self.identifiers, self.puzzles, self.groups))
        return Examples(*tokens, *index)


def _augmentations(parts: Mapping[str, list[Example]], count: int, rng: np.random.Generator) -> list[Augmentation]:
    """The identity and up to `count` augmentations that give different puzzles."""
    found: list[Augmentation] = []
    seen: set[tuple[Any, ...]] = set()
    for trial in range(1 + AUGMENTATION_TRIES * count):
        augmentation = Augmentation() if trial == 0 else Augmentation.random(rng)
        grids = [augmentation.apply(grid) for examples in parts.values() for pair in examples for grid in pair]
        key = tuple((grid.shape, grid.tobytes()) for grid in grids)
        if key not in seen:
            seen.add(key)
            found.append(augmentation)
        if len(found) == count + 1:
            break
    return found
