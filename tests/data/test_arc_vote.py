"""Voting on ARC answers: twins are turned back, ranked by count and confidence, and counted as pass@k."""

from __future__ import annotations

import numpy as np
import pytest

from rtm_kernels.data.arc import Augmentation, Votes, encode_grid
from rtm_kernels.errors import InputError

RNG = np.random.default_rng(4)
TWINS = [Augmentation(), *(Augmentation.random(RNG) for _ in range(5))]
NAMES = ["<blank>", *(twin.name("p") for twin in TWINS), "q"]
GRID, ANSWER = np.array([[1, 2, 0], [3, 0, 4]], np.uint8), np.array([[5, 6], [7, 8], [9, 1]], np.uint8)
WRONG, OTHER = np.array([[2]], np.uint8), np.array([[3, 3]], np.uint8)


def votes_of(answers: list[tuple[np.ndarray, float]]) -> Votes:
    """One test pair of puzzle p, its twin i predicted as `answers[i]`, and one of puzzle q that nobody predicts."""
    votes = Votes(NAMES)
    for i, twin in enumerate(TWINS, start=1):
        votes.expect(i, encode_grid(twin.apply(GRID)), encode_grid(twin.apply(ANSWER)))
    votes.expect(len(TWINS) + 1, encode_grid(WRONG), encode_grid(OTHER))
    for i, (answer, confidence) in enumerate(answers):
        twin = TWINS[i]
        votes.add(i + 1, encode_grid(twin.apply(GRID)), encode_grid(twin.apply(answer)), confidence)
    return votes


def test_twins_vote_for_one_test_input() -> None:
    votes = votes_of([(WRONG, 0.9), (ANSWER, 0.1), (ANSWER, 0.2), (OTHER, 0.99)])
    assert votes.pass_at((1, 2)) == {1: 0.5, 2: 0.5}
    assert votes.submission() == {
        "p": [{"attempt_1": ANSWER.tolist(), "attempt_2": OTHER.tolist()}],
        "q": [{"attempt_1": [[0]], "attempt_2": [[0]]}],
    }


def test_equal_counts_rank_by_mean_confidence() -> None:
    votes = votes_of([(WRONG, 0.9), (ANSWER, 0.6), (WRONG, 0.1), (ANSWER, 0.5), (OTHER, 1.0)])
    assert votes.pass_at((1,)) == {1: 0.5}
    votes = votes_of([(WRONG, 0.9), (ANSWER, 0.6), (WRONG, 0.5), (ANSWER, 0.5), (OTHER, 1.0)])
    assert votes.pass_at((1, 2)) == {1: 0.0, 2: 0.5}


def test_a_puzzle_counts_by_the_share_of_its_tests() -> None:
    votes = votes_of([(ANSWER, 0.5)])
    votes.expect(1, encode_grid(OTHER), encode_grid(WRONG))
    votes.add(1, encode_grid(OTHER), encode_grid(ANSWER), 0.5)
    assert votes.pass_at((1,)) == {1: (0.5 + 0.0) / 2}
    assert [len(tests) for tests in votes.submission().values()] == [2, 1]


def test_figures_so_far_are_of_the_test_inputs_that_were_tried() -> None:
    votes = votes_of([(ANSWER, 0.5)])
    assert votes.pass_at((1,)) == {1: 0.5} and votes.pass_at((1,), tried=True) == {1: 1.0}
    votes.add(len(TWINS) + 1, encode_grid(WRONG), None, 0.0)  # run, but its latents were not finite
    assert votes.pass_at((1,), tried=True) == {1: 0.5}
    with pytest.raises(InputError, match="identifier=0"):
        votes.add(0, encode_grid(GRID), encode_grid(ANSWER), 0.5)
