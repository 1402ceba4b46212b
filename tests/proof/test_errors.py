"""Errors against float64, beyond the interpreter gate: half precision, a GPU's dtypes, and gradients as derivatives."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.gates.interpret_gate import OpCase, all_cases, check
from tests.proof.cases import name_of, small_cases
from tests.proof.tiles import tiles

pytest.importorskip("triton")

HALF_OPS = ("swiglu_norm", "mixer_norm", "attention_norm", "token_loss")
DIFFERENTIABLE = [case for case in small_cases() if case.op in HALF_OPS]


@pytest.mark.proof("error")
def test_every_op_has_twelve_shapes_in_the_interpreter_gate(cells: Callable[[int], None]) -> None:
    found = Counter(case.op for case in all_cases())
    assert set(found) >= {*HALF_OPS, "halting", "adam_atan2", "sign_sgd", "persistent"}
    assert all(count >= 12 for count in found.values()), found
    cells(sum(found.values()))


@pytest.mark.proof("error")
@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=name_of)
def test_float16_is_within_twice_eager(case: OpCase) -> None:
    with tiles(32):
        assert check(case, torch.float16).failures == []


@pytest.mark.gpu
@pytest.mark.proof("error")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=name_of)
def test_every_dtype_of_a_gpu_is_within_twice_eager(case: OpCase, dtype: torch.dtype, device: torch.device) -> None:
    assert check(case, dtype, device=device).failures == []


def leaves_of(case: OpCase) -> tuple[list[str], list[Tensor], dict[str, Tensor]]:
    """Names and float64 leaves of what is differentiated, and the other tensors."""
    tensors = case.make(torch.Generator().manual_seed(2))
    names = [name for name, t in tensors.items() if t.requires_grad]
    return names, [tensors[n].detach().double().requires_grad_() for n in names], tensors


@pytest.mark.proof("gradcheck")
@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=name_of)
def test_float64_gradients_are_the_derivatives(case: OpCase) -> None:
    names, leaves, tensors = leaves_of(case)

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        result = case.call("triton", {**tensors, **dict(zip(names, given, strict=True))})
        outputs = (result,) if isinstance(result, Tensor) else result
        return tuple(out for out in outputs if out.is_floating_point())

    with tiles(32), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # strided inputs
        assert torch.autograd.gradcheck(call, leaves, nondet_tol=0.0, fast_mode=True)


@pytest.mark.proof("gradcheck")
@pytest.mark.parametrize("op", HALF_OPS)
def test_double_backward_is_refused(op: str) -> None:
    case = next(case for case in DIFFERENTIABLE if case.op == op)
    names, leaves, tensors = leaves_of(case)
    result = case.call("triton", {**tensors, **dict(zip(names, leaves, strict=True))})
    out = result if isinstance(result, Tensor) else result[0]
    first = torch.autograd.grad(out.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first[0].sum(), leaves[:1])
