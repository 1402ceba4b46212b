"""Buckets by predicted steps: they change when a puzzle runs and beside whom, never what it is answered."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtm_kernels.engine import Rollouts, Service, Solution, Solver
from rtm_kernels.engine.prediction import PATIENCE, DepthEstimate, LookAhead
from rtm_kernels.engine.slots import Sample
from rtm_kernels.errors import InputError
from tests.engine import fakes, test_twins

WAIT = 60.0
PUZZLES = st.lists(st.text("01234567", min_size=4, max_size=4), min_size=1, max_size=12)


def solver(**options: object) -> Solver:
    made = Solver(fakes.model(), task=fakes.TASK, **options)  # type: ignore[arg-type]
    made.executor = fakes.ScriptedExecutor(made.model)
    return made


def outcome(solution: Solution) -> tuple[object, ...]:
    return (solution.input, solution.answer, solution.status, solution.steps, solution.reason, solution.answer_step,
            solution.halt_probability, solution.residual, solution.rollout)  # fmt: skip


def test_the_estimate_starts_with_the_share_unknown_and_learns() -> None:
    estimate = DepthEstimate(17)
    assert estimate.predict(np.array([1, 1, 2, 3])) == 9 and estimate.predict(np.array([2, 2, 2, 2])) == 1
    for _ in range(3):
        estimate.learn(np.array([1, 1, 4, 5]), 3)
    assert estimate.predict(np.array([2, 3, 1, 1])) == (9 + 3 * 3) / 4
    assert estimate.predict(np.array([1, 2, 3, 4])) == 5


def test_the_deepest_bucket_goes_first_and_none_waits_for_ever() -> None:
    def sample(key: int, unknown: int) -> Sample:
        return Sample(key, np.array([1] * unknown + [2] * (16 - unknown)))

    def order(unknowns: list[int], size: int, step: int = 1) -> list[int]:
        ahead, found = LookAhead(iter([sample(i, u) for i, u in enumerate(unknowns)]), size, DepthEstimate(17)), []
        while taken := ahead.take(step):
            found += [s.key for s in taken]
        return found

    assert order([0, 16, 1, 15, 0], 0) == [0, 1, 2, 3, 4]
    # predicted 1, 17, 2, 16, 1: the buckets 0, 5, 1, 4, 0
    assert order([0, 16, 1, 15, 0], 8) == [1, 3, 2, 0, 4]
    late = order([0] + [16] * 100, 3)
    assert late.index(0) <= (PATIENCE + 1) * 3 + 1


def test_reading_ahead_is_bounded() -> None:
    read = 0

    def source() -> Iterator[Sample]:
        nonlocal read
        for i in range(100):
            read += 1
            yield Sample(i, np.array([1, 2, 2, 2]))

    ahead = LookAhead(source(), 5, DepthEstimate(8))
    assert len(ahead.take(3)) == 3 and read == 8
    assert len(ahead.take(1)) == 1 and read <= 9


def test_the_batch_ends_sooner_when_deep_puzzles_begin_first() -> None:
    # `0` is token 1, the unknown cell: 7000 is predicted to be, and is, deeper than 1111
    puzzles = ["1111"] * 8 + ["7000"]

    def batches(lookahead: int) -> list[int]:
        made = solver(batch_size=3, max_steps=8, lookahead=lookahead)
        made.solve(puzzles)
        assert isinstance(made.executor, fakes.ScriptedExecutor)
        return made.executor.batch_sizes

    assert sum(batches(0)) == sum(batches(16)) == 15
    assert len(batches(16)) == 7 < len(batches(0))


@settings(max_examples=20)
@given(PUZZLES, st.integers(1, 6), st.integers(0, 20), st.randoms(use_true_random=False))
def test_answers_do_not_depend_on_order_batch_or_look_ahead(puzzles, batch_size, lookahead, random) -> None:
    expected = {p: outcome(solver(batch_size=1).solve([p])[0]) for p in set(puzzles)}
    random.shuffle(puzzles)
    found = solver(batch_size=batch_size, lookahead=lookahead).solve(puzzles)
    assert [outcome(s) for s in found] == [expected[p] for p in puzzles]


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.text("01234567", min_size=4, max_size=4), st.integers(-2, 2), st.booleans()),
             min_size=1, max_size=12),
    st.lists(st.integers(0, 2), max_size=5),
)  # fmt: skip
def test_a_service_of_two_tasks_answers_whatever_arrives_and_is_cancelled(requests, boards) -> None:
    """Mixed tasks and lengths, priorities, cancellations and buckets: each answer is that of the puzzle alone."""
    texts = test_twins.puzzles()
    expected = {p: outcome(solver(batch_size=1).solve([p])[0]) for p, _, _ in requests}
    alone = {t: outcome(test_twins.solver(3)[0].solve([t])[0]) for t in texts}
    tasks = {"short": solver(batch_size=2), "board": test_twins.solver(3, batch_size=2)[0]}
    with Service(tasks) as service:
        futures = [(p, service.submit(p, solver="short", priority=n), cancel) for p, n, cancel in requests]
        longer = [(texts[i], service.submit(texts[i], solver="board")) for i in boards]
        cancelled = [cancel and future.cancel() for _, future, cancel in futures]
        for (puzzle, future, _), gone in zip(futures, cancelled, strict=True):
            if not gone:
                assert outcome(future.result(WAIT)) == expected[puzzle]
        for text, future in longer:
            assert outcome(future.result(WAIT)) == alone[text]


def test_bad_arguments_are_named() -> None:
    for lookahead in (-1, 1.5, 1 << 20):
        with pytest.raises(InputError, match="lookahead"):
            solver(lookahead=lookahead)


def test_rollouts_go_together_with_look_ahead() -> None:
    plain = [outcome(s) for s in solver(rollouts=Rollouts(3, noise=0.0), batch_size=2).solve(["7000", "1000", "3017"])]
    ahead = solver(rollouts=Rollouts(3, noise=0.0), batch_size=2, lookahead=4).solve(["7000", "1000", "3017"])
    assert [outcome(s) for s in ahead] == plain
