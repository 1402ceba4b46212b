"""Errors against float64, beyond the interpreter gate: half precision, a GPU's dtypes, derivatives, random cases."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.cases import DIFFERENTIABLE, drawn, name_of, small_cases
from tests.cases.case import Case, check
from tests.proof.tiles import tiles

pytest.importorskip("triton")

CASES = [case for case in small_cases() if case.op in DIFFERENTIABLE]
CONFIGURATIONS, GROUP = 300, 10
FAR, AGAIN = 4.0, 1 << 20
"""In a tensor of few elements the baseline may be exact by luck: below FAR times the budget other values decide."""


@pytest.mark.proof("error")
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_float16_is_within_twice_eager(case: Case) -> None:
    with tiles(32):
        assert check(case, torch.float16).failures == []


@pytest.mark.gpu
@pytest.mark.proof("error")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_dtype_of_a_gpu_is_within_twice_eager(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    assert check(case, dtype, device=device).failures == []


def leaves_of(case: Case) -> tuple[list[str], list[Tensor], dict[str, Tensor]]:
    """Names and float64 leaves of what is differentiated, and the other tensors."""
    tensors = case.make(torch.Generator().manual_seed(2))
    names = [name for name, t in tensors.items() if t.requires_grad]
    return names, [tensors[n].detach().double().requires_grad_() for n in names], tensors


@pytest.mark.proof("gradcheck")
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_float64_gradients_are_the_derivatives(case: Case) -> None:
    names, leaves, tensors = leaves_of(case)

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        result = case.call("triton", {**tensors, **dict(zip(names, given, strict=True))})
        outputs = (result,) if isinstance(result, Tensor) else result
        return tuple(out for out in outputs if out.is_floating_point())

    with tiles(32), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # strided inputs
        assert torch.autograd.gradcheck(call, leaves, nondet_tol=0.0, fast_mode=True)


@pytest.mark.proof("gradcheck")
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_double_backward_is_refused(op: str) -> None:
    case = next(case for case in CASES if case.op == op)
    names, leaves, tensors = leaves_of(case)
    result = case.call("triton", {**tensors, **dict(zip(names, leaves, strict=True))})
    out = result if isinstance(result, Tensor) else result[0]
    first = torch.autograd.grad(out.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=f"the kernels of .*{op}.* have no second derivative; impl='reference'"):
        torch.autograd.grad(first[0].sum(), leaves[:1])


def failure(seed: int) -> str | None:
    """How the configuration of a seed fails, or None."""
    d = drawn(seed)
    with tiles(d.tile):
        outcome = check(d.case, d.dtype, seed=seed)
        if outcome.failures and max(outcome.forward, outcome.backward) < FAR:
            outcome = check(d.case, d.dtype, seed=seed + AGAIN)
    if not outcome.failures:
        return None
    return f"seed {seed}: {d.case.op} {d.case.name} {d.dtype} tiles of {d.tile}: {'; '.join(outcome.failures)}"


@pytest.mark.proof("fuzz")
@pytest.mark.parametrize("first", range(0, CONFIGURATIONS, GROUP))
def test_random_configurations(first: int, cells: Callable[[int], None]) -> None:
    failures = [failure(seed) for seed in range(first, first + GROUP)]
    assert not any(failures), "\n".join(filter(None, failures))
    cells(GROUP)


@pytest.mark.gpu
@pytest.mark.proof("fuzz")
@pytest.mark.parametrize("first", range(0, 2000, 100))
def test_random_configurations_on_the_gpu(first: int, device: torch.device, cells: Callable[[int], None]) -> None:
    for seed in range(first, first + 100):
        d = drawn(seed)
        dtype = torch.bfloat16 if d.dtype == torch.float16 and seed % 4 else d.dtype
        failures = check(d.case, dtype, seed=seed, device=device).failures
        assert not failures, f"{seed}: {d.case.op} {d.case.name} {dtype}: {failures}"
    cells(100)
