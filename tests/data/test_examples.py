"""The example puzzles are what their README says."""

from __future__ import annotations

import numpy as np
import pytest

from rtm_kernels.data.examples import example_names, example_puzzles
from rtm_kernels.data.sudoku import from_text, generate, rate, solve
from rtm_kernels.errors import InputError


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
