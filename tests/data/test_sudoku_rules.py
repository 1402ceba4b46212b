"""Rules, symmetries, canonical forms, generation, rating and exact solving, against slow restatements or invariants."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtm_kernels.data.examples import example_names, example_puzzles
from rtm_kernels.data.sudoku import (
    LEVELS,
    Symmetry,
    augment,
    from_text,
    generate,
    random_grids,
    rate,
    solve,
    verify,
)
from rtm_kernels.data.sudoku.canonical import canonical
from rtm_kernels.data.sudoku.logic import candidates, reduce_candidates
from rtm_kernels.data.sudoku.rules import contradictory, explain
from rtm_kernels.errors import InputError, RTMError

SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=10, deadline=None)


def slow_verify(puzzle: np.ndarray, answer: np.ndarray, box: int) -> bool:
    size = box * box
    p, a = puzzle.reshape(size, size), answer.reshape(size, size)
    whole = set(range(1, size + 1))
    boxes = product(range(0, size, box), repeat=2)
    lines = [set(a[i]) == whole and set(a[:, i]) == whole for i in range(size)]
    squares = [{int(a[r + i, c + j]) for i, j in product(range(box), repeat=2)} == whole for r, c in boxes]
    kept = all(p[r, c] in (0, a[r, c]) for r, c in product(range(size), repeat=2))
    return all(lines) and all(squares) and kept


def slow_count(puzzle: np.ndarray, box: int) -> int:
    """Solutions of a 4x4 puzzle by trying every digit in every cell."""
    size, board = box * box, puzzle.copy()
    if contradictory(board[None])[0]:
        return 0
    open_cells = np.flatnonzero(board == 0)
    if not open_cells.size:
        return 1
    total = 0
    for digit in range(1, size + 1):
        board[open_cells[0]] = digit
        total += slow_count(board, box)
    return total


@quick
@given(SEEDS, st.sampled_from([2, 3]))
def test_verify_agrees_with_the_rules_spelled_out(seed: int, box: int) -> None:
    rng = np.random.default_rng(seed)
    size = box * box
    answers = random_grids(12, size, rng)
    puzzles = np.where(rng.random(answers.shape) < 0.4, answers, 0).astype(np.uint8)
    for row in range(0, 12, 2):  # damage every other answer: any value, or a swap of two cells
        first, second = rng.integers(0, size * size, 2)
        if row % 4:
            answers[row, first] = rng.integers(0, size + 1)
        else:
            answers[row, [first, second]] = answers[row, [second, first]]
    expected = [slow_verify(p, a, box) for p, a in zip(puzzles, answers, strict=True)]
    assert verify(puzzles, answers).tolist() == expected
    assert [not explain(p, a) for p, a in zip(puzzles, answers, strict=True)] == expected


@settings(max_examples=4, deadline=None)
@given(SEEDS)
def test_counts_of_solutions_agree_with_trying_everything(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boards = random_grids(4, 4, rng)
    puzzles = np.where(rng.random(boards.shape) < 0.35, boards, 0).astype(np.uint8)
    puzzles[0, :2] = 1  # contradictory
    counts, solutions = solve(puzzles, limit=1000)
    assert counts.tolist() == [slow_count(p, 2) for p in puzzles]
    assert verify(puzzles, solutions).tolist() == (counts > 0).tolist()
    assert solve(puzzles)[0].tolist() == np.minimum(counts, 2).tolist()


def test_known_counts() -> None:
    assert solve(np.zeros((1, 16), dtype=np.uint8), limit=1000)[0].tolist() == [288]
    with pytest.raises(RTMError, match="gave up after 5000 boards"):
        solve(np.zeros((1, 81), dtype=np.uint8), limit=10**6, max_boards=5000)


@pytest.mark.parametrize("level", range(4))
def test_techniques_never_remove_the_solution(level: int) -> None:
    rng = np.random.default_rng(level)
    solutions = random_grids(200, 9, rng)
    puzzles = np.where(rng.random(solutions.shape) < 0.42, solutions, 0).astype(np.uint8)
    masks = reduce_candidates(candidates(puzzles), level)
    unique = solve(puzzles)[0] == 1
    kept = masks & candidates(solutions)
    assert unique.sum() > 20
    assert (kept[:, :, unique] != 0).all()


@pytest.mark.parametrize(
    ("difficulty", "count", "size"),
    [("singles", 100, 9), ("locked", 10, 9), ("subsets", 2, 9), ("fish", 1, 9), ("search", 2, 9),
     ("singles", 60, 4), ("singles", 1, 16)],
)  # fmt: skip
def test_generated_puzzles_are_unique_and_of_their_level(difficulty: str, count: int, size: int) -> None:
    puzzles, solutions = generate(count, seed=7, difficulty=difficulty, size=size)
    assert puzzles.shape == solutions.shape == (count, size * size) and puzzles.dtype == np.uint8
    counts, found = solve(puzzles)
    assert counts.tolist() == [1] * count
    assert np.array_equal(found, solutions) and verify(puzzles, solutions).all()
    assert [LEVELS[level] for level in rate(puzzles)] == [difficulty] * count
    assert len(np.unique(puzzles, axis=0)) == count


def test_generation_is_seeded_and_keeps_to_the_range_of_clues() -> None:
    first, again, other = (generate(10, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    for clues in ((30, 36), (24, 24), (50, 80)):
        given_cells = (generate(10, seed=1, clues=clues)[0] > 0).sum(axis=1)
        assert given_cells.min() >= clues[0] and given_cells.max() <= clues[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"difficulty": "easy"}, "difficulty='easy' is not allowed: expected one of singles, locked"),
     ({"clues": (40, 30)}, r"clues=\(40, 30\) is not allowed"), ({"size": 8}, "size=8 is not allowed"),
     ({"clues": (1, 2), "size": 4}, "no singles puzzle of 1 to 2 clues")],
)  # fmt: skip
def test_impossible_requests_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(RTMError, match=message):
        generate(1, seed=0, **arguments)


@quick
@given(SEEDS, st.sampled_from([4, 9, 16]))
def test_symmetries_keep_validity_and_invert(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    solutions = random_grids(1, size, rng).repeat(5, axis=0)
    puzzles = np.where(rng.random(solutions.shape) < 0.4, solutions, 0).astype(np.uint8)
    symmetry = Symmetry.random(5, size, rng)
    moved_puzzles, moved_solutions = symmetry.apply(puzzles), symmetry.apply(solutions)
    assert verify(moved_puzzles, moved_solutions).all()
    assert np.array_equal((moved_puzzles > 0).sum(axis=1), (puzzles > 0).sum(axis=1))
    assert np.array_equal(symmetry.inverse().apply(moved_puzzles), puzzles)
    assert np.array_equal(symmetry.inverse().inverse().apply(puzzles), moved_puzzles)


def test_augmentation_keeps_difficulty_and_reaches_the_whole_group() -> None:
    puzzles, solutions = generate(8, seed=11, difficulty="locked")
    twins, twin_solutions = augment(puzzles, solutions, np.random.default_rng(0))
    assert verify(twins, twin_solutions).all()
    assert (rate(twins) == LEVELS.index("locked")).all()
    grid = random_grids(1, 4, np.random.default_rng(0))
    symmetry = Symmetry.random(60_000, 4, np.random.default_rng(1))
    elements = np.concatenate([symmetry.rows, symmetry.columns, symmetry.transpose[:, None], symmetry.digits], axis=1)
    assert len(np.unique(elements, axis=0)) == 8 * 8 * 2 * 24
    images = np.unique(symmetry.apply(grid.repeat(60_000, axis=0)), axis=0)
    assert len(images) in (96, 192)  # the two classes of 4x4 grids


@pytest.mark.parametrize(
    ("boards", "message"),
    [(np.zeros((2, 80), int), "cells=80"), (np.zeros(81, int), "boards.shape"),
     (np.full((1, 81), 10), r"boards\[0, 0\]=10"), (np.full((1, 81), -1), r"boards\[0, 0\]=-1"),
     (np.zeros((1, 81)), "boards.dtype='float64'")],
)  # fmt: skip
def test_wrong_boards_are_named(boards: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        contradictory(boards)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 9]))
def test_twins_share_a_canonical_form(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    solutions = random_grids(4, size, rng)
    puzzles = np.where(rng.random(solutions.shape) < 0.4, solutions, 0).astype(np.uint8)
    forms = canonical(puzzles, solutions)
    assert np.array_equal(canonical(*augment(puzzles, solutions, rng)), forms)


def test_a_canonical_form_is_a_twin_of_its_puzzle() -> None:
    puzzles, solutions = generate(40, seed=2)
    forms, grids = canonical(puzzles, solutions), canonical(solutions, solutions)
    assert verify(forms, grids).all()
    assert np.array_equal(canonical(forms, grids), forms)
    assert np.array_equal((forms > 0).sum(axis=1), (puzzles > 0).sum(axis=1))
    assert (grids[:, :9] == np.arange(1, 10)).all()


def test_classes_are_the_orbits_of_the_group() -> None:
    """4x4: there are two classes of grids; puzzles fall apart exactly as their images under the whole group do."""
    every = np.unique(random_grids(5000, 4, np.random.default_rng(0)), axis=0)
    assert len(every) == 288 and len(np.unique(canonical(every, every), axis=0)) == 2
    rng = np.random.default_rng(1)
    solutions = every[rng.integers(0, 288, 60)]
    puzzles = np.where(rng.random(solutions.shape) < 0.5, solutions, 0).astype(np.uint8)
    puzzles, solutions = puzzles[solve(puzzles)[0] == 1], solutions[solve(puzzles)[0] == 1]
    group = Symmetry.random(40_000, 4, rng)
    orbits = [min(map(bytes, group.apply(p[None].repeat(40_000, axis=0)))) for p in puzzles]
    forms = [bytes(form) for form in canonical(puzzles, solutions)]
    assert len(puzzles) > 10 and len(set(orbits)) == len(set(zip(orbits, forms, strict=True))) == len(set(forms))


def test_a_canonical_form_needs_a_solution_that_solves() -> None:
    puzzles, solutions = generate(2, seed=1)
    with pytest.raises(InputError, match="every solution has to solve its puzzle"):
        canonical(puzzles, solutions[::-1])


def test_examples() -> None:
    examples = example_puzzles()
    puzzles = np.stack([from_text(p.text) for p in examples])
    solutions = np.stack([from_text(p.solution or "") for p in examples])
    made, solved = generate(100, seed=20_251_122)
    assert np.array_equal(puzzles, made) and np.array_equal(solutions, solved)
    assert (solve(puzzles)[0] == 1).all() and (rate(puzzles) == 0).all()
    assert 30 <= (puzzles > 0).sum(axis=1).min() <= (puzzles > 0).sum(axis=1).max() <= 36
    assert "sudoku" in example_names()
    with pytest.raises(InputError, match="task='chess' is not allowed: expected one of"):
        example_puzzles("chess")
