"""FLOPs, bytes and special functions of mixer_norm; x [B, L, D], seen as [B, D, L]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.costs import KernelCost
from benchmarks.costs import swiglu as cost
from benchmarks.costs.swiglu import HOPPER, View


def _views(
    batch: int, length: int, width: int, inner: int, terms: int, norm_axis: str, element: int, families: tuple[str, ...]
) -> tuple[View, View]:
    """The rows that are mixed, and those that are normalised."""
    mixed = View(batch, width, length, inner, terms, "sequence", element, families)
    tokens = replace(mixed, batch=1, rows=batch * length, features=width, axis="hidden")
    return mixed, mixed if norm_axis == "sequence" else tokens


def forward(
    batch: int, length: int, width: int, inner: int, terms: int, norm_axis: str = "sequence", element: int = 2,
    families: tuple[str, ...] = HOPPER,
) -> Iterator[KernelCost]:  # fmt: skip
    """The launches of one forward call."""
    mixed, normed = _views(batch, length, width, inner, terms, norm_axis, element, families)
    yield from cost.forward(mixed, norm_features=norm_axis == "sequence")
    if norm_axis == "hidden":
        yield cost.normalise(normed)


def backward(
    batch: int, length: int, width: int, inner: int, terms: int, norm_axis: str = "sequence", element: int = 2,
    families: tuple[str, ...] = HOPPER,
) -> Iterator[KernelCost]:  # fmt: skip
    """The launches of one backward call."""
    mixed, normed = _views(batch, length, width, inner, terms, norm_axis, element, families)
    yield cost.norm_backward(normed)
    yield from cost.backward(mixed)
