"""The canonical form is equal for symmetric puzzles and for no others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtm_kernels.data.sudoku import augment, generate, random_grids, solve, verify
from rtm_kernels.data.sudoku.canonical import canonical
from rtm_kernels.data.sudoku.symmetry import Symmetry
from rtm_kernels.errors import InputError


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 9]))
def test_twins_share_it(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    solutions = random_grids(4, size, rng)
    puzzles = np.where(rng.random(solutions.shape) < 0.4, solutions, 0).astype(np.uint8)
    forms = canonical(puzzles, solutions)
    assert np.array_equal(canonical(*augment(puzzles, solutions, rng)), forms)


def test_it_is_a_twin_of_the_puzzle() -> None:
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


def test_a_solution_has_to_solve() -> None:
    puzzles, solutions = generate(2, seed=1)
    with pytest.raises(InputError, match="every solution has to solve its puzzle"):
        canonical(puzzles, solutions[::-1])
