"""Any strides, storage offset or overlap of any tensor, upstream gradient included, give the bits of dense tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.cases import small_cases
from tests.cases.case import Case
from tests.proof.launching import bits

pytest.importorskip("triton")
pytestmark = pytest.mark.proof("layout")


def padded(t: Tensor) -> Tensor:
    """Rows that lie further apart than they are long."""
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), torch.nan).to(t.dtype)
    wide[..., : t.shape[-1]] = t
    return wide[..., : t.shape[-1]]


def strided(t: Tensor) -> Tensor:
    """Every second element of memory."""
    wide = torch.full((*t.shape, 2), torch.nan).to(t.dtype)
    wide[..., 0] = t
    return wide[..., 0]


def offset(t: Tensor) -> Tensor:
    """One element into its storage."""
    flat = torch.empty(t.numel() + 1, dtype=t.dtype)
    flat[1:] = t.reshape(-1)
    return flat[1:].view(t.shape)


def swapped(first: int, second: int) -> Callable[[Tensor], Tensor]:
    """Two axes in the other order in memory."""
    return lambda t: t.transpose(first, second).contiguous().transpose(first, second)


def alternate(t: Tensor) -> Tensor:
    """Every second sample of a larger tensor."""
    wide = torch.full((2 * t.shape[0], *t.shape[1:]), torch.nan).to(t.dtype)
    wide[1::2] = t
    return wide[1::2]


def window(t: Tensor) -> Tensor:
    """A column block of a larger tensor, as the heads of a projection are."""
    wide = torch.full((*t.shape[:-1], 3 * t.shape[-1]), torch.nan).to(t.dtype)
    wide[..., t.shape[-1] : 2 * t.shape[-1]] = t
    return wide[..., t.shape[-1] : 2 * t.shape[-1]]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "padded": padded, "strided": strided, "offset": offset, "transposed": swapped(-1, -2), "batch last": swapped(0, -1),
    "alternate": alternate, "window": window,
}  # fmt: skip
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
