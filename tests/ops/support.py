"""Inputs that the op tests and gates share."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = ("plain", "strided", "offset", "transposed", "expanded")


def laid_out(shape: tuple[int, ...], layout: str, generator: torch.Generator) -> Tensor:
    """A float32 leaf of random values in one of `LAYOUTS`: gaps in its rows, offset by one element, last two axes
    swapped in memory, or the first axis repeated with stride 0."""
    if layout == "plain":
        x = torch.randn(shape, generator=generator)
    elif layout == "strided":
        x = torch.randn(*shape[:-1], 2 * shape[-1] + 1, generator=generator)[..., 1::2][..., : shape[-1]]
    elif layout == "offset":
        x = torch.randn(torch.Size(shape).numel() + 1, generator=generator)[1:].view(shape)
    elif layout == "transposed":
        x = torch.randn(*shape[:-2], shape[-1], shape[-2], generator=generator).transpose(-1, -2)
    elif layout == "expanded":
        x = torch.randn(1, *shape[1:], generator=generator).expand(shape)
    else:
        raise ValueError(layout)
    return x.detach().requires_grad_()


def swiglu_weights(features: int, inner: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights scaled so that gate and up have standard deviation near 1 on standard normal rows."""
    gate_up = torch.randn(2 * inner, features, generator=generator) * features**-0.5
    down = torch.randn(features, inner, generator=generator) * inner**-0.5
    return {"gate_up_weight": gate_up.requires_grad_(), "down_weight": down.requires_grad_()}


def swiglu_inputs(
    shape: tuple[int, ...], mixed_axis: int, inner: int, terms: int = 0, seed: int = 0, layout: str = "plain"
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """x of `shape`, gate_up_weight and down_weight over axis `mixed_axis`, and `terms` injection terms; leaves."""
    generator = torch.Generator().manual_seed(seed)
    x = laid_out(shape, layout, generator)
    weights = swiglu_weights(shape[mixed_axis], inner, generator)
    injection = tuple(laid_out(shape, "plain", generator) for _ in range(terms))
    return x, weights["gate_up_weight"], weights["down_weight"], injection


def to(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Leaves with the same values in another dtype."""
    return tuple(t.detach().to(dtype).requires_grad_() for t in tensors)
