"""Exact solving: singles, then branching, over a whole batch at once; counts solutions up to a limit."""

from __future__ import annotations

import numpy as np

from rtm_kernels.data.sudoku.logic import boards_of, boxes, candidates, reduce_candidates, solved
from rtm_kernels.data.sudoku.rules import as_boards
from rtm_kernels.errors import InputError, RTMError, require

BATCH = 512


def solve(puzzles: np.ndarray, *, limit: int = 2, max_boards: int = 10_000_000) -> tuple[np.ndarray, np.ndarray]:
    """Count solutions of puzzles [N, cells] up to `limit`: (counts int64 [N], one solution each uint8 [N, cells]).

    A puzzle without a solution has count 0 and a row of zeros. Raises `RTMError` after visiting `max_boards` boards.
    """
    puzzles = as_boards("puzzles", puzzles)
    require(limit >= 1, "limit", limit, "expected at least 1")
    counts, solutions = np.zeros(len(puzzles), dtype=np.int64), np.zeros_like(puzzles)
    index = np.arange(len(puzzles))
    stack = [(candidates(puzzles[i : i + BATCH]), index[i : i + BATCH]) for i in range(0, len(puzzles), BATCH)]
    visited = 0
    while stack:
        masks, owner = stack.pop()
        while stack and len(owner) + len(stack[-1][1]) <= BATCH:
            more, more_owner = stack.pop()
            masks, owner = np.concatenate([masks, more], axis=2), np.concatenate([owner, more_owner])
        keep = counts[owner] < limit
        masks, owner = reduce_candidates(masks[:, :, keep], 0), owner[keep]
        visited += len(owner)
        if visited > max_boards:
            raise RTMError(f"gave up after {max_boards} boards: the puzzles leave too many possibilities")
        possible = consistent(masks)
        masks, owner = masks[:, :, possible], owner[possible]
        done = solved(masks).all(axis=(0, 1))
        solutions[owner[done]] = boards_of(masks[:, :, done])
        np.add.at(counts, owner[done], 1)
        stack.extend(branch(masks[:, :, ~done], owner[~done]))
    return np.minimum(counts, limit), solutions


def solve_missing(puzzles: np.ndarray, solutions: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The puzzles of `name` and their solutions [N, cells], where rows of zeros are replaced by what `solve` finds.

    Errors: `InputError` naming the first puzzle of these that has not exactly one solution.
    """
    unsolved = np.flatnonzero(~solutions.any(axis=1))
    counts, solutions[unsolved] = solve(puzzles[unsolved])
    wrong = np.flatnonzero(counts != 1)
    if wrong.size:
        found = "no solution" if counts[wrong[0]] == 0 else "more than one solution"
        raise InputError(f"{name}: puzzle {unsolved[wrong[0]] + 1} has {found}")
    return puzzles, solutions


def consistent(masks: np.ndarray) -> np.ndarray:
    """Whether every cell has a candidate and every unit a place for each digit, bool [N]."""
    every = masks.dtype.type((1 << len(masks)) - 1)
    views = (masks, masks.swapaxes(0, 1), boxes(masks).reshape(masks.shape))
    whole = [(np.bitwise_or.reduce(view, axis=0) == every).all(axis=0) for view in views]
    return (masks != 0).all(axis=(0, 1)) & whole[0] & whole[1] & whole[2]


def fewest(masks: np.ndarray) -> np.ndarray:
    """The open cell with the fewest candidates of each board, int [N]."""
    count = np.bitwise_count(masks).reshape(len(masks) ** 2, -1)
    return np.where(count > 1, count, 255).argmin(axis=0)


def branch(masks: np.ndarray, owner: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both halves of each board's choice: the lowest candidate of its tightest cell, or any other; that one on top."""
    if not owner.size:
        return []
    cell, board = fewest(masks), np.arange(masks.shape[2])
    flat = masks.reshape(len(masks) ** 2, -1)
    without, with_it = flat.copy(), flat.copy()
    chosen = with_it[cell, board]
    lowest = chosen & (~chosen + 1)
    with_it[cell, board] = lowest
    without[cell, board] = chosen & ~lowest
    return [(without.reshape(masks.shape), owner), (with_it.reshape(masks.shape), owner)]
