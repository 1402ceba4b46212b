"""The correctness gate: a provider whose answers disagree with the reference is refused and never timed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.cases import SHORT, TRAINING
from benchmarks.problem import Problem
from benchmarks.providers import REFERENCE, Provider, run_of

BAND = 4
"""Rounding band of one layer, in units of the dtype's epsilon and of the size of the truth."""

REDUCED, PEERS = 0.1, 1e-4
"""Relative Frobenius error that a reduced format may have, and any float32 provider in the set `peers`: there, softmax
over 916 positions makes the official structure differ from the reference by more than the budget of a layer."""

HOPELESS = 0.75
"""Relative Frobenius error above which an answer is noise, whatever the reference's own error is."""


def refusal(provider: Provider, problem: Problem) -> str | None:
    """Why `provider` must not be timed on `problem`, or None when its error is within the budget.

    Its error against float64 is at most twice that of the reference in the same dtype, plus one rounding band per
    layer, in the maximum and in the Frobenius norm: on the shortest recursion, and on the whole task unless that is
    a trajectory of many ACT steps, where rounding has grown to the size of the values and only finiteness is asked.
    Reduced formats and the set `peers` have a budget of their own. A provider computes the whole batch; the first and
    last samples are compared.
    """
    if "short" not in problem.memory:
        problem.memory["short"] = problem.short()
    for part in (problem.memory["short"], problem):
        try:
            reason = _compare(provider, part, trajectory=part is problem and problem.case.task == "solve")
        except Exception as error:
            reason = f"it raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if reason is not None:
            return f"{reason} ({len(part.config.program)} steps of the program)"
    return None


def _compare(provider: Provider, problem: Problem, trajectory: bool) -> str | None:
    batch = problem.case.batch
    samples = sorted({0, 1, batch - 2, batch - 1} & set(range(batch)))
    few = problem.take(samples)
    if problem.case.task in TRAINING:  # a gradient is a sum over the batch, and float64 has room for few samples
        got = run_of(provider, few)(few.inputs[0])
    else:
        got = [t[samples] for t in run_of(provider, problem)(problem.inputs[0])]
    if not all(t.isfinite().all() for t in got):
        return "values that are not finite"
    if trajectory:
        return None
    base, truth = _expected(problem, few)
    layers = sum(problem.config.layers[s.stack] for s in problem.config.program.steps)
    allowed = REDUCED if provider.reduced else PEERS if problem.case.model in SHORT else 0.0
    return within_budget(got, base, truth, BAND * layers, provider.leeway, allowed)


def _expected(problem: Problem, few: Problem) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The reference's results for `few` samples of `problem`, in the case's dtype and in float64; worked out once."""
    if "expected" not in problem.memory:
        problem.memory["expected"] = tuple(run_of(REFERENCE, p)(p.inputs[0]) for p in (few, few.double()))
    base, truth = problem.memory["expected"]
    return base, truth


def within_budget(
    got: Sequence[Tensor],
    base: Sequence[Tensor],
    truth: Sequence[Tensor],
    band: int,
    leeway: float = 1.0,
    reduced: float = 0.0,
) -> str | None:
    """Where `got` exceeds `leeway` times the budget that `base` sets, or None. `band` counts epsilons of the dtype.

    With `reduced` only the Frobenius norm counts, and at least that relative error is allowed.
    """
    if len(got) != len(truth):
        return f"{len(got)} results instead of {len(truth)}"
    for i, (mine, theirs, true) in enumerate(zip(got, base, truth, strict=True)):
        if mine.shape != true.shape:
            return f"result {i} has shape {tuple(mine.shape)} instead of {tuple(true.shape)}"
        floor = band * torch.finfo(theirs.dtype).eps
        for norm in ("Frobenius",) if reduced else ("max", "Frobenius"):
            error, allowed, scale = (_size(t, norm) for t in (mine - true, theirs - true, true))
            limit = max(leeway * (2 * allowed + floor * scale), reduced * scale)
            if norm == "Frobenius":
                limit = min(limit, HOPELESS * scale)
            if error > limit and error > 0:
                return f"result {i}: {norm} error {error / scale:.2g} of its size, allowed {limit / scale:.2g}"
    return None


def _size(t: Tensor, norm: str) -> float:
    wide = t.to(torch.float64)
    return float(wide.abs().max() if norm == "max" else torch.linalg.vector_norm(wide))
