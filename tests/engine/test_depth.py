"""Depth far beyond training on a real, tiny model: it runs until its latent settles, and says so."""

from __future__ import annotations

import torch

from rtm_kernels.engine import HaltingPolicy, Solver
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.policy import MAX_STEPS
from tests.engine.fakes import TASK, config

PUZZLES = ["0123", "7654", "1111", "2053"]


def contracting() -> RecursiveReasoner:
    """A model whose weak blocks draw the latents to a fixed point, after a hundred steps or more."""
    torch.manual_seed(0)
    model = RecursiveReasoner(config(L_cycles=1)).eval()
    with torch.no_grad():
        for parameter in model.get_submodule("L_level").parameters():
            parameter.mul_(0.4)
    return model


def test_it_runs_until_it_settles_and_stays_settled() -> None:
    policy = HaltingPolicy(("settle",), max_steps=MAX_STEPS, settle_steps=5, settle_tolerance=1e-5)
    assert MAX_STEPS == 20_000 and str(policy) == "settle=5/1e-05"
    model = contracting()
    found = Solver(model, task=TASK, policy=policy, executor="reference", batch_size=4).solve(PUZZLES)
    for solution in found:
        assert solution.reason == "settle" and 32 < solution.steps < MAX_STEPS
        assert solution.residual is not None and solution.residual < 1e-5
        assert solution.status in ("verified", "unverified") and solution.answer is not None
    deeper = max(s.steps for s in found) + 50
    fixed = Solver(model, task=TASK, policy="fixed", max_steps=deeper, executor="reference").solve(PUZZLES)
    assert [s.answer for s in fixed] == [s.answer for s in found]


def test_a_cap_before_it_settles_says_that_it_moves() -> None:
    policy = HaltingPolicy(("settle",), max_steps=8, settle_steps=2, settle_tolerance=1e-6)
    (solution,) = Solver(contracting(), task=TASK, policy=policy, executor="reference").solve(PUZZLES[:1])
    assert (solution.reason, solution.steps, solution.status) == ("max_steps", 8, "unverified")
    assert solution.residual is not None and solution.residual > 1e-6
