"""Slots on the device against slots on the host: the same answers after the same steps, whoever else is there."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rtm_kernels.engine import HaltingPolicy, Rollouts, Service, Solution, Solver
from rtm_kernels.engine.device_slots import DeviceSlots
from rtm_kernels.engine.slots import Finished, Sample, Slots
from rtm_kernels.errors import BackendUnavailable, InputError
from tests.engine.fakes import TASK, ScriptedExecutor, model
from tests.recursion.support import Recorder

PUZZLES = ["1000", "5200", "3007", "2140", "6030", "1007", "7000", "4450", "0110", "3777", "2222", "6540"]
POLICIES = (
    "fixed", "q=0.6", "settle=2", "settle=2/0.3", "cumulative", "q=0.9+settle=3", "verified", "verified+q", "settle+verified",
)  # fmt: skip


def on_device(solver: Solver, **options: Any) -> Solver:
    """The solver with its slots on the device, recorded."""
    verify, several = solver.task.verify_tokens, solver.rollouts.count > 1
    options = {"impl": "reference", "capture": Recorder(), "fixed_shape": solver.batch_invariant} | options

    def slots(observer: None = None, *, ahead: bool = False) -> Any:
        from rtm_kernels.engine.rollouts import RolloutSlots

        made = DeviceSlots(
            solver.model, solver.executor, solver.policy, verify, solver.batch_size,
            ahead=solver.batch_size if ahead and not several else 0, **options,
        )  # fmt: skip
        solver.last = made  # type: ignore[attr-defined]
        return RolloutSlots(made, solver.rollouts, solver.task) if several else made

    solver.slots = slots  # type: ignore[method-assign]
    return solver


def scripted(policy: HaltingPolicy | str, **options: Any) -> Solver:
    solver = Solver(model(), task=TASK, policy=policy, **options)
    solver.executor = ScriptedExecutor(solver.model)
    return solver


def bits(solution: Solution) -> tuple[object, ...]:
    return tuple(value for name, value in solution.to_dict().items() if name not in ("seconds", "total_steps"))


@pytest.mark.parametrize("floor", [1, 4])
@pytest.mark.parametrize("text", POLICIES)
def test_every_result_is_that_of_the_host_and_of_solving_alone(text: str, floor: int) -> None:
    alone = {p: bits(scripted(text, min_steps=floor, batch_size=1).solve([p])[0]) for p in PUZZLES}
    draw = random.Random(floor)
    for size in (1, 3, 5, 16):
        order = draw.sample(PUZZLES, len(PUZZLES))
        host = scripted(text, min_steps=floor, batch_size=size).solve(order)
        device = on_device(scripted(text, min_steps=floor, batch_size=size)).solve(order)
        assert [bits(s) for s in device] == [bits(s) for s in host] == [alone[p] for p in order]
    assert len({steps for _, _, _, _, steps, *_ in alone.values()}) > 1 or text == "fixed"
    assert {s[3] for s in alone.values()} >= {"non_finite"}
