"""FLOPs, bytes and special functions of swiglu_norm; x [B, L, D]."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.costs import KernelCost
from benchmarks.costs import swiglu as cost
from benchmarks.costs.swiglu import HOPPER, View


def _view(batch: int, length: int, width: int, inner: int, terms: int, element: int, families: tuple[str, ...]) -> View:
    return View(1, batch * length, width, inner, terms, "hidden", element, families)


def forward(
    batch: int, length: int, width: int, inner: int, terms: int, element: int = 2, families: tuple[str, ...] = HOPPER
) -> Iterator[KernelCost]:
    """The launches of one forward call."""
    yield from cost.forward(_view(batch, length, width, inner, terms, element, families))


def backward(
    batch: int, length: int, width: int, inner: int, terms: int, element: int = 2, families: tuple[str, ...] = HOPPER
) -> Iterator[KernelCost]:
    """The launches of one backward call."""
    view = _view(batch, length, width, inner, terms, element, families)
    yield from cost.backward(view)
    yield cost.norm_backward(view)
