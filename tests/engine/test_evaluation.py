"""Accuracy of a solver: every figure against a plain count over scripted puzzles, whole and interrupted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rtm_kernels.engine import Evaluation, HaltingPolicy, Measurement, Rollouts, Solver, take_turns
from rtm_kernels.errors import InputError
from tests.engine.fakes import TASK, ScriptedExecutor, model

PUZZLES = ["1012", "2100", "3231", "5005", "6440", "7600"]
NEEDED = [1, 2, 3, 5, 6, 7]
HEAD_SAYS_HALT = [0, 1, 2, 0, 4, 6]
LEAVES = [1, 2, 3, 5, 6, 6]
CAP = 6


def solver(policy: HaltingPolicy | None = None, rollouts: int = 1) -> Solver:
    made = Solver(model(), task=TASK, policy=policy or HaltingPolicy(max_steps=CAP), batch_size=2,
                  rollouts=Rollouts(rollouts, noise=0.0))  # fmt: skip
    made.executor = ScriptedExecutor(made.model)
    return made


def evaluate(solver: Solver, inputs: np.ndarray, labels: np.ndarray, **options: Any) -> Evaluation:
    measurement = Measurement(solver, inputs, labels, **options)
    take_turns([measurement])
    return measurement.evaluation()


def arrays() -> tuple[np.ndarray, np.ndarray]:
    inputs = np.stack([TASK.encode(text) for text in PUZZLES])
    return inputs, inputs[:, ::-1].astype(np.int32)


def test_every_figure_is_a_plain_count() -> None:
    inputs, labels = arrays()
    found = evaluate(solver(), inputs, labels, sources=["a", "a", "b", "b", "b", "a"])
    solved = [needed <= CAP for needed in NEEDED]
    assert found.complete and found.n == 6 and found.exact_accuracy == found.verified == sum(solved) / 6
    assert found.mean_steps == sum(LEAVES) / 6
    assert found.depth_histogram == {depth: LEAVES.count(depth) for depth in sorted(set(LEAVES))}
    says = [0 < head <= left for head, left in zip(HEAD_SAYS_HALT, LEAVES, strict=True)]
    assert found.halting_accuracy == sum(a == b for a, b in zip(says, solved, strict=True)) / 6
    for d in range(1, CAP + 1):
        assert found.accuracy_by_step[d - 1] == pytest.approx(sum(needed <= d for needed in NEEDED) / 6)
        assert found.steps_by_step[d - 1] == pytest.approx(sum(min(left, d) for left in LEAVES) / 6)
    assert {name: row["n"] for name, row in found.sources.items()} == {"a": 3, "b": 3}
    assert found.sources["a"]["exact_accuracy"] == 2 / 3 and found.sources["b"]["mean_steps"] == 14 / 3


def test_labels_that_do_not_count_are_left_out() -> None:
    inputs, labels = arrays()
    labels[:] = -100
    labels[0, 0] = 99
    found = evaluate(solver(), inputs, labels)
    assert found.exact_accuracy == 5 / 6 and found.token_accuracy == 0.0
    assert found.accuracy_by_step == [5 / 6] * CAP


def test_the_curve_of_several_rollouts_is_that_of_the_first() -> None:
    inputs, labels = arrays()
    found = evaluate(solver(rollouts=3), inputs, labels)
    assert found.accuracy_by_step[-1] == 5 / 6 and len(found.steps_by_step) == CAP
    one = evaluate(solver(), inputs, labels)
    assert (found.rollouts, found.max_total_steps) == (3, 3 * CAP) and (one.rollouts, one.max_total_steps) == (1, CAP)
    assert found.mean_total_steps == pytest.approx(one.mean_total_steps + 2 * CAP / 6)
    assert found.mean_steps == one.mean_steps == one.mean_total_steps


def test_arguments_are_checked() -> None:
    inputs, labels = arrays()
    with pytest.raises(InputError, match="sources=2 is not allowed"):
        evaluate(solver(), inputs, labels, sources=["a", "b"])
    with pytest.raises(InputError, match=r"labels\.shape"):
        evaluate(solver(), inputs, labels[:2])


@pytest.mark.parametrize("rounds", [1, 2, 6])
def test_two_protocols_take_turns_over_the_same_puzzles(rounds: int) -> None:
    inputs, labels = arrays()
    solvers = [solver(), solver(HaltingPolicy((), max_steps=CAP))]
    order: list[str] = []
    for made in solvers:
        original = made.run
        made.run = lambda *a, _run=original, _of=made, **k: (order.append(str(_of.policy)), _run(*a, **k))[1]  # type: ignore[method-assign]
    both = [Measurement(made, inputs, labels, by_step=False) for made in solvers]
    assert take_turns(both, rounds)
    assert order == (["verified", "fixed", "fixed", "verified"] * 3)[: 2 * rounds]
    for measured, alone in zip(both, (solver(), solver(HaltingPolicy((), max_steps=CAP))), strict=True):
        found, whole = measured.evaluation(), evaluate(alone, inputs, labels)
        assert len(measured.seconds) == rounds and found.seconds == sum(measured.seconds) and found.complete
        timeless = {"seconds": 0, "puzzles_per_second": 0, "accuracy_by_step": [], "steps_by_step": []}
        assert replace(found, **timeless) == replace(whole, **timeless) and found.accuracy_by_step == []
    for wrong in (0, 7):
        with pytest.raises(InputError, match="rounds"):
            take_turns(both, wrong)
