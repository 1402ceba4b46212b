"""Any strides, storage offset or overlap of any tensor, upstream gradient included, give the bits of dense tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import small_cases
from tests.cases.case import Case
from tests.proof.launching import bits

pytest.importorskip("triton")
pytestmark = pytest.mark.proof("layout")


def part_of(t: Tensor, shape: tuple[int, ...], index: Any) -> Tensor:
    """A copy of `t` as a part of a larger tensor of NaN."""
    wide = torch.full(shape, torch.nan).to(t.dtype)
    wide[index] = t
    return wide[index]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "padded": lambda t: part_of(t, (*t.shape[:-1], t.shape[-1] + 3), (..., slice(t.shape[-1]))),
    "strided": lambda t: part_of(t, (*t.shape, 2), (..., 0)),
    "offset": lambda t: part_of(t.reshape(-1), (t.numel() + 1,), slice(1, None)).view(t.shape),
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batch last": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "alternate": lambda t: part_of(t, (2 * t.shape[0], *t.shape[1:]), slice(1, None, 2)),
    "window": lambda t: part_of(t, (*t.shape[:-1], 3 * t.shape[-1]), (..., slice(t.shape[-1], 2 * t.shape[-1]))),
}
"""With dense tensors and `expanded` below: nine layouts."""
OPS = ("swiglu_norm", "mixer_norm", "attention_norm", "token_loss", "halting", "sign_sgd")
CASES = {case.op: case for case in reversed(small_cases()) if case.op in OPS}
GRADIENT = "upstream gradient"


def result(case: Case, tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Outputs and gradients; the tensors, and the upstream gradient if one is given, as they are laid out."""
    leaves = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in tensors.items() if n != GRADIENT}
    outputs = case.call("triton", leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    gradients: tuple[tuple[str, Tensor], ...] = ()
    if outputs[0].requires_grad:
        wanted = {n: t for n, t in leaves.items() if t.requires_grad}
        found = torch.autograd.grad(outputs[0], list(wanted.values()), tensors[GRADIENT], allow_unused=True)
        gradients = tuple((name, t) for name, t in zip(wanted, found, strict=True) if t is not None)
    return [*(("output", t.detach()) for t in outputs), *gradients]


def assert_same(found: list[tuple[str, Tensor]], wanted: list[tuple[str, Tensor]], what: str) -> None:
    """The same bits; gradients of weights, whose sum over the rows follows the layout, up to rounding."""
    for (name, mine), (_, its) in zip(found, wanted, strict=True):
        if name.endswith("weight"):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5, msg=f"{what}: gradient of {name}")
        else:
            assert bits(mine) == bits(its), f"{what}: {name}"


@pytest.mark.parametrize("op", CASES)
def test_every_layout_of_every_tensor_gives_the_same_bits(op: str, cells: Callable[[int], None]) -> None:
    case = CASES[op]
    tensors = {n: t.detach().contiguous() for n, t in case.make(torch.Generator().manual_seed(6)).items()}
    shape = tensors["labels"].shape if op == "token_loss" else tensors.get("x", tensors[next(iter(tensors))]).shape
    tensors[GRADIENT] = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    dense, count = result(case, tensors), 0
    state = {"steps", "active", "accumulated", "weights"}  # changed in place: the public function takes dense ones only
    for name, tensor in tensors.items():
        for layout, lay in LAYOUTS.items():
            if name in state or (tensor.dim() < 2 and layout in ("transposed", "batch last")):
                continue
            assert_same(result(case, {**tensors, name: lay(tensor)}), dense, f"{name} {layout}")
            count += 1
    cells(count)


@pytest.mark.parametrize("op", ["swiglu_norm", "mixer_norm", "attention_norm", "token_loss"])
def test_expanded_tensors_give_the_bits_of_their_copies(op: str, cells: Callable[[int], None]) -> None:
    case, count = CASES[op], 0
    tensors = {n: t.detach().contiguous() for n, t in case.make(torch.Generator().manual_seed(6)).items()}
    shape = tensors["labels"].shape if op == "token_loss" else tensors["x"].shape
    tensors[GRADIENT] = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    for name, tensor in tensors.items():
        repeated = tensor[:1].expand(tensor.shape)
        expanded, copied = (result(case, {**tensors, name: t}) for t in (repeated, repeated.clone()))
        assert_same(expanded, copied, name)
        count += 1
    cells(count)
