"""Puzzles with one solution, by the technique they require: random full grids, dug while they stay solvable."""

from __future__ import annotations

import numpy as np

from rtm_kernels.data.sudoku.logic import LEVELS, TECHNIQUES, boards_of, candidates, rate, reduce_candidates, solved
from rtm_kernels.data.sudoku.rules import check_size, complete
from rtm_kernels.data.sudoku.search import consistent, fewest, solve
from rtm_kernels.errors import RTMError, one_of, require

BATCH = 512
LEAST_ROUND = (16, 64, 128, 256, 16)
"""Grids dug at once, at least: the rarer a level is among dug puzzles, the more."""
FRUITLESS_ROUNDS = 40


def random_grids(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """`count` random solved grids, uint8 [count, cells]: random choices under singles, restarted where they fail."""
    check_size(size)
    found: list[np.ndarray] = [np.zeros((0, size * size), dtype=np.uint8)]
    missing = count
    while missing:
        masks = candidates(np.zeros((min(missing, BATCH), size * size), dtype=np.uint8))
        while masks.shape[2]:
            masks = reduce_candidates(_guess(masks, rng), 0)
            masks = masks[:, :, consistent(masks)]
            done = solved(masks).all(axis=(0, 1))
            full = boards_of(masks[:, :, done])
            found.append(full[complete(full)])
            missing -= len(found[-1])
            masks = masks[:, :, ~done]
    return np.concatenate(found)


def _guess(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fix the tightest cell of each board to one of its candidates at random."""
    size, count = len(masks), masks.shape[2]
    flat, cell, board = masks.reshape(-1, count).copy(), fewest(masks), np.arange(count)
    has = flat[cell, board][:, None] >> np.arange(size, dtype=masks.dtype) & 1
    digit = np.where(has, rng.random((count, size)), -1).argmax(axis=1)
    flat[cell, board] = (1 << digit).astype(masks.dtype)
    return flat.reshape(masks.shape)


def generate(
    count: int, *, seed: int, difficulty: str = "singles", clues: tuple[int, int] | None = None, size: int = 9
) -> tuple[np.ndarray, np.ndarray]:
    """`count` puzzles with exactly one solution, and these: uint8 [count, cells] each, 0 = blank.

    `difficulty`, one of `LEVELS`: techniques up to this level solve the puzzle, those below it do not
    (`search`: no technique suffices). `clues`: least and most givens; by default 37 to 45 % of the cells for
    `singles` (30 to 36 of 81), 27 to 37 % above. The same arguments give the same puzzles.
    Raises `InputError` for bad arguments and `RTMError` when the requested kind is too rare to be found.
    """
    check_size(size)
    one_of("difficulty", difficulty, LEVELS)
    require(count >= 0, "count", count, "expected 0 or more")
    cells, level = size * size, LEVELS.index(difficulty)
    share = (0.37, 0.445) if level == 0 else (0.27, 0.37)
    low, high = clues or (round(share[0] * cells), round(share[1] * cells))
    require(1 <= low <= high <= cells, "clues", (low, high), f"expected least <= most within 1 to {cells}")
    rng = np.random.default_rng(seed)
    puzzles: list[np.ndarray] = [np.zeros((0, cells), dtype=np.uint8)]
    solutions = list(puzzles)
    missing, fruitless = count, 0
    while missing > 0:
        grids = random_grids(min(BATCH, max(missing, LEAST_ROUND[level])), size, rng)
        most = high if level == 0 else low
        dug = dig(grids, level, rng.integers(low, most + 1, len(grids)), rng)
        kept = ((dug > 0).sum(axis=1) <= high) & (rate(dug) == level)
        puzzles.append(dug[kept][:missing])
        solutions.append(grids[kept][:missing])
        missing -= len(puzzles[-1])
        fruitless = 0 if kept.any() else fruitless + 1
        if fruitless == FRUITLESS_ROUNDS:
            raise RTMError(f"no {difficulty} puzzle of {low} to {high} clues in {fruitless} rounds: widen `clues`")
    return np.concatenate(puzzles), np.concatenate(solutions)


def dig(grids: np.ndarray, level: int, clues: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blank cells of grids [N, cells] in random order while the level solves them, down to `clues` [N] givens.

    A removal stays when the techniques recover the removed cell, because from there on the previous board is known
    to be solvable. For `search` a removal also stays when no second solution exists.
    """
    boards, left = grids.copy(), np.full(len(grids), grids.shape[1])
    for cells in np.argsort(rng.random(grids.shape), axis=1).T:
        active = np.flatnonzero(left > clues)
        if not active.size:
            break
        target = cells[active]
        trial = boards[active]
        trial[np.arange(len(active)), target] = 0
        masks = reduce_candidates(candidates(trial), min(level, len(TECHNIQUES) - 1), target)
        stays = solved(masks.reshape(grids.shape[1], -1)[target, np.arange(len(active))])
        if level == len(TECHNIQUES) and not stays.all():
            stays[~stays] = solve(trial[~stays])[0] == 1
        boards[active[stays]] = trial[stays]
        left[active[stays]] -= 1
    return boards
